import errno
import hashlib
import json
import os

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import (
    atomic_write,
    describe_changes,
    iter_json,
    read_json,
    read_toml,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)


def test_writing_leaves_only_the_complete_file(tmp_path):
    write_json(tmp_path / "new" / "folder" / "a.json", {"b": [1, "é"]})
    assert read_json(tmp_path / "new" / "folder" / "a.json") == {"b": [1, "é"]}
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file_only(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_first_write_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"not json": object()})
    assert list(tmp_path.iterdir()) == []


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


def test_full_disk_error_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"a\.txt") as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_old_file_is_readable_during_writing(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "line 1: expected JSON"),
        (b'{"a": 1,\n "b": [1, 2', "line 2: expected JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 100000, "expected JSON"),
        (b"9" * 10000, "expected JSON"),
    ],
)
def test_invalid_json_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"a.json: {message}"):
        read_json(path)


@pytest.mark.parametrize(
    "text", ["[]", " [ ] ", "[1]", ' [{"a": [1, 2]},\n "b" ,\t3.5 ] \n', "[[], [[1]], NaN]"]
)
def test_iter_json_gives_all_entries(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert repr(list(iter_json(path))) == repr(json.loads(text))


def test_iter_json_gives_entries_before_later_errors(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[1, 2,\n{"a": ')
    entries = iter_json(path)
    assert (next(entries), next(entries)) == (1, 2)
    with pytest.raises(InputError, match="line 2: expected JSON, found expecting"):
        next(entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected JSON, found an empty file"),
        (" \n", "line 1: expected JSON, found an empty file"),
        ("{}", r"file: expected.*found {}"),
        ("x", "line 1: expected JSON, found expecting value$"),
        ("[1 2]", "line 1: expected JSON, found expecting ',' or the end$"),
        ("[1,\n]", "line 2: expected JSON, found expecting value$"),
        ("[1]\n[2]", "line 1: expected JSON, found expecting ',' or the end$"),
        ("[1", "line 1: expected"),
        ("[" * 100000, "expected JSON"),
        ("[" + "9" * 10000 + "]", "expected JSON"),
    ],
)
def test_iter_json_refuses_other_content(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"a.json: {message}"):
        list(iter_json(path))


def test_folder_is_not_a_json_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize("content", [b"", b"abc", b"x" * 3_000_000])
def test_sha256_of_file(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_sha256_of_json_is_independent_of_key_order():
    assert sha256_of_json({"a": 1, "b": [1, 2]}) == sha256_of_json({"b": [1, 2], "a": 1})
    assert sha256_of_json([1, 2]) != sha256_of_json([2, 1])
    text = json.dumps({"a": "é"}, ensure_ascii=False, separators=(",", ":"))
    assert sha256_of_json({"a": "é"}) == hashlib.sha256(text.encode()).hexdigest()


def test_toml_tables_and_values(tmp_path):
    (tmp_path / "a.toml").write_text('b = 1\n[c]\nd = ["é"]\n', encoding="utf-8")
    assert read_toml(tmp_path / "a.toml") == {"b": 1, "c": {"d": ["é"]}}


def test_toml_with_a_byte_order_mark_and_windows_line_ends(tmp_path):
    (tmp_path / "a.toml").write_bytes('b = 1\r\n[c]\r\nd = ["é"]\r\n'.encode("utf-8-sig"))
    assert read_toml(tmp_path / "a.toml") == {"b": 1, "c": {"d": ["é"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"b = ", "expected TOML"),
        (b"b = 1\nb = 2", "expected TOML"),
        (b"\xff\xfea\x00", "expected TOML, found UTF-16; save it as UTF-8"),
        (b"a = \xff", "expected TOML"),
        (b"<html>", "expected TOML, found a web page"),
    ],
)
def test_invalid_toml_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(InputError, match=f"a.toml: {message}"):
        read_toml(tmp_path / "a.toml")


def test_folder_is_not_a_toml_file(tmp_path):
    with pytest.raises(InputError):
        read_toml(tmp_path)


@pytest.mark.parametrize(
    "old, new, text",
    [
        ({}, {}, ""),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, ""),
        ({"a": 1}, {"a": 2}, "a: 1, now 2"),
        ({"a": 1}, {"b": "x"}, "a: 1, now nothing; b: nothing, now x"),
        ({"w": "ab" * 32}, {"w": "cd" * 32}, "w: abababababab, now cdcdcdcdcdcd"),
    ],
)
def test_describe_changes(old, new, text):
    assert describe_changes(old, new) == text
