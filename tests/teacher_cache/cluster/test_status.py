"""The state of caches while real builds run and after they were killed."""

import os
import random
import signal
import threading
import time
from dataclasses import replace

import psutil
import pytest

from pipeline.cluster import lock
from pipeline.cluster.lock import RECORDS
from pipeline.cluster.modes import LocalWorkers
from pipeline.cluster.tasks import ArrayShare
from teacher_cache.analysis.status import StatusReader
from teacher_cache.build import build_cache
from teacher_cache.reader.format import SHARDS

TIMEOUT = 500
# Every shard takes a while, in whatever process it is made.
SLOW = """
import time
import teacher_cache.extraction.task as task
extract = task.extract
def extract_slowly(*args):
    time.sleep({seconds})
    return extract(*args)
task.extract = extract_slowly
"""


def wait_for(folder, condition):
    """Reads the state until a condition holds."""
    reader, deadline = StatusReader(folder), time.monotonic() + TIMEOUT
    while True:
        state = reader.read() if folder.is_dir() else None
        if state is not None and condition(state):
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.05)


def test_a_build_in_one_process(build_config, shared_dataset, start):
    config = build_config(shared_dataset, images_per_shard=1)
    process = start(config, SLOW.format(seconds=0.2))
    state = wait_for(config.out, lambda state: state.shards.done >= 2 and len(state.running) == 2)
    assert state.state == "unfinished" and state.shards.total == state.images.total == 7
    build, shard = state.running
    assert build.pid == shard.pid == process.pid and build.work == "one process"
    assert shard.work.startswith(f"{SHARDS}/0000") and shard.total == 1
    assert state.images_per_second > 0 and state.seconds_left > 0
    process.join()
    assert process.exitcode == 0
    state = StatusReader(config.out).read()
    assert (state.state, state.running) == ("finished", [])
    assert not list(config.out.glob(RECORDS))


@pytest.mark.slow
def test_a_build_in_several_processes(build_config, shared_dataset, start):
    config = build_config(shared_dataset, images_per_shard=1, mode=LocalWorkers(2))
    process = start(config)
    state = wait_for(config.out, lambda state: len(state.running) >= 2 or state.shards.done == 7)
    build, *workers = state.running
    assert (build.pid, build.work) == (process.pid, "2 worker processes")
    assert {psutil.Process(worker.pid).ppid() for worker in workers} <= {process.pid}
    process.join()
    assert process.exitcode == 0 and not list(config.out.glob(RECORDS))


@pytest.mark.slow
def test_jobs_of_an_array(build_config, shared_dataset, start, monkeypatch):
    config = build_config(shared_dataset, images_per_shard=1)
    jobs = [
        start(
            replace(config, share=ArrayShare(index, 2)),
            f"import os\nos.environ['SLURM_JOB_ID'] = '8{index}'\n" + SLOW.format(seconds=0.5),
        )
        for index in range(2)
    ]
    names = {job.pid: f"job {index}/2 of an array, one process" for index, job in enumerate(jobs)}

    def are_listed(state):
        found = {each.pid: each.work for each in state.running if not each.total}
        return found == names

    state = wait_for(config.out, are_listed)
    assert {each.job for each in state.running} == {"80", "81"}
    jobs[0].kill()
    jobs[0].join()
    state = StatusReader(config.out).read()
    assert {each.pid for each in state.running} <= {jobs[1].pid}
    # It makes the shards of the other one too.
    jobs[1].join()
    assert StatusReader(config.out).read().state == "finished"
    assert not list(config.out.glob(RECORDS))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_at_any_moment_of_builds_that_are_killed(
    build_config, shared_dataset, reference_cache, start, contents, seed
):
    """Nothing counts as broken, and after a kill nobody runs."""
    rng = random.Random(seed)
    config = build_config(shared_dataset, images_per_shard=1)
    for goal in (0, 0, 2, 5):
        process = start(config)
        reader, deadline, done = StatusReader(config.out), time.monotonic() + TIMEOUT, 0
        kill_at = None
        while process.exitcode is None:
            assert time.monotonic() < deadline
            if config.out.is_dir():
                state = reader.read()
                assert state.problems == {} and state.shards.done >= done
                done = state.shards.done
                if kill_at is None and done >= goal:
                    kill_at = time.monotonic() + rng.uniform(0, 0.3)
            if kill_at is not None and time.monotonic() > kill_at:
                process.kill()
                process.join()
        state = StatusReader(config.out).read()
        assert state.running == [] and state.problems == {}
    build_cache(config)
    assert StatusReader(config.out).read().state == "finished"
    assert contents(config.out) == contents(reference_cache)


@pytest.mark.slow
def test_a_build_that_is_stopped_for_a_while(build_config, shared_dataset, start, monkeypatch):
    """A suspended process has no heartbeat; it counts as running again when it goes on."""
    config = build_config(shared_dataset, images_per_shard=1)
    preamble = "from pipeline.cluster import lock\nlock.HEARTBEAT_INTERVAL = 0.1\n"
    process = start(config, preamble + SLOW.format(seconds=1))
    wait_for(config.out, lambda state: len(state.running) == 2)
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr("pipeline.cluster.activity.RUNNING_TIMEOUT", 0.5)
    wait_for(config.out, lambda state: state.running == [])
    os.kill(process.pid, signal.SIGCONT)
    wait_for(config.out, lambda state: len(state.running) == 2)
    process.join()
    assert process.exitcode == 0


def test_readers_do_not_disturb_a_build(build_config, shared_dataset, reference_cache, contents):
    """They take no lock and write nothing."""
    config = build_config(shared_dataset, images_per_shard=1)
    ended, errors = threading.Event(), []

    def read():
        reader = StatusReader(config.out)
        while not ended.is_set():
            try:
                if config.out.is_dir():
                    errors.extend(reader.read().problems.items())
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        build_cache(config)
    finally:
        ended.set()
        thread.join()
    assert errors == []
    assert contents(config.out) == contents(reference_cache)
    assert lock.read_owner(config.out / lock.LOCK) is None
