"""Jobs of an array that write to one cache folder."""

import os
import signal
import time
from dataclasses import replace

import psutil
import pytest

from pipeline.cluster.modes import LocalWorkers
from pipeline.cluster.tasks import ArrayShare
from pipeline.utils.errors import InputError
from teacher_cache.build import build_cache
from teacher_cache.reader.format import MANIFEST, SHARDS
from teacher_cache.writer.plan import read_plan

TIMEOUT = 120
# The job suspends itself after its first shard; a signal of the test might come after its end.
SUSPEND_AFTER_FIRST_SHARD = """
import os, signal
import teacher_cache.build as build
make_shard, made = build.make_shard, []
def make_and_suspend(*args):
    record = make_shard(*args)
    made.append(record)
    if len(made) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return record
build.make_shard = make_and_suspend
"""


@pytest.mark.parametrize("mode", [None, pytest.param(LocalWorkers(2), marks=pytest.mark.slow)])
def test_a_job_alone_makes_all_shards(
    build_config, shared_dataset, reference_cache, contents, messages, capsys, mode
):
    config = build_config(shared_dataset, images_per_shard=1, mode=mode)
    messages.clear()
    build_cache(replace(config, share=ArrayShare(1, 3)))
    assert "making 5 shards of other jobs" in messages[0]
    assert "made 7 shards, 5 of them of other jobs; 0 were" in messages[-1]
    captured = capsys.readouterr()
    assert "7 images" in captured.out and "7/7 [" in captured.err
    build_cache(replace(config, share=ArrayShare(0, 3)))
    assert "nothing to do" in messages[-1]
    if mode is None:
        assert contents(config.out) == contents(reference_cache)


def test_jobs_that_make_their_own_shards_only(
    build_config, shared_dataset, reference_cache, contents, messages, capsys
):
    config = build_config(shared_dataset, images_per_shard=1)
    shares = [replace(config, share=ArrayShare(index, 3, own_only=True)) for index in range(3)]
    messages.clear()
    for number in (2, 0):
        build_cache(shares[number])
        assert not (config.out / MANIFEST).exists()
    made = sorted(path.name for path in (config.out / SHARDS).iterdir())
    assert made == ["00000.h5", "00002.h5", "00003.h5", "00005.h5", "00006.h5"]
    assert "missing 2 shards of other jobs" in messages[-1] and "verify" in messages[-1]
    capsys.readouterr()
    build_cache(shares[1])
    assert "7 images" in capsys.readouterr().out
    assert contents(config.out) == contents(reference_cache)
    build_cache(shares[0])
    assert "nothing to do" in messages[-1]


def test_a_job_of_more_than_there_are_shards_and_an_ordinary_build(
    build_config, shared_dataset, reference_cache, contents
):
    config = build_config(shared_dataset, images_per_shard=1)
    for index in (1, 8):
        build_cache(replace(config, share=ArrayShare(index, 9, own_only=True)))
    build_cache(config)
    assert contents(config.out) == contents(reference_cache)


@pytest.mark.slow
def test_a_killed_job_of_those_that_run_at_the_same_time(
    build_config, shared_dataset, reference_cache, start, contents
):
    config = build_config(shared_dataset, images_per_shard=1)
    jobs = [start(replace(config, share=ArrayShare(index, 3))) for index in range(3)]
    deadline = time.monotonic() + TIMEOUT
    while not (config.out / SHARDS / "00001.h5").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    jobs[1].kill()
    for job in jobs:
        job.join()
    assert jobs[0].exitcode == jobs[2].exitcode == 0
    # The others make the killed job's shards too, so that it may still have been writing its plan.
    for file in config.out.glob(".build.json.*.tmp"):
        file.unlink()
    assert contents(config.out) == contents(reference_cache)


def test_jobs_of_other_settings_are_refused(build_config, shared_dataset, start):
    """Of jobs that start at the same time in a new folder, the first one decides the settings."""
    config = build_config(shared_dataset, images_per_shard=1)
    pairing = replace(config.extraction.pairing, max_objects=2)
    other = replace(config, extraction=replace(config.extraction, pairing=pairing))
    jobs = [start(replace(each, share=ArrayShare(0, 2))) for each in (config, other)]
    for job in jobs:
        job.join()
    assert sorted(job.exitcode for job in jobs) == [0, 1]
    winner, loser = (config, other) if jobs[0].exitcode == 0 else (other, config)
    max_objects = read_plan(config.out)["parts"]["max_objects"]
    assert max_objects == winner.extraction.pairing.max_objects
    with pytest.raises(InputError, match=r"holds a cache of other settings \(max_objects: "):
        build_cache(replace(loser, share=ArrayShare(1, 2)))
    build_cache(replace(winner, share=ArrayShare(1, 2)))
    assert (config.out / MANIFEST).exists()


def test_a_job_that_never_ends_its_shard_holds_nobody_up(
    build_config, shared_dataset, reference_cache, start, contents, messages
):
    """And an ordinary build refuses to work beside it."""
    config = build_config(shared_dataset, images_per_shard=1)
    job = start(replace(config, share=ArrayShare(0, 2)), preamble=SUSPEND_AFTER_FIRST_SHARD)
    deadline = time.monotonic() + TIMEOUT
    while psutil.Process(job.pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(InputError, match=f"a job of an array .host .*, process {job.pid}, "):
        build_cache(config)
    build_cache(replace(config, share=ArrayShare(1, 2)))
    assert "made 6 shards, 3 of them of other jobs" in messages[-1]
    files = [config.out / MANIFEST, *sorted((config.out / SHARDS).glob("*.h5"))]
    times = [path.stat().st_mtime_ns for path in files]
    os.kill(job.pid, signal.SIGCONT)
    job.join()
    assert job.exitcode == 0 and contents(config.out) == contents(reference_cache)
    assert [path.stat().st_mtime_ns for path in files] == times
