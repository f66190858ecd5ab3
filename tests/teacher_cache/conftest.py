"""Fixtures: a small toy dataset with untrained models, and caches built from it."""

import multiprocessing
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.photographs import write_teacher
from pipeline.cluster.tasks import ArrayShare
from pipeline.toy.generate import write_toy
from pipeline.types import Pairs
from pipeline.vocabulary import load_vocabulary
from teacher_cache.build import BuildConfig, build_cache
from teacher_cache.detectors.pairing import PairingConfig
from teacher_cache.detectors.torchvision import toy_detector
from teacher_cache.extraction.extract import ExtractionConfig
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS, TEACHER, TeacherOutputs
from teacher_cache.reader.manifest import read_manifest

NUM_IMAGES = 7
# Thresholds below the scores of an untrained detector.
EXTRACTION = ExtractionConfig(
    pairing=PairingConfig(0.06, 0.06, max_people=2, max_objects=3),
    images_per_batch=4,
    regions_per_batch=8,
)


@pytest.fixture(scope="session")
def extraction():
    return EXTRACTION


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary("toy")


@pytest.fixture(scope="session")
def write_models():
    """`write_models(root, vocabulary)`: an untrained detector and teacher in a dataset folder."""

    def write(root, vocabulary, context_length=10, further_words=()):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            detector = toy_detector(max(vocabulary.category_ids))
        save_file(detector.state_dict(), root / "detector.safetensors")
        write_teacher(root / "teacher", vocabulary, further_words, context_length)

    return write


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory, vocabulary, write_models):
    """A dataset folder with its own detector and teacher, both with random weights."""
    root = tmp_path_factory.mktemp("data") / "toy"
    write_toy(root, train=NUM_IMAGES, test=3, seed=11)
    write_models(root, vocabulary, further_words=("photo",))
    description = root / "dataset.toml"
    models = 'detector = "detector.safetensors"\nteacher = "teacher"\n'
    description.write_text(models + description.read_text())
    return root


@pytest.fixture
def dataset(shared_dataset, tmp_path):
    """A copy of `shared_dataset` that a test may modify."""
    return shutil.copytree(shared_dataset, tmp_path / "toy")


@pytest.fixture
def build_config(tmp_path):
    """`build_config(dataset, **changes)`: a build's configuration with three images per shard."""

    def make(dataset, out="cache", **changes):
        defaults = {"extraction": EXTRACTION, "images_per_shard": 3, "device": "cpu"}
        return BuildConfig(dataset=dataset, out=tmp_path / out, **{**defaults, **changes})

    return make


@pytest.fixture
def build(build_config):
    """`build(dataset, **changes)` builds a cache of such a configuration and opens it."""

    def run(dataset, out="cache", **changes):
        config = build_config(dataset, out, **changes)
        build_cache(config)
        return open_cache(config.out)

    return run


@pytest.fixture(scope="session")
def finished(shared_dataset, tmp_path_factory):
    """A finished cache of the training part; tests must not modify it."""
    out = tmp_path_factory.mktemp("finished") / "cache"
    build_cache(
        BuildConfig(shared_dataset, out, extraction=EXTRACTION, images_per_shard=3, device="cpu")
    )
    return out


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of `finished` that a test may damage."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def change_annotations(dataset):
    """`change_annotations()` changes the file of `dataset`, and so its digest."""

    def change():
        file = dataset / "annotations/trainval_hico.json"
        file.write_text(file.read_text() + "\n")

    return change


@pytest.fixture(scope="session")
def contents():
    """`contents(folder)`: a finished cache's manifest fields and the bytes of its data files."""

    def read(folder):
        names = {path.name for path in folder.iterdir()}
        assert names - {"logs"} == {".lock", "build.json", "manifest.json", "shards", "teacher.h5"}
        manifest = read_manifest(folder)
        fields = {name: manifest[name] for name in ("fingerprint", "counts", "failed", "shards")}
        paths = [folder / TEACHER, *(folder / SHARDS).iterdir()]
        return fields, {path.name: path.read_bytes() for path in paths}

    return read


@pytest.fixture
def make_outputs():
    """`make_outputs(num_pairs, num_verbs)`: random outputs; every two pairs share a region."""

    def make(num_pairs, num_verbs, seed=0, width=6):
        rng = np.random.default_rng(seed)
        regions = np.arange(num_pairs) // 2
        num_regions = len(np.unique(regions))
        pairs = Pairs(
            human_boxes=rng.uniform(0, 99, (num_pairs, 4)).astype(np.float32),
            object_boxes=rng.uniform(0, 99, (num_pairs, 4)).astype(np.float32),
            object_labels=rng.integers(0, 9, num_pairs),
            human_scores=rng.random(num_pairs, dtype=np.float32),
            object_scores=rng.random(num_pairs, dtype=np.float32),
            sources=rng.integers(0, 2, num_pairs).astype(np.uint8),
        )
        return TeacherOutputs(
            pairs=pairs,
            probabilities=rng.random((num_pairs, num_verbs), dtype=np.float32),
            region_indices=regions,
            region_boxes=rng.uniform(0, 99, (num_regions, 4)).astype(np.float32),
            embeddings=rng.standard_normal((num_regions, width)).astype(np.float32),
        )

    return make


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


# The build suspends itself, because it might have ended before it is killed.
SUSPEND_AFTER_FIRST_SHARD = """
import os, signal
import teacher_cache.build as build
make_shard = build.make_shard
def make_and_suspend(*args):
    make_shard(*args)
    os.kill(os.getpid(), signal.SIGSTOP)
build.make_shard = make_and_suspend
"""


@pytest.fixture
def check_interruptions(start, contents):
    """`check_interruptions(config)`: a build that is killed after a shard and resumed, and two jobs
    that make one cache at the same time, give the bytes of an uninterrupted build."""

    def check(config):
        whole, killed, shared = (
            replace(config, out=config.out / name) for name in ("whole", "killed", "shared")
        )
        build_cache(whole)
        jobs = [start(replace(shared, share=ArrayShare(index, 2))) for index in range(2)]
        process = start(killed, SUSPEND_AFTER_FIRST_SHARD)
        while not list((killed.out / SHARDS).glob("*.h5")):
            assert process.exitcode is None
            time.sleep(0.01)
        process.kill()
        process.join()
        assert not (killed.out / MANIFEST).exists()
        build_cache(killed)
        for job in jobs:
            job.join()
        assert [job.exitcode for job in jobs] == [0, 0]
        assert contents(killed.out) == contents(shared.out) == contents(whole.out)

    return check


@pytest.fixture
def offline(monkeypatch):
    """transformers does not look for models on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the first of a module's `folders` of models, by name, that a test may modify."""
    return shutil.copytree(next(iter(folders.values())), tmp_path / "model")
