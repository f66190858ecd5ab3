"""Submission and supervision of jobs, with commands of SLURM that are replaced by scripts."""

import subprocess
from types import SimpleNamespace

import pytest

from pipeline.cluster import slurm
from pipeline.cluster.modes import SlurmJobs
from pipeline.utils.errors import InputError

SBATCH = """#!/bin/sh
[ "$(wc -l < {folder}/queue)" -ge "$(cat {folder}/limit)" ] && echo "sbatch: error: no more" >&2 &&
    exit 1
job=$(($(cat {folder}/submitted) + 1))
echo $job > {folder}/submitted
echo $job | tee -a {folder}/queue
"""
SQUEUE = "#!/bin/sh\ncat {folder}/queue\n"
SCANCEL = "#!/bin/sh\necho $@ > {folder}/cancelled\n"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with SLURM's queue, number of submitted jobs and limit of queued ones."""
    for name, script in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(script.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    for name, text in (("queue", ""), ("submitted", "0"), ("limit", "9")):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(slurm, "QUEUE_POLL_INTERVAL", 0)
    return tmp_path


@pytest.fixture
def start(site):
    """`start(count)`: the jobs of a build, and the set of the names of connected workers."""

    def make(count):
        connected = set()
        client = SimpleNamespace(run_on_scheduler=lambda _: set(connected))
        return slurm._Jobs(count, "script", client, site / "logs"), connected

    return make


def queue(site):
    return (site / "queue").read_text().split()


def test_there_are_as_many_jobs_as_asked_for_or_shards_left(site, start):
    jobs, _ = start(3)
    jobs.poll(2)
    assert queue(site) == ["1", "2"]
    jobs.poll(9)
    assert queue(site) == ["1", "2", "3"]
    jobs.cancel()
    assert sorted((site / "cancelled").read_text().split()) == ["1", "2", "3"]


def test_ended_jobs_are_replaced(site, start):
    """However many there are, if their workers had connected."""
    jobs, connected = start(2)
    for _ in range(20):
        jobs.poll(9)
        connected.clear()
        connected.update(queue(site))
        (site / "queue").write_text("")
    assert (site / "submitted").read_text().strip() == "40"


def test_jobs_that_end_before_their_workers_connect(site, start):
    jobs, _ = start(2)
    with pytest.raises(InputError, match=r"6 jobs ended .*logs") as caught:
        for _ in range(20):
            jobs.poll(9)
            (site / "queue").write_text("")
    assert str(site / "logs") in str(caught.value) and "\n" not in str(caught.value)


def test_jobs_that_slurm_rejects(site, start):
    (site / "limit").write_text("0")
    jobs, _ = start(2)
    with pytest.raises(InputError, match=r"--slurm: expected a job that SLURM accepts.* no more$"):
        jobs.poll(9)


def test_a_limit_of_jobs_per_user(site, start):
    (site / "limit").write_text("1")
    jobs, _ = start(2)
    jobs.poll(9)
    assert queue(site) == ["1"]
    (site / "limit").write_text("5")
    jobs.poll(9)
    assert queue(site) == ["1", "2"]


def test_a_queue_that_cannot_be_read_is_tried_again(site, start):
    jobs, _ = start(1)
    jobs.poll(9)
    content = (site / "squeue").read_text()
    (site / "squeue").write_text("#!/bin/sh\nexit 1\n")
    jobs.poll(9)
    (site / "squeue").write_text(content)
    jobs.poll(9)
    assert queue(site) == ["1"]


IN_AN_HOUR = "date --date=@$((now + 3600)) +%Y-%m-%dT%H:%M:%S"


@pytest.mark.parametrize(
    ("end", "answer", "lifetime"),
    [
        ("$((now + 3600))", "", (3330, 90)),
        ("$((now + 14400))", "", (13320, 360)),
        ("$((now + 200))", "", (125, 25)),
        ("", f"$({IN_AN_HOUR})", (3330, 90)),
        ("", f"$(if [ -e asked ]; then {IN_AN_HOUR}; else touch asked; fi)", (3330, 90)),
        ("", "NONE", None),
        ("", "N/A", None),
        ("", "", None),
    ],
)
def test_a_worker_stops_before_its_job(site, tmp_path, monkeypatch, end, answer, lifetime):
    """The script is run with a program that prints its arguments as the worker."""
    (site / "squeue").write_text(f"#!/bin/sh\ncd {site}\nnow=$(date +%s)\necho {answer}\n")
    (site / "sleep").symlink_to("/bin/true")
    monkeypatch.setattr(slurm.sys, "executable", "echo")
    prologue = ("now=$(date +%s)", f"export SLURM_JOB_END_TIME={end}")
    script = slurm.job_script(SlurmJobs(prologue=prologue), tmp_path, "eoid-cache")
    environment = {"PATH": f"{site}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    words = done.stdout.split()
    assert words[words.index("--name") + 1] == "7" and words[words.index("--nthreads") + 1] == "3"
    assert ("repeats its shard" in done.stderr) == (lifetime is None and answer != "NONE")
    assert ("--lifetime" in words) == (lifetime is not None)
    if lifetime is not None:
        seconds, stagger = (
            int(words[words.index(name) + 1].removesuffix("s"))
            for name in ("--lifetime", "--lifetime-stagger")
        )
        # A second may pass between the two clock readings.
        assert abs(seconds - lifetime[0]) <= 2 and abs(stagger - lifetime[1]) <= 1
