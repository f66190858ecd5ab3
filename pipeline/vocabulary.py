"""Vocabularies: verbs, objects and their valid combinations, the interactions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, sha256_of_json
from pipeline.utils.schema import Line, Number, convert

BUILTIN_VOCABULARIES = ("hico-det", "vcoco", "swig-hoi", "toy")
NO_INTERACTION = "no_interaction"
# Ends the name of an object where several objects of a vocabulary share their name.
WORDNET_ID = re.compile(r"[ _]n\d{8}$")


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
        non_rare: indices of those with more; None for all that are not rare.
        evaluated: indices of the interactions that the benchmark scores; None for all.
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
    non_rare: tuple[int, ...] | None = None
    evaluated: tuple[int, ...] | None = None

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

    @property
    def last_verb_id(self) -> int:
        """Id of the last verb in files of the HOIA format."""
        return self.first_verb_id + self.num_verbs - 1

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
        for name in ("non_rare", "evaluated"):
            if (indices := getattr(self, name)) is not None:
                value[name] = list(indices)
        return value

    def digest(self) -> str:
        """SHA-256 of verbs, objects and interactions, which define all indices in other files."""
        value = self.to_dict()
        return sha256_of_json({key: value[key] for key in ("objects", "verbs", "interactions")})


class _Object(Struct):
    name: Line
    id: Number


class _Verb(Struct):
    name: Line
    ing: Line


class _Split(Struct):
    unseen: list[int]
    distilled: Literal["unseen_verbs", "all_verbs"]


class _Role(Struct):
    action: str
    roles: list[str]
    verbs: list[str]


Pair = Annotated[tuple[int, int], Meta(description="[verb, object]")]


class _VocabularyFile(Struct):
    """Content of a vocabulary file; fields as in `Vocabulary`."""

    objects: Annotated[list[_Object], Meta(min_length=1)]
    verbs: Annotated[list[_Verb], Meta(min_length=1)]
    interactions: Annotated[list[Pair], Meta(min_length=1)]
    name: str | None = None
    source: str = ""
    rare: tuple[int, ...] = ()
    non_rare: tuple[int, ...] | None = None
    evaluated: tuple[int, ...] | None = None
    splits: dict[str, _Split] = {}
    roles: tuple[_Role, ...] = ()


def vocabulary_from_dict(value: Any, file: object) -> Vocabulary:
    """A vocabulary from the parsed JSON of a file, which errors name.

    Raises:
        InputError: a field is missing or wrong.
    """
    content = convert(value, _VocabularyFile, file)
    objects = tuple(one.name for one in content.objects)
    verbs = tuple(one.name for one in content.verbs)
    for name, values in (
        ("objects, name", objects),
        ("objects, id", [one.id for one in content.objects]),
        ("verbs, name", verbs),
        ("interactions", content.interactions),
    ):
        _check_unique(values, name, file)
    if "person" not in objects:
        raise bad_field(file, "objects", "an object named person", ", ".join(objects))
    for index, (verb, label) in enumerate(content.interactions):
        if not (0 <= verb < len(verbs) and 0 <= label < len(objects)):
            expected = f"[verb below {len(verbs)}, object below {len(objects)}]"
            raise bad_field(file, f"interactions[{index}]", expected, [verb, label])
    groups = {name: getattr(content, name) or () for name in ("rare", "non_rare", "evaluated")}
    for name, split in content.splits.items():
        if name == "full":
            raise bad_field(file, "splits", "names other than full (all interactions seen)", name)
        groups[f"splits.{name}.unseen"] = split.unseen
    for name, indices in groups.items():
        _check_unique(indices, name, file)
        _check_indices(indices, len(content.interactions), name, file)
    for index, row in enumerate(content.roles):
        if len(row.verbs) != max(len(row.roles), 1) or not set(row.verbs) <= set(verbs):
            expected = "names of verbs, one for each role, at least one"
            raise bad_field(file, f"roles[{index}].verbs", expected, row.verbs)
    return Vocabulary(
        name=Path(str(file)).stem if content.name is None else content.name,
        verbs=verbs,
        verb_ings=tuple(one.ing for one in content.verbs),
        objects=objects,
        category_ids=tuple(one.id for one in content.objects),
        interactions=tuple(content.interactions),
        rare=content.rare,
        splits=value.get("splits", {}),
        roles=tuple(value.get("roles", ())),
        source=content.source,
        non_rare=content.non_rare,
        evaluated=content.evaluated,
    )


def load_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """Loads a built-in vocabulary by name (one of `BUILTIN_VOCABULARIES`) or a user's JSON file.

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


def find_names(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """The index in `names` of each wanted class name, -1 for those that are not among them.

    Names may differ in case and underscores, but the same name comes first: SWIG-HOI has the
    objects "Crown" and "crown".
    """
    indices = {normalise_name(name): index for index, name in enumerate(names)}
    indices |= {name: index for index, name in enumerate(names)}
    return [indices.get(name, indices.get(normalise_name(name), -1)) for name in wanted]


def find_verbs(names: Sequence[str], ings: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """The verb of a vocabulary with each of the names, or else with each of the "-ing" forms."""
    by_name = find_names(names, vocabulary.verbs)
    by_ing = find_names(ings, vocabulary.verb_ings)
    return [ing if verb < 0 else verb for verb, ing in zip(by_name, by_ing, strict=True)]


def object_text(name: str) -> str:
    """An object's name for sentences: spaces for underscores, and no WordNet id at its end."""
    return WORDNET_ID.sub("", name).replace("_", " ")


def _check_unique(values: Sequence[Hashable], field: str, file: object) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise bad_field(file, field, "every value once", f"{value} {count} times")


def _check_indices(indices: Sequence[int], size: int, field: str, file: object) -> None:
    for index in indices:
        if not 0 <= index < size:
            raise bad_field(file, field, f"interaction numbers from 0 to {size - 1}", index)
