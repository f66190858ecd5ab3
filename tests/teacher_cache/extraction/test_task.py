import os
import pickle
import shutil
from dataclasses import replace

import pytest

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from teacher_cache.build import build_cache, resolve_teacher
from teacher_cache.extraction import task as task_module
from teacher_cache.extraction.inputs import clear_build_inputs
from teacher_cache.extraction.task import make_shard
from teacher_cache.reader.format import MANIFEST, SHARDS


@pytest.fixture
def tasks(dataset, build_config, finished, monkeypatch):
    """The tasks of a build that has claimed its folder and made no shard."""
    tasks = []
    monkeypatch.setattr(
        "teacher_cache.build.run_tasks", lambda queue, *_: tasks.extend(queue.tasks) or []
    )
    config = build_config(dataset)
    shutil.copytree(finished, config.out)
    (config.out / MANIFEST).unlink()
    for path in (config.out / SHARDS).iterdir():
        path.unlink()
    build_cache(config)
    yield tasks
    clear_build_inputs()


def test_a_pickled_task_is_small_and_makes_the_same_shard(tasks, finished):
    assert [task.path.name for task in tasks] == ["00000.h5", "00001.h5", "00002.h5"]
    assert [len(task) for task in tasks] == [3, 3, 1]
    pickled = pickle.dumps(tasks[1])
    assert len(pickled) < 4000
    clear_build_inputs()
    record = make_shard(pickle.loads(pickled))
    assert record.name == "00001.h5" and len(record.images) == 3
    expected = (finished / SHARDS / "00001.h5").read_bytes()
    assert tasks[1].path.read_bytes() == expected


def test_a_finished_shard_is_not_made_again(tasks, monkeypatch):
    record = make_shard(tasks[0])
    monkeypatch.setattr(task_module, "extract", None)
    counts = []
    assert make_shard(tasks[0], counts.append) == record
    assert counts == [3]


def test_a_shard_that_another_job_finished_meanwhile_is_not_written(tasks, finished, monkeypatch):
    extract = task_module.extract
    other = finished / SHARDS / "00000.h5"

    def finish_and_extract(*args):
        os.link(other, tasks[0].path)
        return extract(*args)

    monkeypatch.setattr(task_module, "extract", finish_and_extract)
    record = make_shard(tasks[0])
    assert record.repeated and record.name == "00000.h5"
    assert tasks[0].path.samefile(other)


def test_absolute_paths_of_inputs(tasks, monkeypatch, tmp_path):
    config = tasks[0].inputs_config
    monkeypatch.chdir(config.dataset.parent)
    weights = config.detector.weights
    relative = replace(
        config,
        dataset=config.dataset.relative_to(config.dataset.parent),
        detector=replace(config.detector, weights=f"toy/{weights.rpartition('/')[2]}"),
    )
    assert relative.absolute() == config


@pytest.mark.parametrize(("model", "weights"), [("toy/teacher", None), ("ViT-B-32", "openai")])
def test_absolute_paths_of_the_default_teacher(dataset, build_config, monkeypatch, model, weights):
    monkeypatch.chdir(dataset.parent)
    config = build_config(dataset, clip_model=model, clip_weights=weights)
    teacher = resolve_teacher(open_dataset(dataset), config)
    path = str(dataset / "teacher") if weights is None else model
    expected = {"model": path, "precision": "auto", "weights": weights}
    assert {"weights": None, **dict(teacher.settings)} == expected


def test_a_worker_with_other_inputs_than_the_builder_is_refused(tasks):
    clear_build_inputs()
    annotations = tasks[0].inputs_config.dataset / "annotations/trainval_hico.json"
    annotations.write_text(annotations.read_text() + "\n")
    with pytest.raises(InputError, match="other inputs than the builder") as caught:
        make_shard(tasks[0])
    assert "(annotations: " in str(caught.value) and "\n" not in str(caught.value)
    assert not tasks[0].path.exists()
