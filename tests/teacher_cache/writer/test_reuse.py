"""`eoid-cache build --retry-failed OLD`: a new cache with the finished shards of an older one."""

import errno
import os
import random
import shutil
import time
from dataclasses import replace

import pytest

from pipeline.cluster.tasks import ArrayShare
from pipeline.utils.errors import InputError
from teacher_cache.build import build_cache
from teacher_cache.extraction import task as task_module
from teacher_cache.maintenance.merge import merge_caches
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.maintenance.verify import verify_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS, TEACHER
from teacher_cache.writer.settings import read_settings

TIMEOUT = 120


@pytest.fixture
def images(dataset):
    return sorted((dataset / "images/train2015").iterdir())


@pytest.fixture
def hide(images, tmp_path):
    """`hide(row)` makes an image unreadable; `hide.undo()` ends that for all images."""
    hidden = []

    def make(row):
        hidden.append(row)
        images[row].rename(tmp_path / f"{row}.hidden")

    def undo():
        for row in hidden:
            (tmp_path / f"{row}.hidden").rename(images[row])
        hidden.clear()

    make.undo = undo
    return make


@pytest.fixture
def old(dataset, build_config, images, hide):
    """A finished cache of three shards; the image that the second one lacks is there again."""
    hide(4)
    config = build_config(dataset, out="old")
    build_cache(config)
    hide.undo()
    assert list(open_cache(config.out).failed) == [images[4].name]
    return config.out


@pytest.fixture
def config(dataset, build_config, old):
    return build_config(dataset, retry_failed=old)


@pytest.fixture
def made(monkeypatch):
    """Numbers of images of the shards on which the teacher is run."""
    numbers, extract = [], task_module.extract

    def count_and_extract(image_tasks, *args):
        numbers.append(len(image_tasks))
        return extract(image_tasks, *args)

    monkeypatch.setattr(task_module, "extract", count_and_extract)
    return numbers


def state(folder):
    """Bytes and modification times of all files; links to them change no more than `st_ctime`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def linked(old, new):
    """Names of the files that both caches share."""
    inodes = {path.stat().st_ino for path in old.rglob("*.h5")}
    return sorted(path.name for path in new.rglob("*.h5") if path.stat().st_ino in inodes)


def test_only_shards_with_failed_images_are_made_again(
    config, old, finished, made, contents, messages
):
    before = state(old)
    build_cache(config)
    assert contents(config.out) == contents(finished)
    assert linked(old, config.out) == ["00000.h5", "00002.h5", TEACHER] and made == [3]
    assert any("took 2 shards" in line and "making 1 shard again" in line for line in messages)
    assert state(old) == before
    # The new cache needs neither the old one nor its option.
    shutil.rmtree(old)
    (config.out / SHARDS / "00001.h5").unlink()
    assert "retry_failed" not in read_settings(config.out, open_cache(config.out).manifest)
    verify_cache(config.out, repair=True)
    assert contents(config.out) == contents(finished)


def test_images_that_still_fail_stay_listed(config, old, images, hide, messages):
    hide(4)
    build_cache(config)
    cache = open_cache(config.out)
    assert list(cache.failed) == [images[4].name] and len(cache) == 6
    assert (cache.path / SHARDS / "00001.h5").read_bytes() == (
        old / SHARDS / "00001.h5"
    ).read_bytes()
    assert not (cache.path / SHARDS / "00001.h5").samefile(old / SHARDS / "00001.h5")
    assert f"--retry-failed {config.out}" in messages[-1]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_without_hard_links_shards_are_copied(
    config, old, finished, contents, made, monkeypatch, number
):
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    build_cache(config)
    assert contents(config.out) == contents(finished)
    assert linked(old, config.out) == [] and made == [3]


def test_an_old_cache_with_symbolic_links(config, old, tmp_path, finished, contents):
    path = old / SHARDS / "00000.h5"
    path.rename(tmp_path / "elsewhere.h5")
    path.symlink_to(tmp_path / "elsewhere.h5")
    build_cache(config)
    new = config.out / SHARDS / "00000.h5"
    assert not new.is_symlink() and new.samefile(path)
    assert contents(config.out) == contents(finished)


def test_damaged_shards_are_made_again(config, old, finished, contents, made):
    """A new manifest would contain the checksum of the damaged bytes."""
    shard = old / SHARDS / "00000.h5"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    (old / SHARDS / "00002.h5").unlink()
    build_cache(config)
    assert contents(config.out) == contents(finished)
    assert linked(old, config.out) == [TEACHER] and made == [3, 3, 1]


def test_damaged_text_embeddings_are_refused(config, old):
    data = bytearray((old / TEACHER).read_bytes())
    data[-1] ^= 1
    (old / TEACHER).write_bytes(data)
    text = r"teacher.h5: is missing or damaged; eoid-cache verify --repair"
    with pytest.raises(InputError, match=text):
        build_cache(config)
    (old / TEACHER).unlink()
    with pytest.raises(InputError, match=text):
        build_cache(config)
    # Nothing says that a build has begun there.
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ("settings", r"old: expected a cache of the same settings, found another \(max_objects: "),
        ("shards", r"found another \(images_per_shard: 3, now 2\)"),
        ("same", "--out: expected a folder outside of --retry-failed .*old, found "),
        ("inside", "--out: expected a folder outside of --retry-failed .*old, found "),
        ("whole", "old: expected images that could not be read, found none"),
        ("unfinished", "old: "),
        ("absent", "absent: "),
    ],
)
def test_what_cannot_be_tried_again(config, old, finished, tmp_path, problem, text):
    pairing = replace(config.extraction.pairing, max_objects=2)
    change = {
        "settings": {"extraction": replace(config.extraction, pairing=pairing)},
        "shards": {"images_per_shard": 2},
        "same": {"out": old},
        "inside": {"out": old / "new"},
        "absent": {"retry_failed": tmp_path / "absent"},
    }
    if problem == "whole":
        shutil.rmtree(old)
        shutil.copytree(finished, old)
    if problem == "unfinished":
        (old / MANIFEST).unlink()
    with pytest.raises(InputError, match=text) as caught:
        build_cache(replace(config, **change.get(problem, {})))
    assert "\n" not in str(caught.value) and not config.out.exists()


def test_jobs_of_an_array(config, old, finished, contents, made):
    for index in (2, 0):
        build_cache(replace(config, share=ArrayShare(index, 3, own_only=True)))
    assert made == [] and linked(old, config.out) == ["00000.h5", "00002.h5", TEACHER]
    build_cache(replace(config, share=ArrayShare(2, 3)))
    assert made == [3] and contents(config.out) == contents(finished)


def test_nothing_is_written_in_place(config, old, finished, tmp_path, contents):
    """Linked files have one content, so that a write in place would change the old cache."""
    build_cache(config)
    before = state(old)
    for name in ("00000.h5", "00001.h5"):
        path = config.out / SHARDS / name
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        # As a damaged disk block would look that only the new cache has.
        (tmp_path / "damaged").write_bytes(data)
        os.replace(tmp_path / "damaged", path)
    (config.out / SHARDS / "extra.h5").hardlink_to(old / SHARDS / "00002.h5")
    verify_cache(config.out, repair=True)
    assert contents(config.out) == contents(finished)
    (config.out / MANIFEST).unlink()
    verify_cache(config.out, repair=True)
    build_cache(config)
    merge_caches([old, config.out], tmp_path / "merged")
    assert len(open_cache(tmp_path / "merged")) == 7
    rescore_cache(RescoreConfig(config.out, tmp_path / "rescored", temperature=0.5, device="cpu"))
    assert state(old) == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(config, old, finished, start, contents, seed):
    rng, before = random.Random(seed), state(old)
    shards = config.out / SHARDS
    for goal in rng.sample(range(4), 3):
        process, deadline = start(config), time.monotonic() + TIMEOUT
        while len(list(shards.glob("*.h5"))) < goal and process.exitcode is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert state(old) == before
    build_cache(config)
    assert contents(config.out) == contents(finished)
    assert linked(old, config.out) == ["00000.h5", "00002.h5", TEACHER]
    assert state(old) == before
