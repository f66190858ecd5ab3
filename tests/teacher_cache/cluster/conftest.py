"""Fixtures that run builds in separate processes, which tests may kill."""

import multiprocessing

import pytest

from teacher_cache.build import BuildConfig, build_cache


@pytest.fixture(scope="session")
def processes():
    """A fork server that has loaded the libraries, so that builds start quickly."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.build"])
    return context


@pytest.fixture
def start(processes):
    """`start(config, preamble="")` starts a build after running the code `preamble`; processes that
    still run at the end are killed."""
    started = []

    def start_build(config, preamble=""):
        code = f"{preamble}\nfrom teacher_cache.build import build_cache\nbuild_cache(config)"
        process = processes.Process(target=exec, args=(code, {"config": config}))
        process.start()
        started.append(process)
        return process

    yield start_build
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def reference_cache(shared_dataset, extraction, tmp_path_factory):
    """A cache with one image per shard, built in one process without interruption."""
    out = tmp_path_factory.mktemp("reference_cache") / "cache"
    build_cache(
        BuildConfig(shared_dataset, out, extraction=extraction, images_per_shard=1, device="cpu")
    )
    return out
