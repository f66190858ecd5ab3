"""Images that cannot be read for a while, or that are being copied while a build runs."""

import errno
import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image, ImageFile

from pipeline.cluster.modes import LocalWorkers
from pipeline.cluster.tasks import Postponed
from pipeline.utils.errors import InputError
from teacher_cache.build import build_cache
from teacher_cache.extraction import extract as extraction
from teacher_cache.extraction import task as task_module
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import SHARDS


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which do not take place."""
    pauses = []
    # Not of `time` itself, whose function other threads call too.
    monkeypatch.setattr("pipeline.images.time", SimpleNamespace(sleep=pauses.append))
    return pauses


@pytest.fixture
def broken(dataset):
    """The second image of the first shard."""
    return sorted((dataset / "images/train2015").iterdir())[1]


@pytest.fixture
def written(monkeypatch):
    """Names of the shards that were written; `written.then[name]` is called after one of them."""

    class Names(list):
        def __init__(self):
            self.then = {}

    names, write = Names(), task_module.write_shard

    def write_and_tell(path, *args):
        write(path, *args)
        names.append(path.name)
        names.then.get(path.name, lambda: None)()

    monkeypatch.setattr(task_module, "write_shard", write_and_tell)
    return names


def fail(path, monkeypatch, where):
    """Lets reading an image fail with EIO, when its file is opened or when it is decoded."""
    owner, name = (Image, "open") if where == "open" else (ImageFile.ImageFile, "load")
    original = getattr(owner, name)

    def read(source, *args, **options):
        file = source if where == "open" else getattr(source, "filename", "")
        if os.fspath(file) == os.fspath(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(source, *args, **options)

    monkeypatch.setattr(owner, name, read)


@pytest.mark.parametrize("where", ["open", "load"])
def test_a_shard_of_an_image_that_cannot_be_read_for_a_while_is_made_last(
    dataset, build_config, finished, contents, broken, written, pauses, where
):
    with pytest.MonkeyPatch.context() as patch:
        fail(broken, patch, where)
        written.then["00002.h5"] = patch.undo
        config = build_config(dataset)
        build_cache(config)
    assert written == ["00001.h5", "00002.h5", "00000.h5"]
    assert contents(config.out) == contents(finished)
    assert set(zip(pauses[::2], pauses[1::2], strict=True)) == {(1.0, 4.0)}


def test_an_image_that_appears_during_the_build(
    dataset, build_config, finished, contents, broken, written, pauses, tmp_path, capsys
):
    broken.rename(tmp_path / "hidden")
    written.then["00001.h5"] = lambda: (tmp_path / "hidden").rename(broken)
    config = build_config(dataset)
    build_cache(config)
    assert written == ["00001.h5", "00002.h5", "00000.h5"]
    assert contents(config.out) == contents(finished)
    assert pauses == [] and "7/7 [" in capsys.readouterr().err


def test_images_that_stay_unreadable_cost_no_second_run_of_the_models(
    dataset, build_config, broken, written, pauses, monkeypatch
):
    """A missing image is noticed before the models run, and a truncated one is not waited for."""
    images = sorted(broken.parent.iterdir())
    broken.unlink()
    images[4].write_bytes(images[4].read_bytes()[:-200])
    detected, detect = [], extraction._detect_pairs
    monkeypatch.setattr(
        extraction,
        "_detect_pairs",
        lambda tasks, *args: detected.extend(tasks) or detect(tasks, *args),
    )
    config = build_config(dataset)
    build_cache(config)
    assert written == ["00001.h5", "00002.h5", "00000.h5"] and pauses == []
    assert len(detected) == 5
    failed = open_cache(config.out).failed
    assert sorted(failed) == sorted([broken.name, images[4].name])
    assert failed[broken.name] == "no such image"


def test_an_image_that_is_whole_at_the_end_of_its_shard(dataset, build_config, broken, pauses):
    """As one that is copied to its place while the build runs."""
    whole = broken.read_bytes()
    tasks, counts = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "teacher_cache.build.run_tasks", lambda queue, *_: tasks.extend(queue.tasks) or []
        )
        build_cache(build_config(dataset))
    broken.write_bytes(whole[:-200])

    def complete(count):
        counts.append(count)
        broken.write_bytes(whole)

    result = task_module.make_shard(tasks[0], complete)
    assert isinstance(result, Postponed) and broken.name in result.reason
    assert sum(counts) == 0 and not tasks[0].path.exists()
    record = task_module.make_shard(result.task, counts.append)
    assert len(record.images) == 3 and not record.failed and sum(counts) == 3


@pytest.mark.parametrize("where", ["open", "load"])
def test_errors_that_do_not_pass_are_listed_without_the_path(
    dataset, build_config, broken, written, pauses, monkeypatch, where
):
    fail(broken, monkeypatch, where)
    config = build_config(dataset)
    build_cache(config)
    assert open_cache(config.out).failed == {
        broken.name: "cannot be read (Input/output error, 3 tries)"
    }
    assert written == ["00001.h5", "00002.h5", "00000.h5"]


def test_a_strict_build_stops_at_once(dataset, build_config, broken, written, pauses):
    broken.write_bytes(broken.read_bytes()[:-200])
    config = build_config(dataset)
    strict = replace(config, extraction=replace(config.extraction, strict=True))
    with pytest.raises(InputError, match=rf"{broken.name}: expected a whole image"):
        build_cache(strict)
    assert written == []


@pytest.mark.slow
def test_an_image_that_appears_while_worker_processes_build(
    dataset, build_config, finished, contents, broken, tmp_path
):
    config = build_config(dataset, mode=LocalWorkers(2), images_per_shard=1)
    broken.rename(tmp_path / "hidden")

    def restore():
        while len(list((config.out / SHARDS).glob("*.h5"))) < 5:
            time.sleep(0.001)
        (tmp_path / "hidden").rename(broken)

    thread = threading.Thread(target=restore)
    thread.start()
    build_cache(config)
    thread.join()
    assert open_cache(config.out).failed == {} and len(open_cache(config.out)) == 7
