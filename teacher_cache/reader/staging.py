"""`stage_cache`: a copy of a cache on a local disk, from which the processes of a node train."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, sha256_of_file
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import track
from pipeline.utils.text import format_bytes
from teacher_cache.reader.format import MANIFEST, SHARDS, TEACHER
from teacher_cache.reader.manifest import read_manifest

logger = get_logger(__name__)

LOCK = ".lock"


def staged_path(cache: Path, folder: Path) -> Path:
    """The path that `stage_cache` returns. It contains a digest of the manifest, so that copies of
    several caches may share the folder.

    Raises:
        InputError: the cache is not finished.
    """
    read_manifest(cache)
    return folder / f"{cache.resolve().name}-{sha256_of_file(cache / MANIFEST)[:16]}"


def stage_cache(cache: Path, folder: Path) -> Path:
    """Copies a finished cache into a folder, and returns the path of the copy in it.

    Files that are there already are used, if their digests are those of the manifest; so a copy is
    made once, and an interrupted one goes on. Of several processes that want the same copy, one
    makes it, and the others wait and check it.

    Raises:
        InputError: the cache is not finished, the folder is in it, the disk has too little space,
            or a file cannot be read or written or differs from its digest in the manifest.
    """
    copy = staged_path(cache, folder)
    if copy.resolve().is_relative_to(cache.resolve()):
        raise InputError(f"--stage-cache: expected a folder outside of {cache}, found {folder}")
    try:
        with _lock(copy):
            _copy_missing(cache, copy)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"--stage-cache: {error.filename or folder}: cannot be copied ({reason})"
        ) from None
    return copy


def _copy_missing(cache: Path, copy: Path) -> None:
    for unfinished in copy.glob("**/.*.tmp"):
        unfinished.unlink(missing_ok=True)
    digests = _digests(cache)
    names = track(digests, len(digests), f"Checking {copy.name}", "files", brief=True)
    missing = [name for name in names if not _is_intact(copy / name, digests[name])]
    needed = sum((cache / name).stat().st_size for name in missing)
    free = shutil.disk_usage(copy).free
    if needed > free:
        raise InputError(
            f"--stage-cache: expected {format_bytes(needed)} of free disk for {cache} in"
            f" {copy.parent}, found {format_bytes(free)}"
        )
    for name in track(missing, len(missing), f"Copying {cache.name}", "files", brief=True):
        with atomic_write(copy / name) as temporary:
            shutil.copyfile(cache / name, temporary)
            if not _is_intact(temporary, digests[name]):
                raise InputError(
                    f"{cache / name}: expected the SHA-256 in {MANIFEST}, found another one; run:"
                    f" eoid-cache verify {cache}"
                )
    how = f"copied {format_bytes(needed)}" if missing else "was copied before"
    logger.info(f"{copy}: {how} from {cache}")


def _digests(cache: Path) -> dict[str, str]:
    """SHA-256 of a cache's files. The manifest is the last one: without it, the copy is no cache.

    Raises:
        InputError: a name leads out of the folder.
    """
    manifest = read_manifest(cache)
    shards = {shard["name"]: shard["sha256"] for shard in manifest["shards"]}
    others = manifest.get("files", {})
    if not others and (cache / TEACHER).is_file():
        # Early writers did not list it.
        others = {TEACHER: sha256_of_file(cache / TEACHER)}
    for name in (*shards, *others):
        if Path(name).name != name or name == "..":
            raise bad_field(cache / MANIFEST, "files", "names without a folder", name)
    by_path = {f"{SHARDS}/{name}": sha256 for name, sha256 in shards.items()}
    return {**by_path, **others, MANIFEST: sha256_of_file(cache / MANIFEST)}


@contextmanager
def _lock(copy: Path) -> Iterator[None]:
    """Holds the lock on a copy; waits for another process that makes it.

    A killed process leaves no lock. Without locks, processes would write the same bytes.
    """
    copy.mkdir(parents=True, exist_ok=True)
    path = copy / LOCK
    # A copy of another user may be whole, and a file that can only be read can be locked too.
    is_read_only = path.exists() and not os.access(path, os.W_OK)
    with open(path, "r" if is_read_only else "a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_intact(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of_file(path) == sha256
