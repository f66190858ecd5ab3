"""`build.json`: the plan of a build, and the check that a folder may take it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec import Struct

from pipeline.cluster.lock import LOCK
from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes, read_json
from pipeline.utils.schema import convert
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    SHARDS,
    displayed_parts,
)
from teacher_cache.reader.manifest import read_manifest
from teacher_cache.writer.checksum import without_checksum, write_checksummed_json


class _Plan(Struct):
    """The fields that all plans have."""

    fingerprint: str
    parts: dict[str, Any]
    layout: dict[str, Any]


@dataclass(frozen=True)
class BuildPlan:
    """Everything about a cache that is known before its first shard is written.

    Attributes:
        parts: parts of the fingerprint.
        layout: settings that determine how outputs are divided into files, but not the outputs.
        num_images: number of images of the dataset part.
        settings: the resolved command settings, with which a repair makes damaged files again.
        vocabulary: vocabulary of the outputs, as the manifest stores it.
    """

    parts: dict[str, Any]
    layout: dict[str, Any]
    num_images: int
    settings: dict[str, Any]
    vocabulary: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the parts."""
        return compute_fingerprint(self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Content of `build.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "parts": self.parts,
            "layout": self.layout,
            "images": self.num_images,
            "vocabulary": self.vocabulary,
            "settings": self.settings,
        }


def claim_folder(folder: Path, plan: BuildPlan, shared: bool = False) -> bool:
    """Prepares a folder for a build: a new one, or one where a build of the same plan was started.

    Of several builders that start at the same time, one writes its plan; the others accept it if
    it equals theirs. If the folder is `shared`, other jobs may be building in it, and its
    `build.json` does not change.

    Returns:
        Whether the folder holds the finished cache already.

    Raises:
        InputError: the folder holds something else, or a cache of other settings.
    """
    if check_folder(folder, plan):
        return True
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    value = plan.to_dict()
    write_checksummed_json(folder / PLAN, value, keep_existing=True)
    stored = read_plan(folder)
    _check_same_settings(folder, stored, plan)
    # Equal outputs, but for example another device or number of threads: the newest is kept.
    if without_checksum(stored) != value and not shared:
        write_checksummed_json(folder / PLAN, value)
    return False


def check_folder(folder: Path, plan: BuildPlan) -> bool:
    """Whether a folder holds the planned cache with all its shards.

    Raises:
        InputError: the folder holds something else, or a cache of other settings.
    """
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        _check_same_settings(folder, manifest, plan)
        return all((folder / SHARDS / shard["name"]).is_file() for shard in manifest["shards"])
    if (folder / PLAN).is_file():
        _check_same_settings(folder, read_plan(folder), plan)
    elif folder.exists() and not is_new_folder(folder):
        raise InputError(f"{folder}: expected a new or empty folder, found something else in it")
    return False


def read_plan(folder: Path) -> dict[str, Any]:
    """Reads `build.json`.

    Raises:
        InputError: the file is missing, or not the plan of a build.
    """
    plan = read_json(folder / PLAN)
    convert(plan, _Plan, folder / PLAN)
    return plan


def is_new_folder(folder: Path) -> bool:
    """Whether a folder is empty, or holds only what a builder leaves that is stopped at once."""
    return folder.is_dir() and all(
        path.name == LOCK
        or (path.name == SHARDS and path.is_dir() and not any(path.iterdir()))
        or (path.name.startswith(f".{PLAN}.") and path.suffix == ".tmp")
        for path in folder.iterdir()
    )


def _check_same_settings(folder: Path, stored: dict[str, Any], plan: BuildPlan) -> None:
    if changes := describe_settings(stored, plan):
        # As after an error in the first image, when a teacher of one's own is written.
        is_used = (folder / MANIFEST).is_file() or any((folder / SHARDS).glob("*.h5"))
        advice = "" if is_used else "delete it, since it has no shard yet, or "
        raise InputError(
            f"{folder}: holds a cache of other settings ({changes}); {advice}give --out"
            " a new folder"
        )


def describe_settings(stored: dict[str, Any], plan: BuildPlan) -> str:
    """The settings in which a planned cache differs from a stored manifest or plan; or empty."""
    return describe_changes(
        {**displayed_parts(stored["parts"]), **stored.get("layout", {})},
        {**displayed_parts(plan.parts), **plan.layout},
    )
