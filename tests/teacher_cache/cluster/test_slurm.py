"""Builds in jobs of a real SLURM, two nodes on this machine, with jobs lost on the way."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.toy.generate import write_toy
from teacher_cache.build import BuildConfig, build_cache
from teacher_cache.reader.format import MANIFEST, SHARDS

pytestmark = pytest.mark.slow

# So many shards of one image that no job makes them while another one is cancelled.
NUM_IMAGES = 240
SMALL = ("--cores", 1, "--memory", "1GB", "--walltime", "00:30:00")


@dataclass(frozen=True)
class BuildCase:
    """A dataset and how it is asked about, as words of `eoid-cache build` and as its configuration.

    Attributes:
        words: all but the cache folder.
        reference: the cache that one process made, which nobody disturbed.
    """

    words: tuple[str, ...]
    reference: Path


@pytest.fixture(scope="module")
def build_case(slurm, shared_dataset, extraction, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    root = folder / "toy"
    write_toy(root, train=NUM_IMAGES, test=1, seed=3)
    models = {name: shared_dataset / name for name in ("detector.safetensors", "teacher")}
    pairing = extraction.pairing
    words = {
        "detector": "toy",
        "detector-weights": models["detector.safetensors"],
        "clip-model": models["teacher"],
        "person-threshold": pairing.person_threshold,
        "object-threshold": pairing.object_threshold,
        "max-people": pairing.max_people,
        "max-objects": pairing.max_objects,
        "batch-size": extraction.regions_per_batch,
        "detector-batch-size": extraction.images_per_batch,
        "images-per-shard": 1,
        "device": "cpu",
    }
    build_cache(
        BuildConfig(
            root,
            folder / "cache",
            detector="toy",
            detector_weights=str(models["detector.safetensors"]),
            clip_model=str(models["teacher"]),
            extraction=extraction,
            images_per_shard=1,
            threads=1,
            device="cpu",
        )
    )
    pairs = ((f"--{name}", str(value)) for name, value in words.items())
    return BuildCase((str(root), *(word for pair in pairs for word in pair)), folder / "cache")


@pytest.fixture(scope="module")
def scripts(slurm):
    """Folder of the batch scripts, which are what users get."""
    folder = slurm.logs / "scripts"
    subprocess.run(["eoid-cache", "batch-scripts", folder], check=True)
    return folder


def shards(cache):
    return sorted(path.name for path in (cache / SHARDS).glob("*.h5"))


def test_workers_in_jobs_one_of_which_is_cancelled(slurm, build_case, tmp_path, contents):
    out = tmp_path / "cache"
    options = ("--slurm", "--jobs", 2, *SMALL, "--directive=--job-name=workers")
    words = ("eoid-cache", "build", *build_case.words, "--out", out, *options)
    with subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as builder:
        slurm.wait(lambda: len(shards(out)) >= 2 or builder.poll() is not None)
        running = slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
        slurm("scancel", running[0])
        assert len(shards(out)) < NUM_IMAGES and builder.poll() is None
        told, _ = builder.communicate()
    assert builder.returncode == 0, told
    assert slurm.end(running[0]) == "CANCELLED"
    assert f"{NUM_IMAGES} images" in told.splitlines()[-1]
    assert contents(out) == contents(build_case.reference)
    # Nobody's job is left, and a log is there for each.
    assert slurm("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%i") == ""
    assert len(list((out / "logs").iterdir())) >= 2


def test_an_array_one_of_whose_jobs_is_cancelled(slurm, build_case, scripts, tmp_path, contents):
    out = tmp_path / "cache"
    job = (scripts / "cache_array.sbatch", *build_case.words, "--out", out)
    resources = ("--cpus-per-task=1", "--mem=1G")
    array = slurm.submit("--array=1-3", *resources, *job)
    # Of the second job: shards 1, 4, 7, ...
    slurm.wait(lambda: "00001.h5" in shards(out), lambda: slurm.log(f"eoid-cache-{array}_2.log"))
    slurm("scancel", f"{array}_2")
    states = [slurm.end(f"{array}_{number}") for number in (1, 2, 3)]
    assert states == ["COMPLETED", "CANCELLED", "COMPLETED"]
    assert not (out / MANIFEST).exists()
    missing = sorted(
        {path.name for path in (build_case.reference / SHARDS).iterdir()} - set(shards(out))
    )
    assert missing and all(int(name[:5]) % 3 == 1 for name in missing)
    done = subprocess.run(["eoid-cache", "verify", out], capture_output=True, text=True)
    assert done.returncode == 2 and missing[0] in done.stdout + done.stderr
    again = slurm.submit("--array=2", *resources, *job)
    assert slurm.end(f"{again}_2") == "COMPLETED"
    assert contents(out) == contents(build_case.reference)
    subprocess.run(["eoid-cache", "verify", out], check=True)


def test_a_job_whose_time_is_almost_over_goes_on_later(
    slurm, build_case, scripts, tmp_path, contents
):
    out = tmp_path / "cache"
    words = (scripts / "cache.sbatch", *build_case.words, "--out", out)
    job = slurm.submit("--cpus-per-task=1", "--mem=1G", *words)
    log = f"eoid-cache-{job}.log"
    slurm.wait(lambda: len(shards(out)) >= 2, lambda: slurm.log(log))
    # What SLURM sends to the script two minutes before its end.
    slurm("scancel", "--batch", "--signal=USR1", job)
    assert slurm.end(job, lambda: slurm.log(log)) == "COMPLETED"
    assert "Restarts=1 " in slurm("scontrol", "--oneliner", "show", "job", job)
    assert f"job {job} goes back into the queue" in slurm.log(log)
    assert f"of {NUM_IMAGES} images" in slurm.log(log).split("going on after ")[1]
    assert contents(out) == contents(build_case.reference)


def test_a_builder_that_is_a_job_itself(slurm, build_case, scripts, tmp_path, contents):
    """And asks for jobs of workers, whose cores, memory and time are the site's."""
    out = tmp_path / "cache"
    own = ("--cores", "none", "--memory", "none", "--walltime", "none")
    more = ("--out", out, "--slurm", "--jobs", 2, *own)
    resources = ("--cpus-per-task=1", "--mem=1G")
    job = slurm.submit(*resources, scripts / "cache.sbatch", *build_case.words, *more)
    log = f"eoid-cache-{job}.log"
    assert slurm.end(job, lambda: slurm.log(log)) == "COMPLETED", slurm.log(log)
    assert contents(out) == contents(build_case.reference)


def test_a_job_knows_its_end(slurm):
    code = "from teacher_cache.cluster.modes import print_job_lifetime as p; p()"
    for limit in ("--time=60", "--time=UNLIMITED"):
        job = slurm.submit(limit, "--output=lifetime-%j.log", "--wrap", f"python -c '{code}'")
        assert slurm.end(job) == "COMPLETED"
        told = slurm.log(f"lifetime-{job}.log").split()
        if limit == "--time=60":
            # 3,600 seconds less what SLURM and Python took to start.
            seconds = int(told[told.index("--lifetime") + 1].removesuffix("s"))
            assert 0.8 * 3600 < seconds < 3600
        else:
            assert "repeats" not in told


def test_jobs_that_slurm_refuses(slurm, build_case, tmp_path):
    options = ("--slurm", "--queue", "nowhere", *SMALL)
    words = ("eoid-cache", "build", *build_case.words, "--out", tmp_path / "cache", *options)
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 2
    assert "--slurm: expected a job that SLURM takes, found" in done.stderr.splitlines()[-1]
    assert "nowhere" in done.stderr.splitlines()[-1] or "partition" in done.stderr.splitlines()[-1]
