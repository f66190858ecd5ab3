"""Verbs, objects and the interactions they form."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError, bad_field
from pipeline.files import read_json, sha256_of_json

SHIPPED = ("hico-det", "vcoco", "world")
NO_INTERACTION = "no_interaction"


@dataclass(frozen=True)
class Vocabulary:
    """A closed set of interactions (HOIs): which verbs go with which objects.

    Attributes:
        name: short name, e.g. `hico-det`.
        verbs, verb_ings: names of the V verbs and their prompt forms ("sitting on").
        objects: names of the O objects; `person` is one of them.
        object_ids: the objects' category ids in annotation files (COCO ids for HICO-DET).
        interactions: (H, 2) tuple of (verb, object) indices.
        rare: indices of interactions with few training instances.
        splits: zero-shot splits by name, `{"unseen": HOI indices, "asked": which verbs the
            teacher is asked for, "unseen_verbs" or "all_verbs"}`.
        roles: V-COCO's action-role table where the vocabulary has one.
        source: where the tables come from.
    """

    name: str
    verbs: tuple[str, ...]
    verb_ings: tuple[str, ...]
    objects: tuple[str, ...]
    object_ids: tuple[int, ...]
    interactions: tuple[tuple[int, int], ...]
    rare: tuple[int, ...] = ()
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: tuple[dict[str, Any], ...] = ()
    source: str = ""

    @property
    def num_verbs(self) -> int:
        return len(self.verbs)

    @property
    def num_objects(self) -> int:
        return len(self.objects)

    @property
    def num_interactions(self) -> int:
        return len(self.interactions)

    @cached_property
    def interaction_ids(self) -> np.ndarray:
        """(V, O) int64: the interaction of a verb and an object, -1 where they form none."""
        table = np.full((self.num_verbs, self.num_objects), -1, dtype=np.int64)
        for index, (verb, label) in enumerate(self.interactions):
            table[verb, label] = index
        return table

    @cached_property
    def valid(self) -> np.ndarray:
        """(V, O) bool: verb and object form an interaction."""
        return self.interaction_ids >= 0

    @cached_property
    def person(self) -> int:
        """Object index of `person`."""
        return self.objects.index("person")

    @cached_property
    def no_interaction(self) -> int | None:
        """Verb index of `no_interaction`, None where the vocabulary has no such verb."""
        return self.verbs.index(NO_INTERACTION) if NO_INTERACTION in self.verbs else None

    @cached_property
    def label_of_id(self) -> dict[int, int]:
        """Object index by category id of annotation files."""
        return {category: label for label, category in enumerate(self.object_ids)}

    def interaction_name(self, index: int) -> str:
        """For people: "sit on chair"."""
        verb, label = self.interactions[index]
        return f"{self.verbs[verb]} {self.objects[label]}".replace("_", " ")

    def to_dict(self) -> dict[str, Any]:
        """The file form; `from_dict` reads it back."""
        value: dict[str, Any] = {
            "name": self.name,
            "source": self.source,
            "rare": list(self.rare),
            "objects": [
                {"name": name, "id": category}
                for name, category in zip(self.objects, self.object_ids, strict=True)
            ],
            "verbs": [
                {"name": name, "ing": ing}
                for name, ing in zip(self.verbs, self.verb_ings, strict=True)
            ],
            "interactions": [list(pair) for pair in self.interactions],
            "splits": self.splits,
        }
        if self.roles:
            value["roles"] = list(self.roles)
        return value

    def digest(self) -> str:
        """SHA-256 of what the numbers in caches and checkpoints mean: verbs, objects, pairs."""
        value = self.to_dict()
        return sha256_of_json({key: value[key] for key in ("objects", "verbs", "interactions")})


def from_dict(value: Any, file: object) -> Vocabulary:
    """A vocabulary from its file form.

    Args:
        value: the parsed JSON.
        file: named in errors.

    Raises:
        InputError: a field is missing or wrong.
    """
    if not isinstance(value, dict):
        raise bad_field(file, "vocabulary", "an object with verbs, objects, interactions", value)
    objects = _entries(value, "objects", ("name", "id"), file)
    verbs = _entries(value, "verbs", ("name", "ing"), file)
    object_names = tuple(str(entry["name"]) for entry in objects)
    verb_names = tuple(str(entry["name"]) for entry in verbs)
    for where, names in (("objects", object_names), ("verbs", verb_names)):
        if len(set(names)) != len(names):
            raise bad_field(file, where, "different names", sorted(names))
    for index, entry in enumerate(objects):
        if not isinstance(entry["id"], int):
            raise bad_field(file, f"objects[{index}].id", "a whole number", entry["id"])
    if "person" not in object_names:
        raise bad_field(file, "objects", "an object named person", sorted(object_names))
    ids = tuple(entry["id"] for entry in objects)
    if len(set(ids)) != len(ids):
        raise bad_field(file, "objects", "different ids", sorted(ids))
    interactions = _interactions(value.get("interactions"), len(verbs), len(objects), file)
    rare = _indices(value.get("rare", []), len(interactions), "rare", file)
    splits = value.get("splits", {})
    if not isinstance(splits, dict):
        raise bad_field(file, "splits", "an object of splits by name", splits)
    for name, split in splits.items():
        if not isinstance(split, dict) or split.get("asked") not in ("unseen_verbs", "all_verbs"):
            expected = '{"unseen": [...], "asked": "unseen_verbs" or "all_verbs"}'
            raise bad_field(file, f"splits.{name}", expected, split)
        _indices(split.get("unseen"), len(interactions), f"splits.{name}.unseen", file)
    return Vocabulary(
        name=str(value.get("name", Path(str(file)).stem)),
        verbs=verb_names,
        verb_ings=tuple(str(entry["ing"]) for entry in verbs),
        objects=object_names,
        object_ids=ids,
        interactions=interactions,
        rare=rare,
        splits=splits,
        roles=tuple(value.get("roles", ())),
        source=str(value.get("source", "")),
    )


def load_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """A shipped vocabulary by name (`hico-det`, `vcoco`, `world`) or a user's JSON file.

    Raises:
        InputError: neither a shipped name nor a readable vocabulary file.
    """
    if str(name_or_path) in SHIPPED:
        with resources.as_file(resources.files("pipeline") / "data" / f"{name_or_path}.json") as at:
            return from_dict(read_json(at), at.name)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(f"{path}: no such vocabulary; expected a file or {', '.join(SHIPPED)}")
    return from_dict(read_json(path), path)


def _entries(value: dict[str, Any], key: str, fields: tuple[str, str], file: object) -> list[Any]:
    entries = value.get(key)
    if not isinstance(entries, list) or not entries:
        raise bad_field(file, key, "a non-empty list", entries)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(name not in entry for name in fields):
            raise bad_field(file, f"{key}[{index}]", f"fields {' and '.join(fields)}", entry)
    return entries


def _indices(value: Any, size: int, where: str, file: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise bad_field(file, where, "a list of interaction numbers", value)
    for index in value:
        if not isinstance(index, int) or not 0 <= index < size:
            raise bad_field(file, where, f"interaction numbers from 0 to {size - 1}", index)
    return tuple(value)


def _interactions(
    value: Any, num_verbs: int, num_objects: int, file: object
) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or not value:
        raise bad_field(file, "interactions", "a non-empty list of [verb, object]", value)
    pairs = []
    for index, pair in enumerate(value):
        fits = (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(number, int) for number in pair)
            and 0 <= pair[0] < num_verbs
            and 0 <= pair[1] < num_objects
        )
        if not fits:
            expected = f"[verb below {num_verbs}, object below {num_objects}]"
            raise bad_field(file, f"interactions[{index}]", expected, pair)
        pairs.append((pair[0], pair[1]))
    if len(set(pairs)) != len(pairs):
        raise bad_field(file, "interactions", "no pair twice", f"{len(pairs)} entries with repeats")
    return tuple(pairs)
