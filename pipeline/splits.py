"""Zero-shot splits: the unseen interactions, whose labels are removed from training.

The published splits of HICO-DET (UC, RF-UC, NF-UC, UO, UA, UV) are part of its vocabulary file,
`pipeline/data/hico-det.json`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_toml
from pipeline.utils.schema import convert
from pipeline.vocabulary import Vocabulary

FULL = "full"
DISTILL_CHOICES = ("split", "unseen", "all")


@dataclass(frozen=True, eq=False)
class Split:
    """Unseen interactions, and the verbs whose teacher probabilities are distilled.

    Attributes:
        name: name of a built-in split, or of the user's file without its ending.
        unseen: ids of the unseen interactions, in ascending order.
        distilled_verbs: (V,) bool, verbs for which the teacher predicts probabilities.
    """

    name: str
    unseen: tuple[int, ...]
    distilled_verbs: np.ndarray

    def unseen_mask(self, num_interactions: int) -> np.ndarray:
        """(H,) bool: the interaction is unseen."""
        mask = np.zeros(num_interactions, dtype=bool)
        mask[list(self.unseen)] = True
        return mask


def split_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Names of a vocabulary's splits. `full`, in which every interaction is seen, always exists."""
    return (FULL, *vocabulary.splits)


def load_split(vocabulary: Vocabulary, name_or_path: str | Path) -> Split:
    """Loads a split by its name or from a TOML file.

    The file has at least one of the keys `unseen_verbs = [names]`, `unseen_objects = [names]` and
    `unseen_interactions = [[verb, object], ...]`. An interaction is unseen if any of them names it,
    its verb or its object.

    Raises:
        InputError: there is no such split or file, the file has a name that is not in the
            vocabulary, or no or all interactions are unseen.
    """
    name = str(name_or_path)
    if name == FULL:
        return Split(FULL, (), np.zeros(vocabulary.num_verbs, dtype=bool))
    if name in vocabulary.splits:
        entry = vocabulary.splits[name]
        unseen_verbs_only = entry["distilled"] == "unseen_verbs"
        return _build_split(vocabulary, name, set(entry["unseen"]), unseen_verbs_only)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"{name}: no such split of {vocabulary.name}; expected one of"
            f" {', '.join(split_names(vocabulary))} or a TOML file"
        )
    return _read_split_file(vocabulary, path)


def select_distilled_verbs(split: Split, verbs: str, vocabulary: Vocabulary) -> Split:
    """The split with another choice of the distilled verbs, one of `DISTILL_CHOICES`.

    "split" is the choice of the split itself, "unseen" all verbs of unseen interactions, and "all"
    all verbs except `no_interaction`.
    """
    assert verbs in DISTILL_CHOICES
    if verbs == "split":
        return split
    distilled = _verb_mask(vocabulary, split.unseen) | (verbs == "all")
    return replace(split, distilled_verbs=_without_no_interaction(distilled, vocabulary))


def unseen_verb_objects(split: Split, vocabulary: Vocabulary) -> np.ndarray:
    """(V, O) bool: verb and object form an unseen interaction."""
    unseen = split.unseen_mask(vocabulary.num_interactions)
    return vocabulary.valid & unseen[vocabulary.interaction_ids]


def remove_unseen_labels(
    annotation: Annotation,
    split: Split,
    vocabulary: Vocabulary,
    few_shot_rows: Collection[int] = (),
) -> Annotation:
    """The annotation for training: without labels of unseen interactions and unlabelled boxes.

    A label without object is removed if its verb is unseen with every object.

    Args:
        annotation: annotation with all labels.
        split: the unseen interactions.
        vocabulary: vocabulary of the annotation and the split.
        few_shot_rows: rows of `annotation.hois` that are kept even if they are unseen.
    """
    unseen_pairs = unseen_verb_objects(split, vocabulary)
    unseen_verbs = unseen_pairs.any(axis=1) & (unseen_pairs == vocabulary.valid).all(axis=1)
    objects, verbs = annotation.hois[:, 1:].T
    labels = annotation.labels[objects]
    unseen = np.where(objects >= 0, unseen_pairs[verbs, labels], unseen_verbs[verbs])
    unseen[list(few_shot_rows)] = False
    hois = annotation.hois[~unseen]
    named = np.unique(hois[:, :2])
    kept = named[named >= 0]
    # The additional last entry maps object -1 (a verb without object) to -1.
    renumbered = np.full(len(annotation.boxes) + 1, -1, dtype=np.int64)
    renumbered[kept] = np.arange(len(kept))
    return replace(
        annotation,
        boxes=annotation.boxes[kept],
        labels=annotation.labels[kept],
        hois=np.column_stack([renumbered[hois[:, :2]], hois[:, 2]]),
    )


def _build_split(
    vocabulary: Vocabulary, name: str, unseen: set[int], unseen_verbs_only: bool
) -> Split:
    """A split that distils all verbs, or only those whose interactions are all unseen."""
    distilled = np.ones(vocabulary.num_verbs, dtype=bool)
    if unseen_verbs_only:
        seen = set(range(vocabulary.num_interactions)) - unseen
        distilled = _verb_mask(vocabulary, unseen) & ~_verb_mask(vocabulary, seen)
    return Split(name, tuple(sorted(unseen)), _without_no_interaction(distilled, vocabulary))


def _verb_mask(vocabulary: Vocabulary, hois: Collection[int]) -> np.ndarray:
    """(V,) bool: the verbs of interactions."""
    mask = np.zeros(vocabulary.num_verbs, dtype=bool)
    mask[[vocabulary.interactions[hoi][0] for hoi in hois]] = True
    return mask


def _without_no_interaction(mask: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """A (V,) mask of verbs without `no_interaction`, for which the teacher has no prompt."""
    if vocabulary.no_interaction is not None:
        mask[vocabulary.no_interaction] = False
    return mask


class _SplitFile(Struct, forbid_unknown_fields=True):
    unseen_verbs: list[Any] = []
    unseen_objects: list[Any] = []
    unseen_interactions: list[
        Annotated[tuple[Any, Any], Meta(description="a [verb, object] pair")]
    ] = []


def _read_split_file(vocabulary: Vocabulary, path: Path) -> Split:
    value = read_toml(path)
    content = convert(value, _SplitFile, path)
    verbs = {
        _name_index(path, "unseen_verbs", "verb", vocabulary.verbs, name)
        for name in content.unseen_verbs
    }
    objects = {
        _name_index(path, "unseen_objects", "object", vocabulary.objects, name)
        for name in content.unseen_objects
    }
    unseen = {
        hoi
        for hoi, (verb, label) in enumerate(vocabulary.interactions)
        if verb in verbs or label in objects
    }
    unseen |= {_interaction_index(path, vocabulary, *pair) for pair in content.unseen_interactions}
    if not unseen:
        expected = f"at least one unseen interaction in {', '.join(_SplitFile.__struct_fields__)}"
        raise bad_field(path, "split", expected, "none (that is the split full)")
    if len(unseen) == vocabulary.num_interactions:
        raise bad_field(path, "split", "at least one seen interaction", "all of them unseen")
    name = path.name if path.stem in split_names(vocabulary) else path.stem
    return _build_split(vocabulary, name, unseen, unseen_verbs_only=set(value) == {"unseen_verbs"})


def _name_index(path: Path, field: str, kind: str, names: tuple[str, ...], name: Any) -> int:
    """Index of a name; spaces and underscores are equivalent."""
    known = [entry.replace(" ", "_") for entry in names]
    normalised = name.replace(" ", "_") if isinstance(name, str) else name
    if normalised not in known:
        raise bad_field(path, field, f"{kind}s of the vocabulary ({_preview(names)})", name)
    return known.index(normalised)


def _preview(names: tuple[str, ...], max_names: int = 20) -> str:
    return ", ".join(names[:max_names]) + (", ..." if len(names) > max_names else "")


def _interaction_index(path: Path, vocabulary: Vocabulary, verb_name: Any, object_name: Any) -> int:
    field = "unseen_interactions"
    verb = _name_index(path, field, "verb", vocabulary.verbs, verb_name)
    label = _name_index(path, field, "object", vocabulary.objects, object_name)
    hoi = int(vocabulary.interaction_ids[verb, label])
    if hoi < 0:
        valid = tuple(vocabulary.objects[label] for label in np.flatnonzero(vocabulary.valid[verb]))
        expected = f"an object of the interactions of {verb_name} ({_preview(valid)})"
        raise bad_field(path, field, expected, object_name)
    return hoi
