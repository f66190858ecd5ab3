"""Zero-shot splits: which interactions training must not see a label of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_toml
from pipeline.vocabulary import Vocabulary

FULL = "full"
FIELDS = ("unseen_verbs", "unseen_objects", "unseen_interactions")
ASKED = ("split", "unseen", "all")


@dataclass(frozen=True, eq=False)
class Split:
    """What is unseen.

    Attributes:
        name: the shipped name, or a user's file without its ending.
        unseen: ids of the unseen interactions, in rising order.
        asked_verbs: (V,) bool, the verbs for which the teacher is asked (`u` of the method).
    """

    name: str
    unseen: tuple[int, ...]
    asked_verbs: np.ndarray

    def unseen_mask(self, num_interactions: int) -> np.ndarray:
        """(H,) bool: the interaction is unseen."""
        mask = np.zeros(num_interactions, dtype=bool)
        mask[list(self.unseen)] = True
        return mask


def split_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The shipped splits of a vocabulary; `full`, where everything is seen, is always there."""
    return (FULL, *vocabulary.splits)


def load_split(vocabulary: Vocabulary, name_or_path: str | Path) -> Split:
    """A split by name, or a user's TOML file.

    The file holds at least one of `unseen_verbs = [names]`, `unseen_objects = [names]` and
    `unseen_interactions = [[verb, object], ...]`; what any of them names is unseen.

    Raises:
        InputError: no such split, a name the vocabulary lacks, or nothing left to see.
    """
    name = str(name_or_path)
    if name == FULL:
        return Split(FULL, (), np.zeros(vocabulary.num_verbs, dtype=bool))
    if name in vocabulary.splits:
        entry = vocabulary.splits[name]
        only_verbs = entry["asked"] == "unseen_verbs"
        return _split(vocabulary, name, set(entry["unseen"]), only_verbs)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"{name}: no such split of {vocabulary.name}; expected one of"
            f" {', '.join(split_names(vocabulary))} or a TOML file"
        )
    return _user_split(vocabulary, path)


def ask_for(split: Split, verbs: str, vocabulary: Vocabulary) -> Split:
    """The split with another choice of the verbs that the teacher is asked for.

    Args:
        split: what is unseen.
        verbs: one of `ASKED`: "split" as the setting has it, "unseen" the verbs of unseen
            interactions, "all" every verb but no interaction.
        vocabulary: the split's.
    """
    assert verbs in ASKED
    if verbs == "split":
        return split
    asked = np.full(vocabulary.num_verbs, verbs == "all")
    asked[[vocabulary.interactions[hoi][0] for hoi in split.unseen]] = True
    # The teacher has no prompt for "no interaction", hence no answer.
    if vocabulary.no_interaction is not None:
        asked[vocabulary.no_interaction] = False
    return replace(split, asked_verbs=asked)


def keep_seen(
    annotation: Annotation, split: Split, vocabulary: Vocabulary, shown: Collection[int] = ()
) -> Annotation:
    """What training may look at: no unseen label, and no box that only unseen labels point at.

    A label without object goes when its verb is unseen with every object.

    Args:
        annotation: all labels.
        split: what is unseen.
        vocabulary: of both.
        shown: rows of `annotation.hois` that stay, unseen or not.
    """
    unseen_hois = split.unseen_mask(vocabulary.num_interactions)
    unseen_pairs = vocabulary.valid & unseen_hois[vocabulary.interaction_ids]
    unseen_verbs = unseen_pairs.any(axis=1) & (unseen_pairs == vocabulary.valid).all(axis=1)
    objects, verbs = annotation.hois[:, 1:].T
    labels = annotation.labels[objects]
    unseen = np.where(objects >= 0, unseen_pairs[verbs, labels], unseen_verbs[verbs])
    unseen[list(shown)] = False
    hois = annotation.hois[~unseen]
    named = np.unique(hois[:, :2])
    kept = named[named >= 0]
    # The last row answers for -1, the object of a verb without object.
    renumbered = np.full(len(annotation.boxes) + 1, -1, dtype=np.int64)
    renumbered[kept] = np.arange(len(kept))
    return Annotation(
        image_id=annotation.image_id,
        boxes=annotation.boxes[kept],
        labels=annotation.labels[kept],
        hois=np.column_stack([renumbered[hois[:, 0]], renumbered[hois[:, 1]], hois[:, 2]]),
        size=annotation.size,
        number=annotation.number,
    )


def _split(vocabulary: Vocabulary, name: str, unseen: set[int], only_verbs: bool) -> Split:
    """A split from its unseen interactions.

    Args:
        only_verbs: the teacher is asked for the verbs that are unseen altogether, not for all.
    """
    seen_verbs = {
        verb for hoi, (verb, _) in enumerate(vocabulary.interactions) if hoi not in unseen
    }
    unseen_verbs = {vocabulary.interactions[hoi][0] for hoi in unseen} - seen_verbs
    asked = np.ones(vocabulary.num_verbs, dtype=bool)
    if only_verbs:
        asked[:] = False
        asked[sorted(unseen_verbs)] = True
    # The teacher has no prompt for "no interaction", hence no answer.
    if vocabulary.no_interaction is not None:
        asked[vocabulary.no_interaction] = False
    return Split(name, tuple(sorted(unseen)), asked)


def _user_split(vocabulary: Vocabulary, path: Path) -> Split:
    value = read_toml(path)
    for key in value:
        if key not in FIELDS:
            raise bad_field(path, key, f"only {', '.join(FIELDS)}", "an unknown field")
    verbs = {
        _number(path, "unseen_verbs", "verb", vocabulary.verbs, name)
        for name in _list(path, value, "unseen_verbs")
    }
    objects = {
        _number(path, "unseen_objects", "object", vocabulary.objects, name)
        for name in _list(path, value, "unseen_objects")
    }
    unseen = {
        hoi
        for hoi, (verb, label) in enumerate(vocabulary.interactions)
        if verb in verbs or label in objects
    }
    for pair in _list(path, value, "unseen_interactions"):
        unseen.add(_interaction(path, vocabulary, pair))
    if not unseen:
        expected = f"at least one unseen interaction in {', '.join(FIELDS)}"
        raise bad_field(path, "split", expected, "none; for none, the split is named full")
    if len(unseen) == vocabulary.num_interactions:
        raise bad_field(path, "split", "at least one seen interaction", "all of them unseen")
    name = path.name if path.stem in split_names(vocabulary) else path.stem
    return _split(vocabulary, name, unseen, only_verbs=set(value) == {"unseen_verbs"})


def _list(path: Path, value: dict[str, Any], field: str) -> list[Any]:
    entries = value.get(field, [])
    if not isinstance(entries, list):
        raise bad_field(path, field, "a list", entries)
    return entries


def _number(path: Path, field: str, kind: str, names: tuple[str, ...], name: Any) -> int:
    """Index of a name; spaces may stand for underscores."""
    known = [entry.replace(" ", "_") for entry in names]
    wanted = name.replace(" ", "_") if isinstance(name, str) else name
    if wanted not in known:
        raise bad_field(path, field, f"{kind}s of the vocabulary ({_some(names)})", name)
    return known.index(wanted)


def _some(names: tuple[str, ...], most: int = 20) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _interaction(path: Path, vocabulary: Vocabulary, pair: Any) -> int:
    field = "unseen_interactions"
    if not isinstance(pair, list) or len(pair) != 2:
        raise bad_field(path, field, "[verb, object] pairs", pair)
    verb = _number(path, field, "verb", vocabulary.verbs, pair[0])
    label = _number(path, field, "object", vocabulary.objects, pair[1])
    hoi = int(vocabulary.interaction_ids[verb, label])
    if hoi < 0:
        fitting = tuple(vocabulary.objects[o] for o in np.flatnonzero(vocabulary.valid[verb]))
        expected = f"an object that {vocabulary.verbs[verb]} goes with ({_some(fitting)})"
        raise bad_field(path, field, expected, pair)
    return hoi
