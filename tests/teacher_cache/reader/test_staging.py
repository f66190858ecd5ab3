import multiprocessing
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json
from teacher_cache.reader import staging
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER
from teacher_cache.reader.staging import stage_cache, staged_path

SHARD_FILES = [f"{SHARDS}/{number:05}.h5" for number in range(3)]
FILES = [*SHARD_FILES, PLAN, TEACHER, MANIFEST]


@pytest.fixture
def copied(monkeypatch):
    """Names of the files that are copied."""
    names, copy = [], shutil.copyfile

    def record(source, target):
        names.append("/".join(Path(source).parts[-2:]) if SHARDS in str(source) else source.name)
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", record)
    return names


def assert_equal(copy, cache):
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert found == {*FILES, ".lock"}
    for name in FILES:
        assert (copy / name).read_bytes() == (cache / name).read_bytes()


def test_a_copy_is_a_cache_and_made_once(finished, tmp_path, copied, messages):
    copy = stage_cache(finished, tmp_path / "disk")
    assert copy == staged_path(finished, tmp_path / "disk") and copy.parent == tmp_path / "disk"
    assert copied == FILES
    assert_equal(copy, finished)
    first, second = open_cache(copy), open_cache(finished)
    assert first.image_ids == second.image_ids
    for image in first.image_ids:
        np.testing.assert_array_equal(first[image].probabilities, second[image].probabilities)
    assert stage_cache(finished, tmp_path / "disk") == copy and len(copied) == len(FILES)
    assert "copied" in messages[0] and messages[1].endswith(f"was copied before from {finished}")


def test_another_cache_of_the_same_name_has_a_copy_of_its_own(finished, copy, tmp_path):
    other = tmp_path / "b" / finished.name
    shutil.copytree(copy, other)
    manifest = read_json(other / MANIFEST)
    write_json(other / MANIFEST, {**manifest, "failed": {"x.jpg": "gone"}})
    copies = {stage_cache(each, tmp_path / "disk") for each in (finished, other)}
    assert len(copies) == 2
    assert {len(open_cache(each).failed) for each in copies} == {0, 1}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_of_the_copy_is_copied_again(finished, tmp_path, copied, name):
    """Any byte of it, or a missing one."""
    folder = stage_cache(finished, tmp_path)
    content = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    changes = [content[:-1], b""]
    for position in rng.integers(0, len(content), 5):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.integers(8)
        changes.append(bytes(changed))
    for changed in changes:
        copied.clear()
        (folder / name).write_bytes(changed)
        stage_cache(finished, tmp_path)
        assert copied == [name]
        assert_equal(folder, finished)


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_damaged_file_of_the_cache_is_named(copy, tmp_path, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 4
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match="eoid-cache verify") as caught:
        stage_cache(copy, tmp_path / "disk")
    assert str(copy / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not (staged_path(copy, tmp_path / "disk") / MANIFEST).exists()


def run_process(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_a_copy_goes_on_after_a_kill_at_any_file(finished, tmp_path):
    def kill(count):
        def copy_half(source, target):
            nonlocal count
            content = Path(source).read_bytes()
            if not count:
                Path(target).write_bytes(content[: len(content) // 2])
                os._exit(9)
            count -= 1
            Path(target).write_bytes(content)

        staging.shutil.copyfile = copy_half
        stage_cache(finished, tmp_path)

    folder = staged_path(finished, tmp_path)
    for _ in FILES:
        # Each process gets one file further.
        process = run_process(kill, 1)
        process.join()
        assert process.exitcode == (9 if not (folder / MANIFEST).exists() else 0)
        assert (folder / MANIFEST).exists() or list(folder.glob("**/.*.tmp"))
    assert_equal(stage_cache(finished, tmp_path), finished)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_several_processes_make_one_copy(finished, tmp_path):
    log = tmp_path / "log"

    def stage():
        def record(source, target):
            with open(log, "a") as file:
                file.write(f"{Path(source).name}\n")
            target.write_bytes(source.read_bytes())

        staging.shutil.copyfile = record
        stage_cache(finished, tmp_path / "disk")

    processes = [run_process(stage) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text().split() == [Path(name).name for name in FILES]
    assert_equal(staged_path(finished, tmp_path / "disk"), finished)


def test_caches_of_early_writers_list_only_shards(copy, tmp_path):
    manifest = read_json(copy / MANIFEST)
    del manifest["files"]
    write_json(copy / MANIFEST, manifest)
    staged = stage_cache(copy, tmp_path / "disk")
    assert (staged / TEACHER).read_bytes() == (copy / TEACHER).read_bytes()
    assert open_cache(staged).prompt_embeddings.prompts


def test_a_disk_with_too_little_space(finished, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(InputError, match=r"--stage-cache: expected .* of free disk") as caught:
        stage_cache(finished, tmp_path)
    assert "found 1.0 kB" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(staged_path(finished, tmp_path).glob("**/*.h5"))


def test_a_copy_of_another_user_is_used(finished, tmp_path, monkeypatch):
    copy = stage_cache(finished, tmp_path)

    (copy / ".lock").chmod(0o444)
    # The tests may run as a user to whom permissions do not apply.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert stage_cache(finished, tmp_path) == copy
    assert staged_path(finished, tmp_path / "disk") == stage_cache(finished, tmp_path / "disk")


@pytest.mark.parametrize("folder", ["", SHARDS, "new/folder", "link"])
def test_a_cache_is_not_copied_into_itself(copy, tmp_path, folder):
    (tmp_path / "link").symlink_to(copy)
    folder = tmp_path / "link" if folder == "link" else copy / folder
    before = sorted(copy.rglob("*"))
    with pytest.raises(InputError, match=r"--stage-cache: expected a folder outside of "):
        stage_cache(copy, folder)
    assert sorted(copy.rglob("*")) == before


def test_errors_of_the_disk_are_one_line(finished, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--stage-cache: .*file.*cannot be copied"):
        stage_cache(finished, tmp_path / "file")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(InputError, match=r"00000.h5: cannot be copied .No space left"):
        stage_cache(finished, tmp_path)


def test_what_is_no_finished_cache(copy, tmp_path):
    (copy / SHARDS / "00001.h5").unlink()
    with pytest.raises(InputError, match=r"00001.h5: cannot be copied"):
        stage_cache(copy, tmp_path / "disk")
    manifest = read_json(copy / MANIFEST)
    for name in ("../a.h5", "/a.h5", ".."):
        shards = [{**manifest["shards"][0], "name": name}]
        write_json(copy / MANIFEST, {**manifest, "shards": shards})
        with pytest.raises(InputError, match="files: expected names without a folder"):
            stage_cache(copy, tmp_path / "disk")
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match="the cache is unfinished"):
        stage_cache(copy, tmp_path / "disk")
