"""What a folder holds of a cache: all of it, or the shards that one job of several left there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary
from teacher_cache.finish import planned_shards
from teacher_cache.format import (
    MANIFEST,
    PLAN,
    SHARDS,
    TEACHER,
    ImageAnswers,
    held_vocabulary,
    shard_name,
)
from teacher_cache.mapping import ShardLayout, map_shard, read_layout
from teacher_cache.plan import read_plan
from teacher_cache.reader import TeacherText, answers_at, open_cache, read_teacher
from teacher_cache.settings import held_settings


@dataclass(frozen=True)
class Place:
    """Where an image's answers lie: the number of the shard and the row within it."""

    shard: int
    row: int


@dataclass(frozen=True, eq=False)
class Holding:
    """The finished shards of a folder.

    Attributes:
        folder: finished cache or not.
        file: the one that says what the cache is.
        plan: its content: fingerprint, parts, layout and the like.
        num_images: of the whole cache, unreadable ones included.
        layouts: of the shards that are there, by number.
    """

    folder: Path
    file: Path
    plan: dict[str, Any]
    num_images: int
    layouts: dict[int, ShardLayout]
    _mapped: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def text(self) -> TeacherText:
        return read_teacher(self.folder / TEACHER, self.plan["fingerprint"])

    @property
    def vocabulary(self) -> Vocabulary:
        return held_vocabulary(self.file, self.plan)

    @property
    def settings(self) -> dict[str, Any]:
        return held_settings(self.folder, self.plan)

    def places(self) -> dict[str, Place]:
        """Where every image's answers lie, by id."""
        return {
            image: Place(number, row)
            for number, layout in self.layouts.items()
            for row, image in enumerate(layout.images)
        }

    def shard_path(self, number: int) -> Path:
        return self.folder / SHARDS / shard_name(number)

    def answers(self, place: Place) -> ImageAnswers:
        """The answers at a place; quick for one shard after the other."""
        if place.shard not in self._mapped:
            self._mapped.clear()
            path = self.shard_path(place.shard)
            self._mapped[place.shard] = map_shard(path, self.layouts[place.shard])
        return answers_at(self._mapped[place.shard], place.row)


def open_holding(folder: Path) -> Holding:
    """Looks what a folder holds.

    Raises:
        InputError: no cache, or one whose manifest and shards do not fit each other.
    """
    if not (folder / MANIFEST).is_file() and (folder / PLAN).is_file():
        return _unfinished(folder)
    cache = open_cache(folder)
    layouts = {number: cache.layout(number) for number in range(cache.num_shards)}
    for number, entry in enumerate(cache.manifest["shards"]):
        if entry["name"] != shard_name(number):
            raise InputError(
                f"{folder / MANIFEST}: shards[{number}].name: expected {shard_name(number)},"
                f" found {entry['name']}"
            )
    num_images = len(cache) + len(cache.failed)
    return Holding(folder, folder / MANIFEST, cache.manifest, num_images, layouts)


def _unfinished(folder: Path) -> Holding:
    plan = read_plan(folder)
    layouts = {}
    for number, name in enumerate(planned_shards(folder)):
        path = folder / SHARDS / name
        if path.is_file():
            layouts[number] = read_layout(path, plan["fingerprint"])
    return Holding(folder, folder / PLAN, plan, plan["images"], layouts)
