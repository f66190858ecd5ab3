"""Vocabularies: verbs, objects and their valid combinations, the interactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, sha256_of_json

BUILTIN_VOCABULARIES = ("hico-det", "vcoco", "toy")
NO_INTERACTION = "no_interaction"
DISTILLED_CHOICES = ("unseen_verbs", "all_verbs")


@dataclass(frozen=True)
class Vocabulary:
    """A closed set of human-object interactions (HOIs): valid pairs of a verb and an object.

    Attributes:
        name: short name, e.g. `hico-det`.
        verbs: names of the V verbs.
        verb_ings: forms of the verbs in prompts, e.g. "sitting on".
        objects: names of the O objects; `person` is one of them.
        category_ids: category ids of the objects in annotation files (COCO ids for HICO-DET).
        interactions: H tuples of (verb, object) indices.
        rare: indices of interactions with few training instances.
        splits: zero-shot splits by name, `{"unseen": HOI indices, "distilled": "unseen_verbs" or
            "all_verbs"}`; the latter names the verbs whose teacher probabilities are distilled.
        roles: V-COCO's table of actions, empty for other datasets: `{"action": name, "roles": names
            of the roles except the agent, "verbs": one verb per role, or one for an action without
            roles}`.
        source: origin of the tables.
    """

    name: str
    verbs: tuple[str, ...]
    verb_ings: tuple[str, ...]
    objects: tuple[str, ...]
    category_ids: tuple[int, ...]
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

    @property
    def interaction_names(self) -> list[tuple[str, str]]:
        """Names of verb and object of every interaction."""
        return [(self.verbs[verb], self.objects[label]) for verb, label in self.interactions]

    @property
    def first_verb_id(self) -> int:
        """Id of the first verb in files of the HOIA format: 0 for V-COCO, 1 for all others."""
        return 0 if self.roles else 1

    @cached_property
    def interaction_ids(self) -> np.ndarray:
        """(V, O) int64: interaction of a verb and an object, -1 for invalid pairs."""
        table = np.full((self.num_verbs, self.num_objects), -1, dtype=np.int64)
        for index, (verb, label) in enumerate(self.interactions):
            table[verb, label] = index
        return table

    @cached_property
    def valid(self) -> np.ndarray:
        """(V, O) bool: valid pairs of verb and object."""
        return self.interaction_ids >= 0

    @cached_property
    def person(self) -> int:
        """Object index of `person`."""
        return self.objects.index("person")

    @cached_property
    def no_interaction(self) -> int | None:
        """Verb index of `no_interaction`; None if the vocabulary has no such verb."""
        return self.verbs.index(NO_INTERACTION) if NO_INTERACTION in self.verbs else None

    @cached_property
    def label_by_category_id(self) -> dict[int, int]:
        """Object index by category id of annotation files."""
        return {category: label for label, category in enumerate(self.category_ids)}

    def interaction_name(self, index: int) -> str:
        """Readable name of an interaction, e.g. "sit on chair"."""
        verb, label = self.interactions[index]
        return f"{self.verbs[verb]} {self.objects[label]}".replace("_", " ")

    def to_dict(self) -> dict[str, Any]:
        """Content of a vocabulary file, which `vocabulary_from_dict` reads."""
        value: dict[str, Any] = {
            "name": self.name,
            "source": self.source,
            "rare": list(self.rare),
            "objects": [
                {"name": name, "id": category}
                for name, category in zip(self.objects, self.category_ids, strict=True)
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
        """SHA-256 of verbs, objects and interactions, which define all indices in other files."""
        value = self.to_dict()
        return sha256_of_json({key: value[key] for key in ("objects", "verbs", "interactions")})


def vocabulary_from_dict(value: Any, file: object) -> Vocabulary:
    """A vocabulary from the parsed JSON of its file.

    Args:
        value: the parsed JSON.
        file: path or name of the file, for errors.

    Raises:
        InputError: a field is missing or wrong.
    """
    if not isinstance(value, dict):
        raise bad_field(file, "vocabulary", "an object with verbs, objects, interactions", value)
    objects = _read_rows(value, "objects", ("name", "id"), file)
    verbs = _read_rows(value, "verbs", ("name", "ing"), file)
    object_names = _read_strings(objects, "objects", "name", file)
    category_ids = _read_integers(objects, "objects", "id", file)
    verb_names = _read_strings(verbs, "verbs", "name", file)
    _check_unique(object_names, "objects, name", file)
    _check_unique(category_ids, "objects, id", file)
    _check_unique(verb_names, "verbs, name", file)
    if "person" not in object_names:
        raise bad_field(file, "objects", "an object named person", ", ".join(object_names))
    pairs = _read_interactions(value.get("interactions"), len(verbs), len(objects), file)
    return Vocabulary(
        name=str(value.get("name", Path(str(file)).stem)),
        verbs=verb_names,
        verb_ings=_read_strings(verbs, "verbs", "ing", file),
        objects=object_names,
        category_ids=category_ids,
        interactions=pairs,
        rare=_read_indices(value.get("rare", []), len(pairs), "rare", file),
        splits=_read_splits(value.get("splits", {}), len(pairs), file),
        roles=_read_roles(value.get("roles", []), verb_names, file),
        source=str(value.get("source", "")),
    )


def load_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """Loads a built-in vocabulary by name (`hico-det`, `vcoco`, `toy`) or a user's JSON file.

    Raises:
        InputError: the argument is neither a built-in name nor a readable vocabulary file.
    """
    if str(name_or_path) in BUILTIN_VOCABULARIES:
        with resources.as_file(
            resources.files("pipeline") / "data" / f"{name_or_path}.json"
        ) as file:
            return vocabulary_from_dict(read_json(file), file.name)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such vocabulary; expected a file or {', '.join(BUILTIN_VOCABULARIES)}"
        )
    return vocabulary_from_dict(read_json(path), path)


def normalise_name(name: str) -> str:
    """A class name for comparisons: lower case, with single spaces instead of underscores."""
    return " ".join(name.replace("_", " ").casefold().split())


def _read_rows(value: dict[str, Any], key: str, fields: tuple[str, str], file: object) -> list[Any]:
    """A non-empty list of JSON objects that have all `fields`."""
    rows = value.get(key)
    if not isinstance(rows, list) or not rows:
        raise bad_field(file, key, "a non-empty list", rows)
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or any(name not in row for name in fields):
            raise bad_field(file, f"{key}[{index}]", f"fields {' and '.join(fields)}", row)
    return rows


def _read_strings(rows: list[Any], key: str, field: str, file: object) -> tuple[str, ...]:
    """A non-empty string from every row."""
    for index, row in enumerate(rows):
        if not isinstance(row[field], str) or not row[field].strip():
            raise bad_field(file, f"{key}[{index}].{field}", "a text", row[field])
    return tuple(row[field] for row in rows)


def _read_integers(rows: list[Any], key: str, field: str, file: object) -> tuple[int, ...]:
    """An integer from every row."""
    for index, row in enumerate(rows):
        if type(row[field]) is not int:
            raise bad_field(file, f"{key}[{index}].{field}", "a whole number", row[field])
    return tuple(row[field] for row in rows)


def _check_unique(values: Sequence[Any], key: str, file: object) -> None:
    """Refuses repeated values."""
    for value in values:
        if values.count(value) > 1:
            raise bad_field(file, key, "every value once", f"{value} {values.count(value)} times")


def _read_indices(value: Any, size: int, key: str, file: object) -> tuple[int, ...]:
    """Indices of interactions, without duplicates."""
    if not isinstance(value, list):
        raise bad_field(file, key, "a list of interaction numbers", value)
    for index in value:
        if type(index) is not int or not 0 <= index < size:
            raise bad_field(file, key, f"interaction numbers from 0 to {size - 1}", index)
    _check_unique(value, key, file)
    return tuple(value)


def _read_interactions(
    value: Any, num_verbs: int, num_objects: int, file: object
) -> tuple[tuple[int, int], ...]:
    """(verb, object) pairs, without duplicates."""
    if not isinstance(value, list) or not value:
        raise bad_field(file, "interactions", "a non-empty list of [verb, object]", value)
    for index, pair in enumerate(value):
        is_valid = (
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(number) is int for number in pair)
            and 0 <= pair[0] < num_verbs
            and 0 <= pair[1] < num_objects
        )
        if not is_valid:
            expected = f"[verb below {num_verbs}, object below {num_objects}]"
            raise bad_field(file, f"interactions[{index}]", expected, pair)
    _check_unique(value, "interactions", file)
    return tuple((verb, label) for verb, label in value)


def _read_splits(value: Any, num_interactions: int, file: object) -> dict[str, dict[str, Any]]:
    """Zero-shot splits by name."""
    if not isinstance(value, dict):
        raise bad_field(file, "splits", "an object of splits by name", value)
    for name, split in value.items():
        if name == "full":
            raise bad_field(file, "splits", "names other than full (all interactions seen)", name)
        if not isinstance(split, dict) or split.get("distilled") not in DISTILLED_CHOICES:
            expected = f'{{"unseen": [...], "distilled": {" or ".join(DISTILLED_CHOICES)}}}'
            raise bad_field(file, f"splits.{name}", expected, split)
        _read_indices(split.get("unseen"), num_interactions, f"splits.{name}.unseen", file)
    return value


def _read_roles(value: Any, verbs: tuple[str, ...], file: object) -> tuple[dict[str, Any], ...]:
    """V-COCO's table of actions and their roles."""
    expected = '{"action": name, "roles": names, "verbs": one for each role, at least one}'
    if not isinstance(value, list):
        raise bad_field(file, "roles", f"a list of {expected}", value)
    for index, entry in enumerate(value):
        row = entry if isinstance(entry, dict) else {}
        names, role_verbs = row.get("roles"), row.get("verbs")
        is_valid = (
            isinstance(row.get("action"), str)
            and isinstance(names, list)
            and isinstance(role_verbs, list)
            and len(role_verbs) == max(len(names), 1)
        )
        if not is_valid:
            raise bad_field(file, f"roles[{index}]", expected, entry)
        for name in row["verbs"]:
            if name not in verbs:
                raise bad_field(file, f"roles[{index}].verbs", "names of verbs", name)
    return tuple(value)
