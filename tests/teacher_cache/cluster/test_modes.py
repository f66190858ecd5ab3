import pytest

from pipeline.utils.errors import InputError
from teacher_cache.cluster import modes
from teacher_cache.cluster.modes import (
    InProcess,
    LocalWorkers,
    RunningCluster,
    SlurmJobs,
    parse_walltime,
    print_job_lifetime,
    requests_gpu,
    threads_per_worker,
    worker_lifetime,
    worker_lifetime_options,
)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("30", 1800),
        ("30:15", 1815),
        ("04:00:00", 14400),
        ("100:00:01", 360001),
        ("2-0", 172800),
        ("2-12", 216000),
        ("1-02:30", 95400),
        ("1-02:30:05", 95405),
    ],
)
def test_walltime(text, seconds):
    assert parse_walltime(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "4h", "1:2:3:4", "-5", "1-", "1-2-3", "x"])
def test_walltime_refuses(text):
    with pytest.raises(InputError, match="--walltime: expected"):
        parse_walltime(text)


@pytest.mark.parametrize("walltime", [60, 300, 480, 3600, 14400, 172800])
def test_workers_leave_before_their_walltime(walltime):
    seconds, stagger = worker_lifetime(walltime)
    assert stagger > 0
    assert seconds + stagger <= walltime - min(120, walltime / 4)
    assert seconds - stagger >= walltime / 2
    if walltime >= 14400:
        assert seconds - stagger >= 0.89 * walltime


@pytest.mark.parametrize(
    "mode, told, cores, threads",
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
def test_threads(monkeypatch, mode, told, cores, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(modes, "num_usable_cores", lambda: cores)
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


@pytest.mark.parametrize(
    ("end", "left", "options", "told"),
    [
        (1100, None, worker_lifetime_options(600), ""),
        ("", "10:00", worker_lifetime_options(600), ""),
        ("", "1-00:00:00", worker_lifetime_options(86400), ""),
        ("", "UNLIMITED", "", ""),
        ("", "NOT_SET", "", "a job that is killed repeats its shard"),
        ("", "0:00", "", "a job that is killed repeats its shard"),
        ("", None, "", "a job that is killed repeats its shard"),
    ],
)
def test_a_job_knows_its_end(monkeypatch, tmp_path, capsys, end, left, options, told):
    monkeypatch.setattr(modes.time, "time", lambda: 500.5)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(end))
    monkeypatch.setenv("PATH", str(tmp_path))
    if left is not None:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {left}\n")
        (tmp_path / "squeue").chmod(0o755)
    print_job_lifetime()
    out, err = capsys.readouterr()
    assert out.strip() == options
    assert len(err.splitlines()) == bool(told) and told in err
