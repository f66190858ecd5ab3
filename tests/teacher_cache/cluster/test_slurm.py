"""Builds in jobs of a real SLURM with two nodes on this machine, some of which are cancelled."""

import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.toy.generate import write_toy
from teacher_cache.analysis.status import StatusReader
from teacher_cache.build import BuildConfig, build_cache
from teacher_cache.reader.format import MANIFEST, SHARDS

pytestmark = pytest.mark.slow

# Enough shards of one image to keep one job busy while another one is cancelled.
NUM_IMAGES = 240
SMALL = ("--cores", 1, "--memory", "1GB", "--walltime", "00:30:00")


@pytest.fixture(scope="module")
def build_args(slurm, shared_dataset, extraction, tmp_path_factory):
    """Arguments of `eoid-cache build` except the cache folder."""
    folder = tmp_path_factory.mktemp("many")
    root = folder / "toy"
    write_toy(root, train=NUM_IMAGES, test=1, seed=3)
    for name in ("detector.safetensors", "dataset.toml"):
        shutil.copy(shared_dataset / name, root)
    shutil.copytree(shared_dataset / "teacher", root / "teacher")
    settings = {
        **asdict(extraction.pairing),
        "batch-size": extraction.regions_per_batch,
        "detector-batch-size": extraction.images_per_batch,
        "images-per-shard": 1,
    }
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    (folder / "config.toml").write_text('device = "cpu"\n' + "".join(lines))
    return str(root), "--config", str(folder / "config.toml")


@pytest.fixture(scope="module")
def reference(build_args, extraction, tmp_path_factory):
    """A cache of the same settings, built in one process without interruption."""
    out = tmp_path_factory.mktemp("reference") / "cache"
    options = {"extraction": extraction, "images_per_shard": 1, "threads": 1, "device": "cpu"}
    build_cache(BuildConfig(Path(build_args[0]), out, **options))
    return out


@pytest.fixture(scope="module")
def scripts(slurm):
    """Folder of the batch scripts, as users get them."""
    folder = slurm.logs / "scripts"
    subprocess.run(["eoid-cache", "batch-scripts", folder], check=True)
    return folder


def shards(cache):
    return sorted(path.name for path in (cache / SHARDS).glob("*.h5"))


def working_jobs(cache):
    """What each job of a running build does; the builder itself has no job's number."""
    return {each.job: each.work for each in StatusReader(cache).read().running}


def test_workers_in_jobs_one_of_which_is_cancelled(
    slurm, build_args, reference, tmp_path, contents
):
    out = tmp_path / "cache"
    options = ("--slurm", "--jobs", 2, *SMALL, "--directive=--job-name=workers")
    command = ("eoid-cache", "build", *build_args, "--out", out, *options)
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as builder:
        slurm.wait(lambda: len(shards(out)) >= 2 or builder.poll() is not None)
        running = slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
        slurm.wait(lambda: running[0] in working_jobs(out) or builder.poll() is not None)
        assert working_jobs(out)[""] == "2 SLURM jobs at a time"
        slurm("scancel", running[0])
        assert len(shards(out)) < NUM_IMAGES and builder.poll() is None
        output, _ = builder.communicate()
    assert builder.returncode == 0, output
    assert slurm.end(running[0]) == "CANCELLED"
    assert f"{NUM_IMAGES} images" in output.splitlines()[-1]
    assert contents(out) == contents(reference)
    # No job is left in the queue, and each one has written a log.
    assert slurm("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%i") == ""
    assert len(list((out / "logs").iterdir())) >= 2


def test_an_array_one_of_whose_jobs_is_cancelled(
    slurm, build_args, reference, scripts, tmp_path, contents
):
    out = tmp_path / "cache"
    job = (scripts / "cache_array.sbatch", *build_args, "--out", out)
    resources = ("--cpus-per-task=1", "--mem=1G")
    array = slurm.submit("--array=1-3", *resources, *job)
    # The second job makes shards 1, 4, 7, ...
    slurm.wait(lambda: "00001.h5" in shards(out), lambda: slurm.log(f"eoid-cache-{array}_2.log"))
    assert f"{array}_2" in working_jobs(out)
    slurm("scancel", f"{array}_2")
    states = [slurm.end(f"{array}_{number}") for number in (1, 2, 3)]
    assert states == ["COMPLETED", "CANCELLED", "COMPLETED"]
    # The other jobs have made its shards.
    assert contents(out) == contents(reference)
    subprocess.run(["eoid-cache", "verify", out], check=True)
    (out / MANIFEST).unlink()
    (out / SHARDS / "00000.h5").unlink()
    again = slurm.submit("--array=2", *resources, *job)
    assert slurm.end(f"{again}_2") == "COMPLETED"
    assert contents(out) == contents(reference)


def test_a_job_near_its_time_limit_is_requeued_and_resumes(
    slurm, build_args, reference, scripts, tmp_path, contents
):
    out = tmp_path / "cache"
    args = (scripts / "cache.sbatch", *build_args, "--out", out)
    job = slurm.submit("--cpus-per-task=1", "--mem=1G", *args)
    log = f"eoid-cache-{job}.log"
    slurm.wait(lambda: len(shards(out)) >= 2, lambda: slurm.log(log))
    # The signal that SLURM sends to the script two minutes before the time limit.
    slurm("scancel", "--batch", "--signal=USR1", job)
    show = ("scontrol", "--oneliner", "show", "job", job)
    slurm.wait(lambda: "Restarts=1 " in slurm(*show), lambda: slurm(*show) + slurm.log(log))
    assert slurm.end(job, lambda: slurm.log(log)) == "COMPLETED"
    assert f"job {job} is requeued" in slurm.log(log)
    assert f"of {NUM_IMAGES} images" in slurm.log(log).split("resuming after ")[1]
    assert contents(out) == contents(reference)


def test_a_build_in_a_job_that_submits_worker_jobs(
    slurm, build_args, reference, scripts, tmp_path, contents
):
    """The worker jobs have the site's default cores, memory and time limit."""
    out = tmp_path / "cache"
    defaults = ("--cores", "none", "--memory", "none", "--walltime", "none")
    args = (*build_args, "--out", out, "--slurm", "--jobs", 2, *defaults)
    resources = ("--cpus-per-task=1", "--mem=1G")
    job = slurm.submit(*resources, scripts / "cache.sbatch", *args)
    log = f"eoid-cache-{job}.log"
    assert slurm.end(job, lambda: slurm.log(log)) == "COMPLETED", slurm.log(log)
    assert contents(out) == contents(reference)
    # SLURM told the workers when their jobs end.
    assert not any("repeats its shard" in log.read_text() for log in (out / "logs").iterdir())


def test_jobs_that_slurm_rejects(slurm, build_args, tmp_path):
    options = ("--slurm", "--queue", "nowhere", *SMALL)
    command = ("eoid-cache", "build", *build_args, "--out", tmp_path / "cache", *options)
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert "--slurm: expected a job that SLURM accepts, found" in line
    assert "nowhere" in line or "partition" in line
