import pytest

from pipeline.cluster.modes import (
    InProcess,
    LocalWorkers,
    RunningCluster,
    SlurmJobs,
    WorkerSettings,
    requests_gpu,
    resolve_mode,
    run_tasks,
    slurm_memory,
    threads_per_worker,
)
from pipeline.cluster.tasks import TaskQueue
from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress


@pytest.mark.parametrize("text", ["", "4h", "1:2:3:4", "-5", "1-", "1-2-3", "x"])
def test_forms_of_walltime(text):
    for accepted in ("30", "30:15", "100:00:01", "2-0", "2-12", "1-02:30:05"):
        SlurmJobs(walltime=accepted)
    with pytest.raises(InputError, match="--walltime: expected"):
        SlurmJobs(walltime=text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", "15G"), ("16GiB", "16G"), ("1.5 tb", "1397G"), ("2000k", "2M"), ("0", "0")],
)
def test_memory_in_slurms_form(text, size):
    assert slurm_memory(text) == size


@pytest.mark.parametrize(
    "mode, omp_num_threads, cores, threads",
    [
        (InProcess(), "", 8, None),
        (RunningCluster("a:1"), "", 8, None),
        (SlurmJobs(cores=6), "1", 8, 6),
        (SlurmJobs(cores=None), "1", 8, None),
        (SlurmJobs(directives=("--cpus-per-gpu=6",)), "1", 8, None),
        (LocalWorkers(2), "", 8, 4),
        (LocalWorkers(3), "", 8, 2),
        (LocalWorkers(16), "", 8, 1),
        (LocalWorkers(2), "1", 8, 1),
        (LocalWorkers(2), "many", 8, 4),
    ],
)
def test_threads(monkeypatch, mode, omp_num_threads, cores, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    monkeypatch.setattr("pipeline.utils.devices.num_usable_cores", lambda: cores)
    assert threads_per_worker(mode) == threads


@pytest.mark.parametrize(
    "mode, has_gpu",
    [
        (SlurmJobs(), False),
        (SlurmJobs(gres="gpu:1"), True),
        (SlurmJobs(gres="scratch:1"), False),
        (SlurmJobs(directives=("--exclusive", "--gpus-per-task=1")), True),
    ],
)
def test_jobs_with_a_gpu(mode, has_gpu):
    assert requests_gpu(mode) == has_gpu


@pytest.mark.parametrize("mode", [InProcess(), LocalWorkers(2)])
def test_no_tasks(mode, tmp_path):
    with Progress(0, "no tasks") as progress:
        queue = TaskQueue([], bool)
        assert run_tasks(queue, print, mode, WorkerSettings(tmp_path, "job"), progress) == []


def test_tasks_in_this_process(tmp_path, capsys):
    def make(task, on_progress):
        on_progress(len(task) - 1)
        on_progress(1)
        return task.upper()

    with Progress(5, "tasks", "images") as progress:
        settings, queue = WorkerSettings(tmp_path, "job"), TaskQueue(["ab", "cde"], str.isupper)
        assert run_tasks(queue, make, InProcess(), settings, progress) == ["AB", "CDE"]
    assert "5/5 [" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "device", "gpus", "expected"),
    [
        (None, "auto", 0, InProcess()),
        (None, "auto", 1, InProcess()),
        (None, "auto", 4, LocalWorkers(4)),
        (None, "cuda:1", 4, InProcess()),
        (InProcess(), "auto", 4, InProcess()),
    ],
)
def test_the_default_is_one_process_per_gpu(monkeypatch, mode, device, gpus, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert resolve_mode(mode, device) == expected
