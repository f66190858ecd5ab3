import pytest

from pipeline.utils.errors import InputError
from teacher_cache.cluster import modes
from teacher_cache.cluster.modes import (
    ArrayShare,
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
def test_workers_stop_before_their_walltime(walltime):
    seconds, stagger = worker_lifetime(walltime)
    assert stagger > 0
    assert seconds + stagger <= walltime - min(120, walltime / 4)
    assert seconds - stagger >= walltime / 2
    if walltime >= 14400:
        assert seconds - stagger >= 0.89 * walltime


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
    ("end", "left", "options", "warning"),
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
def test_lifetime_within_a_job(monkeypatch, tmp_path, capsys, end, left, options, warning):
    monkeypatch.setattr(modes.time, "time", lambda: 500.5)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(end))
    monkeypatch.setenv("PATH", str(tmp_path))
    if left is not None:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {left}\n")
        (tmp_path / "squeue").chmod(0o755)
    print_job_lifetime()
    out, err = capsys.readouterr()
    assert out.strip() == options
    assert len(err.splitlines()) == bool(warning) and warning in err


@pytest.mark.parametrize("num_items", [0, 1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_array_shares_partition_the_items(num_items, count):
    items = list(range(num_items))
    shares = [ArrayShare(index, count).select(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text, share", [("0/1", ArrayShare(0, 1)), ("3/8", ArrayShare(3, 8))])
def test_parse_array_share(text, share):
    assert ArrayShare.parse(text) == share


@pytest.mark.parametrize("text", ["", "3", "1/1", "-1/2", "0/0", "a/2", "1/2/3", "0.5/2"])
def test_invalid_array_share(text):
    with pytest.raises(InputError, match="--array: expected I/N with I from 0 to N-1, found"):
        ArrayShare.parse(text)


def array_variables(**values):
    return {f"SLURM_ARRAY_TASK_{name.upper()}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    "environment, share",
    [
        (array_variables(id=0, min=0, count=1), ArrayShare(0, 1)),
        (array_variables(id=2, min=0, max=7, count=8, step=1), ArrayShare(2, 8)),
        (array_variables(id=5, min=3, max=6, count=4, step=1), ArrayShare(2, 4)),
        (array_variables(id=14, min=10, max=16, count=4, step=2), ArrayShare(2, 4)),
        (array_variables(id=3, min=3, max=3, count=1, step=1), ArrayShare(0, 1)),
    ],
)
def test_array_share_from_slurm(environment, share):
    assert ArrayShare.from_slurm(environment) == share


@pytest.mark.parametrize(
    "environment, text",
    [
        ({}, "--array: expected"),
        (array_variables(id=1, min=0), "--array: expected"),
        (array_variables(id="x", min=0, count=2), "--array: expected"),
        (array_variables(id=7, min=1, max=7, count=3, step=1), "found job 7 of 3 from 1 on"),
        (array_variables(id=4, min=1, max=7, count=3, step=2), "found job 4 of 3 from 1 on"),
    ],
)
def test_not_a_job_of_an_array_with_equal_steps(environment, text):
    with pytest.raises(InputError, match=text):
        ArrayShare.from_slurm(environment)
