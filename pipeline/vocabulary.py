"""Verbs, objects and the interactions they form."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import vocabulary_checks as check
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
        roles: V-COCO's action-role table where the vocabulary has one: `{"action": name,
            "roles": names of the roles beside the agent, "verbs": the verb of each role, or of
            the action itself where it has none}`.
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

    @property
    def names(self) -> list[tuple[str, str]]:
        """Verb and object of every interaction, by name."""
        return [(self.verbs[verb], self.objects[label]) for verb, label in self.interactions]

    @property
    def first_verb(self) -> int:
        """Number of the first verb in files of the HOIA form: 1, in V-COCO's, with roles, 0."""
        return 0 if self.roles else 1

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
    objects = check.entries(value, "objects", ("name", "id"), file)
    verbs = check.entries(value, "verbs", ("name", "ing"), file)
    object_names = check.texts(objects, "objects", "name", file)
    object_ids = check.whole_numbers(objects, "objects", "id", file)
    verb_names = check.texts(verbs, "verbs", "name", file)
    check.different(object_names, "objects, name", file)
    check.different(object_ids, "objects, id", file)
    check.different(verb_names, "verbs, name", file)
    if "person" not in object_names:
        raise bad_field(file, "objects", "an object named person", ", ".join(object_names))
    pairs = check.interactions(value.get("interactions"), len(verbs), len(objects), file)
    return Vocabulary(
        name=str(value.get("name", Path(str(file)).stem)),
        verbs=verb_names,
        verb_ings=check.texts(verbs, "verbs", "ing", file),
        objects=object_names,
        object_ids=object_ids,
        interactions=pairs,
        rare=check.indices(value.get("rare", []), len(pairs), "rare", file),
        splits=check.splits(value.get("splits", {}), len(pairs), file),
        roles=check.roles(value.get("roles", []), verb_names, file),
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
