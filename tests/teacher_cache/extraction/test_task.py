import pickle
import shutil
from dataclasses import replace

import pytest

from pipeline.utils.errors import InputError
from teacher_cache.build import build_cache
from teacher_cache.extraction import task as shards
from teacher_cache.extraction.inputs import (
    clear_build_inputs,
    get_build_inputs,
)
from teacher_cache.extraction.task import make_shard
from teacher_cache.reader.format import MANIFEST, SHARDS


@pytest.fixture
def tasks(dataset, build_config, finished, monkeypatch):
    """The tasks of a build whose folder is claimed, before any shard is made."""
    taken = []
    monkeypatch.setattr(
        "teacher_cache.build.run_tasks", lambda tasks, *_: taken.extend(tasks) or []
    )
    config = build_config(dataset)
    shutil.copytree(finished, config.out)
    (config.out / MANIFEST).unlink()
    for path in (config.out / SHARDS).iterdir():
        path.unlink()
    build_cache(config)
    yield taken
    clear_build_inputs()


def test_a_task_is_small_and_travels(tasks, finished):
    assert [task.path.name for task in tasks] == ["00000.h5", "00001.h5", "00002.h5"]
    assert [len(task) for task in tasks] == [3, 3, 1]
    packed = pickle.dumps(tasks[1])
    assert len(packed) < 4000
    clear_build_inputs()
    record = make_shard(pickle.loads(packed))
    assert record.name == "00001.h5" and len(record.images) == 3
    made = (finished / SHARDS / "00001.h5").read_bytes()
    assert tasks[1].path.read_bytes() == made


def test_a_finished_shard_is_not_made_again(tasks, monkeypatch):
    record = make_shard(tasks[0])
    monkeypatch.setattr(shards, "extract", None)
    counted = []
    assert make_shard(tasks[0], counted.append) == record
    assert counted == [3]


def test_absolute_sources_are_the_same(tasks, monkeypatch, tmp_path):
    sources = tasks[0].inputs_config
    monkeypatch.chdir(sources.dataset.parent)
    weights = sources.detector.weights
    relative = replace(
        sources,
        dataset=sources.dataset.relative_to(sources.dataset.parent),
        detector=replace(sources.detector, weights=f"toy/{weights.rpartition('/')[2]}"),
        clip=replace(sources.clip, model="toy/teacher"),
    )
    assert relative.absolute() == sources
    named = replace(sources, clip=replace(sources.clip, model="ViT-B-32", weights="openai"))
    assert named.absolute() == named


def test_batch_sizes_and_strictness_are_no_parts_of_the_fingerprint(tasks):
    config = tasks[0].inputs_config
    extraction = replace(
        config.extraction, images_per_batch=3, regions_per_batch=5, embeddings=False, strict=True
    )
    parts = get_build_inputs(config).parts
    assert get_build_inputs(replace(config, extraction=extraction)).parts == parts


def test_a_worker_that_finds_other_inputs_stops(tasks):
    clear_build_inputs()
    annotations = tasks[0].inputs_config.dataset / "annotations/trainval_hico.json"
    annotations.write_text(annotations.read_text() + "\n")
    with pytest.raises(InputError, match="other inputs than the builder") as caught:
        make_shard(tasks[0])
    assert "(annotations: " in str(caught.value) and "\n" not in str(caught.value)
    assert not tasks[0].path.exists()
