import errno
import hashlib
import json
import os
from functools import partial

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import (
    atomic_write,
    describe_changes,
    iter_json,
    link_or_copy,
    read_json,
    read_toml,
    refuse_existing,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)


@pytest.fixture
def save(tmp_path):
    """Writes text or bytes to a file; None leaves it out."""

    def write(content, name):
        if content is not None:
            data = content.encode() if isinstance(content, str) else content
            (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def test_writing_leaves_only_the_complete_file(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"b": [1, "é"]})
    with atomic_write(path) as temporary:
        temporary.write_text("[2]")
        assert read_json(path) == {"b": [1, "é"]}
    assert read_json(path) == [2]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize(
    "error", [ValueError, KeyboardInterrupt, partial(OSError, errno.ENOSPC, "No space left")]
)
def test_failed_write_changes_nothing(save, tmp_path, error, before):
    path = save(before, "a.txt")
    with pytest.raises(type(error())) as caught, atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise error()
    assert [one.read_text() for one in tmp_path.iterdir()] == [before] * (before is not None)
    # The error of a full disk does not name the file.
    assert getattr(caught.value, "filename", str(path)) == str(path)


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path):
    long = tmp_path / f"{'a' * 245}.json"
    with pytest.raises(OSError, match="too long") as caught:
        write_text(long, "text")
    assert caught.value.filename == str(long)
    gone = tmp_path / "folder/a.json"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(gone) as temporary:
        gone.parent.rmdir()
        temporary.write_text("text")
    assert caught.value.filename == str(gone)


@pytest.mark.parametrize("hard_links", [True, False])
def test_first_of_several_writers_wins(tmp_path, monkeypatch, hard_links):
    if not hard_links:

        def link(*_):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "a.txt"
    with atomic_write(path, keep_existing=True) as slower:
        write_text(path, "first", keep_existing=True)
        slower.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("read", [read_json, lambda path: list(iter_json(path))])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "line 1: expected JSON, found an empty file"),
        (" \n", "line 1: expected JSON, found an empty file"),
        ("x", "line 1: expected JSON, found expecting value$"),
        ('[1,\n "b", [1, 2', "line 2: expected JSON"),
        ("[1,\n]", "line 2: expected JSON"),
        ("[1]\n[2]", "line [12]: expected JSON"),
        ("[1 2]", "line 1: expected JSON, found expecting ',' "),
        (b"\xff\xfe\x00", "cannot be read"),
        ("[" * 100000, "expected JSON"),
        ("[" + "9" * 10000 + "]", "expected JSON"),
    ],
)
def test_invalid_json_is_refused(save, read, content, message):
    with pytest.raises(InputError, match=rf"a\.json: {message}"):
        read(save(content, "a.json"))


@pytest.mark.parametrize(
    "text", ["[]", " [ ] ", "[1]", ' [{"a": [1, 2]},\n "b" ,\t3.5 ] \n', "[[], [[1]], NaN]"]
)
def test_iter_json_gives_all_entries(save, text):
    assert repr(list(iter_json(save(text, "a.json")))) == repr(json.loads(text))


def test_iter_json_needs_a_list_and_gives_entries_before_later_errors(save):
    with pytest.raises(InputError, match=r"a\.json: file: expected.*found {}"):
        next(iter_json(save("{}", "a.json")))
    entries = iter_json(save('[1, 2,\n{"a": ', "a.json"))
    assert (next(entries), next(entries)) == (1, 2)
    with pytest.raises(InputError, match="line 2: expected JSON, found expecting"):
        next(entries)


def test_byte_order_marks_and_windows_line_ends(save):
    assert read_json(save(b"\xef\xbb\xbf[1]", "a.json")) == [1]
    text = 'b = 1\r\n[c]\r\nd = ["é"]\r\n'
    assert read_toml(save(text.encode("utf-8-sig"), "a.toml")) == {"b": 1, "c": {"d": ["é"]}}


@pytest.mark.parametrize("read", [read_json, read_toml])
def test_folder_is_not_a_file(tmp_path, read):
    with pytest.raises(InputError):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("b = ", "expected TOML"),
        (b"\xff\xfea\x00", "expected TOML, found UTF-16; save it as UTF-8"),
        (b"a = \xff", "expected TOML"),
        ("<html>", "expected TOML, found a web page"),
        ("a = " + "9" * 5000, "expected TOML"),
        ("a = " + "[" * 5000, "expected TOML"),
    ],
)
def test_invalid_toml_is_refused(save, content, message):
    with pytest.raises(InputError, match=rf"a\.toml: {message}"):
        read_toml(save(content, "a.toml"))


def test_digests(save):
    content = b"x" * 3_000_000
    assert sha256_of_file(save(content, "a")) == hashlib.sha256(content).hexdigest()
    assert sha256_of_json({"a": 1, "b": [1, 2]}) == sha256_of_json({"b": [1, 2], "a": 1})
    assert sha256_of_json([1, 2]) != sha256_of_json([2, 1])
    text = json.dumps({"a": "é"}, ensure_ascii=False, separators=(",", ":"))
    assert sha256_of_json({"a": "é"}) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, ""),
        ({"a": 1}, {"b": "x"}, "a: 1, now nothing; b: nothing, now x"),
        ({"w": "ab" * 32}, {"w": "cd" * 32}, "w: abababababab, now cdcdcdcdcdcd"),
    ],
)
def test_describe_changes(old, new, text):
    assert describe_changes(old, new) == text


def test_links_and_copies_of_files(tmp_path, monkeypatch):
    source, link, copy = (tmp_path / name for name in ("a", "b", "c"))
    source.write_bytes(b"1")
    link_or_copy(source, link)
    assert link.samefile(source)

    def refuse(*args, **options):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(link, copy)
    assert copy.read_bytes() == b"1" and not copy.samefile(source)
    source.write_bytes(b"2")
    link_or_copy(source, copy)
    assert copy.read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 3


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    refuse_existing(tmp_path / "new" / "folder" / "result", overwrite=False)
    with pytest.raises(InputError, match=r"/file/a/result: expected to write in .*, found a file"):
        refuse_existing(tmp_path / "file" / "a" / "result", overwrite=True)
    # The superuser may write anywhere but on a file system that is read-only.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="found a folder without that permission"):
        refuse_existing(tmp_path / "new" / "result", overwrite=False)
