"""Finds what is not as it was written in a finished cache folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.files import sha256_of_file
from pipeline.progress import track
from teacher_cache.finish import planned_shards
from teacher_cache.format import MANIFEST, PLAN, SHARDS, TEACHER, read_manifest
from teacher_cache.mapping import read_layout
from teacher_cache.plan import read_plan
from teacher_cache.reader import read_teacher
from teacher_cache.seal import is_intact

# Where a repair keeps what it replaces until it has succeeded.
SET_ASIDE = ".repair"
# Asked again; written again from what the folder holds; removed.
Remedy = Literal["ask", "write", "remove"]
SHARD_ENTRY = re.compile(rb'"name":\s*"(\d+\.h5)",\s*"sha256":\s*"([0-9a-f]{64})"')
FILE_ENTRY = re.compile(rb'"(build\.json|teacher\.h5)":\s*"([0-9a-f]{64})"')
HASHING_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file.

    Attributes:
        name: the file within the cache folder.
        what: what is wrong, for people.
        remedy: what a repair does about it.
    """

    name: str
    what: str
    remedy: Remedy

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        problems: file by file, the manifest first.
        checksums: of every file that the manifest speaks of, by name within the folder, as far as
            a damaged manifest still tells.
        num_bytes: of all files that were read.
    """

    problems: tuple[Problem, ...]
    checksums: dict[str, str]
    num_bytes: int

    def broken(self, remedy: Remedy) -> list[str]:
        """Names of the files that need this remedy."""
        return [problem.name for problem in self.problems if problem.remedy == remedy]


def examine(folder: Path) -> Examination:
    """Reads every byte of a cache that has a manifest.

    Raises:
        InputError: a file that is there may not be read.
    """
    content = (folder / MANIFEST).read_bytes()
    problems = list(_manifest_problems(folder, content))
    manifest = None if problems else read_manifest(folder)
    checksums = _checksums(content)
    names = _shard_names(folder, manifest, checksums)
    checksums = {name: checksums[name] for name in (PLAN, TEACHER, *names) if name in checksums}
    there = [name for name in checksums if (folder / name).is_file()]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        hashes = pool.map(lambda name: sha256_of_file(folder / name), there)
        found = dict(
            zip(there, track(hashes, len(there), "Reading", "files", brief=True), strict=True)
        )
    places = {checksum: name for name, checksum in checksums.items()}
    for name in (PLAN, TEACHER, *names):
        remedy: Remedy = "write" if name == PLAN else "ask"
        if not (folder / name).exists():
            # Caches of an early version may have lost what nobody needs to read them.
            if name in checksums or name != PLAN:
                problems.append(Problem(name, "is missing", remedy))
        elif name not in checksums:
            problems += _unsigned_problems(folder, name, manifest, remedy)
        elif found.get(name) != checksums[name]:
            what = _damage(folder / name, found.get(name), manifest, places)
            problems.append(Problem(name, what, remedy))
    if manifest is not None:
        problems += _misfits(folder, manifest, {problem.name for problem in problems})
    problems += _strangers(folder, set(names))
    size = len(content) + sum((folder / name).stat().st_size for name in there)
    return Examination(tuple(problems), checksums, size)


def _manifest_problems(folder: Path, content: bytes) -> Iterator[Problem]:
    path = folder / MANIFEST
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        yield Problem(MANIFEST, str(error).removeprefix(f"{path}: "), "write")
        return
    # An early version wrote no checksum of the manifest itself, and no vocabulary either.
    if ("vocabulary" in manifest or "sha256" in manifest) and not is_intact(content):
        yield Problem(MANIFEST, "is damaged: its own checksum does not fit", "write")


def _checksums(content: bytes) -> dict[str, str]:
    """What a manifest's bytes say of files, even where they are no JSON any more."""
    shards = {f"{SHARDS}/{name.decode()}": sha for name, sha in SHARD_ENTRY.findall(content)}
    files = {name.decode(): sha for name, sha in FILE_ENTRY.findall(content)}
    return {name: sha.decode() for name, sha in {**files, **shards}.items()}


def _shard_names(
    folder: Path, manifest: dict[str, Any] | None, checksums: dict[str, str]
) -> list[str]:
    if manifest is not None:
        return [f"{SHARDS}/{entry['name']}" for entry in manifest["shards"]]
    try:
        return [f"{SHARDS}/{name}" for name in planned_shards(folder)]
    except InputError:
        return [name for name in checksums if name.startswith(SHARDS)]


def _unsigned_problems(
    folder: Path, name: str, manifest: dict[str, Any] | None, remedy: Remedy
) -> Iterator[Problem]:
    """Problems of a file that the manifest has no checksum of."""
    path = folder / name
    fingerprint = None if manifest is None else manifest["fingerprint"]
    try:
        if name == PLAN:
            plan = read_plan(folder)
            if ("vocabulary" in plan or "sha256" in plan) and not is_intact(path.read_bytes()):
                yield Problem(name, "is damaged: its own checksum does not fit", remedy)
            elif fingerprint is not None and plan["fingerprint"] != fingerprint:
                yield Problem(name, "belongs to another cache", remedy)
        elif name == TEACHER and fingerprint is not None:
            read_teacher(path, fingerprint)
        else:
            yield Problem(name, f"the damaged {MANIFEST} does not tell its checksum", remedy)
    except InputError as error:
        yield Problem(name, str(error).removeprefix(f"{path}: "), remedy)


def _damage(
    path: Path, found: str | None, manifest: dict[str, Any] | None, places: dict[str, str]
) -> str:
    """What is wrong with a file whose checksum does not fit."""
    if found is None:
        return "is no file"
    if found in places:
        return f"holds what belongs into {places[found]}"
    entries = [] if manifest is None else manifest["shards"]
    wanted = next((entry.get("bytes") for entry in entries if entry["name"] == path.name), None)
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    if wanted is not None and size != wanted:
        kind = "is cut off" if size < wanted else "is too long"
        return f"{kind}: {size} bytes, {wanted} were written"
    return f"is damaged: its checksum is not that in {MANIFEST}"


def _misfits(folder: Path, manifest: dict[str, Any], known: set[str]) -> Iterator[Problem]:
    """Shards that are as the manifest says and yet not of this cache, or of other images."""
    images = []
    for entry in manifest["shards"]:
        name = f"{SHARDS}/{entry['name']}"
        images += entry["images"]
        if name in known:
            continue
        try:
            layout = read_layout(folder / name, manifest["fingerprint"])
        except InputError as error:
            yield Problem(name, str(error).removeprefix(f"{folder / name}: "), "ask")
            continue
        if layout.images != tuple(entry["images"]):
            yield Problem(MANIFEST, f"{entry['name']}: images: not those of the shard", "write")
    if len(set(images)) != len(images):
        yield Problem(MANIFEST, "shards: some image stands in it twice", "write")


def _strangers(folder: Path, names: set[str]) -> Iterator[Problem]:
    for path in sorted([*folder.iterdir(), *_listed(folder / SHARDS)]):
        name = path.relative_to(folder).as_posix()
        if path.name == SET_ASIDE or (path.name.startswith(".") and path.suffix == ".tmp"):
            yield Problem(name, "was left over by a stopped writer", "remove")
        elif path.parent.name == SHARDS and path.parent != folder and name not in names:
            yield Problem(name, f"is no shard that {MANIFEST} speaks of", "remove")


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
