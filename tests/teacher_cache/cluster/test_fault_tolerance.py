"""Builds and workers that are killed at any moment, and a full disk."""

import random
import subprocess
import time
from dataclasses import replace

import psutil
import pytest

from pipeline.cluster.lock import LOCK
from pipeline.cluster.modes import LocalWorkers
from teacher_cache.build import build_cache
from teacher_cache.reader.format import SHARDS

pytestmark = pytest.mark.slow

TIMEOUT = 600


def num_shards(folder):
    return len(list((folder / SHARDS).glob("*.h5")))


def wait_for(condition, process):
    """Waits until a condition holds or the process has ended; returns whether it still runs."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if process.exitcode is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process.exitcode is None


@pytest.mark.parametrize("seed", range(3))
def test_a_build_killed_again_and_again(
    build_config, shared_dataset, reference_cache, start, contents, seed
):
    """Each time at a random moment after a file or a number of shards has been written."""
    rng = random.Random(seed)
    config = build_config(shared_dataset, images_per_shard=1)
    existing = [config.out.exists, (config.out / LOCK).exists, (config.out / SHARDS).exists]
    for goal in (*existing[: seed + 1], 1, 3, 6):
        process = start(config)

        def is_reached(goal=goal):
            return goal() if callable(goal) else num_shards(config.out) >= goal

        if wait_for(is_reached, process):
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        process.join()
    build_cache(config)
    assert contents(config.out) == contents(reference_cache)


def workers_of(process):
    """Worker processes of a build."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def test_a_killed_worker_is_replaced(
    build_config, shared_dataset, reference_cache, start, contents
):
    config = build_config(shared_dataset, images_per_shard=1, mode=LocalWorkers(2))
    process = start(config)
    assert wait_for(lambda: len(workers_of(process)) == 2, process)
    victim = workers_of(process)[0]
    assert wait_for(lambda: num_shards(config.out) >= 1, process)
    victim.kill()
    process.join()
    assert process.exitcode == 0
    assert contents(config.out) == contents(reference_cache)


def test_workers_end_with_their_killed_build(
    build_config, shared_dataset, reference_cache, start, contents
):
    config = build_config(shared_dataset, images_per_shard=1, mode=LocalWorkers(2))
    process = start(config)
    assert wait_for(lambda: len(workers_of(process)) == 2, process)
    workers = workers_of(process)
    assert wait_for(lambda: num_shards(config.out) >= 1, process)
    process.kill()
    process.join()
    assert psutil.wait_procs(workers, TIMEOUT)[1] == []
    build_cache(replace(config, mode=None))
    assert contents(config.out) == contents(reference_cache)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 KiB, mounted in `tmp_path`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(build_config, shared_dataset, reference_cache, small_disk, contents):
    config = build_config(shared_dataset, out="disk/cache", images_per_shard=1)
    with pytest.raises(OSError, match="No space left on device") as caught:
        build_cache(config)
    assert str(caught.value.filename).startswith(str(config.out / SHARDS))
    assert 0 < num_shards(config.out) < 7
    assert not list(config.out.rglob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    build_cache(config)
    assert contents(config.out) == contents(reference_cache)
