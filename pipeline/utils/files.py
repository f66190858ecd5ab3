"""Files: atomic writing, JSON, TOML, SHA-256, recognition of wrong file types, script copies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.utils.errors import InputError, bad_field

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The start of a JSON list and what follows one of its entries; the group is the list's end.
LIST_START = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*(\][ \t\n\r]*\Z)?")
SEPARATOR = re.compile(r"[ \t\n\r]*(?:,[ \t\n\r]*|(\][ \t\n\r]*\Z))")
# First bytes of files that are often found in place of the expected one, and their description.
FILE_SIGNATURES = (
    (rb"\s*<", "a web page or other XML; download the file itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf", "a compressed file; unpack it first"),
)
# The same for files in place of text files.
BINARY_SIGNATURES = (
    (rb"\xff\xfe|\xfe\xff|(?:[^\x00]\x00){4}|(?:\x00[^\x00]){4}", "UTF-16; save it as UTF-8"),
    (rb"PK", "a zip archive or NPZ file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"\x80[\x02-\x05]", "a pickle"),
)


@contextmanager
def atomic_write(path: Path | str, keep_existing: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is synced and renamed to `path` on success.

    Missing folders above `path` are created. If the body raises, the temporary file is removed and
    `path` is unchanged.

    Args:
        path: the file to write.
        keep_existing: do not replace an existing file; of several writers the first one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random name: processes on several machines may write the same file on a shared file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        if keep_existing:
            _link_if_absent(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        # Python does not know the name when writing fails, e.g. because the disk is full. The
        # temporary name would mean nothing to a user.
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        # An error of the body matters more, such as that of a name which is too long.
        with suppress(OSError):
            temporary.unlink()


def _link_if_absent(temporary: Path, path: Path) -> None:
    """Gives a file a name that does not exist yet; nothing happens if the name exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        # Some file systems do not support hard links.
        if not path.exists():
            os.replace(temporary, path)


def link_or_copy(source: Path, path: Path) -> None:
    """Gives a file a second name, as a hard link; copies it to another file system, or if there are
    no hard links. Nothing happens if the name exists.

    A linked file must never be written in place.
    """
    try:
        # A symbolic link would be linked itself.
        os.link(os.path.realpath(source), path)
    except FileExistsError:
        pass
    except OSError:
        with atomic_write(path, keep_existing=True) as temporary:
            shutil.copyfile(source, temporary)


def refuse_existing(path: Path | str, overwrite: bool) -> None:
    """Checks a file that is to be written, before the work whose result it is.

    Raises:
        InputError: the file exists and `overwrite` is false, or its folder cannot be written.
    """
    if not overwrite and Path(path).exists():
        raise InputError(f"{path}: exists; give --overwrite or another name")
    folder = next(each for each in Path(path).absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        found = "a folder without that permission" if folder.is_dir() else "a file"
        raise InputError(f"{path}: expected to write in {folder}, found {found}")


def is_up_to_date(path: Path, source: Path) -> bool:
    """Whether a file exists and was not written before the file that it was made from."""
    return path.is_file() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns


def write_text(path: Path | str, text: str, keep_existing: bool = False) -> None:
    """Writes `text` as UTF-8, atomically; `keep_existing` as in `atomic_write`."""
    with atomic_write(path, keep_existing) as temporary:
        temporary.write_bytes(encode_utf8(text))


def encode_utf8(text: str) -> bytes:
    """Text as UTF-8; bytes of file names that are not UTF-8 become escapes that JSON can read."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path | str, value: Any, keep_existing: bool = False) -> None:
    """Writes `value` as indented JSON, atomically; `keep_existing` as in `atomic_write`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", keep_existing)


def read_json(path: Path | str, unique_names: bool = False) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        unique_names: refuse an object with two values of one name, of which the last one counts
            otherwise.

    Raises:
        InputError: the file is missing, not UTF-8 text or not JSON.
    """

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(name for name, _ in pairs)
        for name, count in counts.most_common(1):
            if count > 1:
                raise bad_field(path, name, "one value", f"{count} values of this name")
        return dict(pairs)

    text = read_text(path)
    with _json_errors(path, text):
        return json.loads(text, object_pairs_hook=to_dict if unique_names else None)


def iter_json(path: Path | str) -> Iterator[Any]:
    """Iterates over the entries of a JSON file that contains a list.

    Only the text and one parsed entry are in memory at a time; all parsed entries of a large file
    would take several times its size. Streaming parsers such as ijson refuse NaN, which Python
    writes.

    Raises:
        InputError: the file is missing, not UTF-8 text, not JSON, or does not contain a list.
    """
    text = read_text(path)
    decoder = json.JSONDecoder()
    with _json_errors(path, text):
        start = LIST_START.match(text)
        if start is None:
            raise bad_field(path, "file", "a list", decoder.decode(text))
        position, is_end = start.end(), bool(start[1])
        while not is_end:
            entry, position = decoder.raw_decode(text, position)
            yield entry
            separator = SEPARATOR.match(text, position)
            if separator is None:
                raise json.JSONDecodeError("Expecting ',' or the end", text, position)
            position, is_end = separator.end(), bool(separator[1])


@contextmanager
def _json_errors(path: Path | str, text: str) -> Iterator[None]:
    """Converts errors of parsing the text of a file to an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise _json_error(path, text, error) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, found {error}") from None


def read_text(path: Path | str) -> str:
    """Reads UTF-8 text.

    Raises:
        InputError: the file is missing or not UTF-8 text.
    """
    path = Path(path)
    try:
        # Some editors write a byte order mark before UTF-8.
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        what = identify_file(path, BINARY_SIGNATURES)
        found = f"expected UTF-8 text, found {what}" if what else error
        raise InputError(f"{path}: cannot be read ({found})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def identify_file(path: Path | str, signatures: Sequence[tuple[bytes, str]] = ()) -> str | None:
    """Describes an unexpected file by its first bytes (regular expressions); None if unknown."""
    # A pipe has been read already, and opening it again could block for ever.
    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d+)", head)
        what = f"a file of {int(size[1])} bytes" if size else "another file"
        return f"a Git LFS pointer to {what}; fetch that with: git lfs pull"
    return next(
        (what for start, what in (*FILE_SIGNATURES, *signatures) if re.match(start, head)), None
    )


def _json_error(path: Path | str, text: str, error: json.JSONDecodeError) -> InputError:
    if not text.strip():
        return InputError(f"{path}: line 1: expected JSON, found an empty file")
    if what := identify_file(path, BINARY_SIGNATURES):
        return InputError(f"{path}: line {error.lineno}: expected JSON, found {what}")
    # A list or an object that is not closed.
    is_truncated = text.lstrip()[:1] in "[{" and text.rstrip()[-1:] not in ("]", "}")
    hint = " (the file ends too early; is it whole?)" if is_truncated else ""
    return InputError(
        f"{path}: line {error.lineno}: expected JSON, found {error.msg.lower()}{hint}"
    )


def differing_keys(found: Any, expected: dict[str, Any]) -> list[str]:
    """Keys of `expected` whose value is different or missing in `found`, the content of a file."""
    values = found if isinstance(found, dict) else {}
    return [key for key in expected if values.get(key) != expected[key]]


def sha256_of_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return sha256_of_chunks(iter(lambda: file.read(1 << 20), b""))


def sha256_of_chunks(chunks: Iterator[bytes]) -> str:
    """Hex SHA-256 of the concatenation of `chunks`."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order and spacing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_of_chunks(iter([encode_utf8(text)]))


def read_toml(path: Path | str) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        InputError: the file is missing or is not TOML.
    """
    try:
        # Some editors write a byte order mark before UTF-8.
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    # ValueErrors are texts that are not UTF-8 or not TOML, and numbers of thousands of digits.
    except (OSError, ValueError, RecursionError) as error:
        found = identify_file(path, BINARY_SIGNATURES) or error
        raise InputError(f"{path}: expected TOML, found {found}") from None


def copy_scripts(
    package: str, names: Sequence[str], folder: Path, overwrite: bool = False
) -> list[Path]:
    """Copies files of a package into a folder, and returns the paths of the copies.

    Raises:
        InputError: one of the files exists and `overwrite` is false.
    """
    paths = [folder / name for name in names]
    for path in paths:
        refuse_existing(path, overwrite)
    for path in paths:
        write_text(path, (files(package) / path.name).read_text(encoding="utf-8"))
    return paths


def describe_changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Differences of two sets of fingerprint parts in one line: "clip.model: A, now B"."""
    return "; ".join(
        f"{name}: {shorten_value(old.get(name))}, now {shorten_value(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def shorten_value(value: Any) -> str:
    """A value of a fingerprint for messages; digests and long values are shortened."""
    text = "nothing" if value is None else str(value)
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)
    return text if len(text) <= 60 else text[:57] + "..."
