"""Builds in processes of their own, to be killed."""

import multiprocessing

import pytest

from teacher_cache.build import BuildConfig, build_cache
from teacher_cache.reader.format import SHARDS, TEACHER
from teacher_cache.reader.manifest import read_manifest


@pytest.fixture(scope="session")
def processes():
    """A server that has loaded the libraries and forks builders in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.build"])
    return context


@pytest.fixture
def start(processes):
    """`start(config, first="")` starts a build after the code `first`; what still runs at the end
    is killed."""
    started = []

    def begin(config, first=""):
        text = f"{first}\nfrom teacher_cache.build import build_cache\nbuild_cache(config)"
        process = processes.Process(target=exec, args=(text, {"config": config}))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def contents():
    """What a finished cache holds: the answers' bytes, and what the manifest says of them."""

    def read(folder):
        names = {path.name for path in folder.iterdir()}
        assert names - {"logs"} == {".lock", "build.json", "manifest.json", "shards", "teacher.h5"}
        manifest = read_manifest(folder)
        said = {name: manifest[name] for name in ("fingerprint", "counts", "failed", "shards")}
        paths = [folder / TEACHER, *(folder / SHARDS).iterdir()]
        return said, {path.name: path.read_bytes() for path in paths}

    return read


@pytest.fixture(scope="session")
def reference_cache(shared_dataset, extraction, tmp_path_factory):
    """A finished cache with one image in every shard, which nobody disturbed."""
    out = tmp_path_factory.mktemp("reference_cache") / "cache"
    build_cache(
        BuildConfig(shared_dataset, out, extraction=extraction, images_per_shard=1, device="cpu")
    )
    return out
