"""Zero-shot splits: the unseen interactions, whose labels are removed from training.

The published splits of HICO-DET (UC, RF-UC, NF-UC, UO, UA, UV) are part of its vocabulary file.
"""

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
SPLIT_KEYS = ("unseen_verbs", "unseen_objects", "unseen_interactions")
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
    """The split with another choice of the distilled verbs.

    Args:
        split: the split.
        verbs: one of `DISTILL_CHOICES`: "split" for the choice of the split itself, "unseen" for
            all verbs of unseen interactions, "all" for all verbs except `no_interaction`.
        vocabulary: vocabulary of the split.
    """
    assert verbs in DISTILL_CHOICES
    if verbs == "split":
        return split
    distilled = np.full(vocabulary.num_verbs, verbs == "all")
    distilled[[vocabulary.interactions[hoi][0] for hoi in split.unseen]] = True
    # The teacher has no prompt for `no_interaction`.
    if vocabulary.no_interaction is not None:
        distilled[vocabulary.no_interaction] = False
    return replace(split, distilled_verbs=distilled)


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
    unseen_hois = split.unseen_mask(vocabulary.num_interactions)
    unseen_pairs = vocabulary.valid & unseen_hois[vocabulary.interaction_ids]
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
    return Annotation(
        image_id=annotation.image_id,
        boxes=annotation.boxes[kept],
        labels=annotation.labels[kept],
        hois=np.column_stack([renumbered[hois[:, 0]], renumbered[hois[:, 1]], hois[:, 2]]),
        size=annotation.size,
        coco_image_id=annotation.coco_image_id,
    )


def _build_split(
    vocabulary: Vocabulary, name: str, unseen: set[int], unseen_verbs_only: bool
) -> Split:
    """A split from its unseen interactions.

    Args:
        unseen_verbs_only: distil only the verbs whose interactions are all unseen, instead of all
            verbs.
    """
    seen_verbs = {
        verb for hoi, (verb, _) in enumerate(vocabulary.interactions) if hoi not in unseen
    }
    unseen_verbs = {vocabulary.interactions[hoi][0] for hoi in unseen} - seen_verbs
    distilled = np.ones(vocabulary.num_verbs, dtype=bool)
    if unseen_verbs_only:
        distilled[:] = False
        distilled[sorted(unseen_verbs)] = True
    # The teacher has no prompt for `no_interaction`.
    if vocabulary.no_interaction is not None:
        distilled[vocabulary.no_interaction] = False
    return Split(name, tuple(sorted(unseen)), distilled)


def _read_split_file(vocabulary: Vocabulary, path: Path) -> Split:
    value = read_toml(path)
    for key in value:
        if key not in SPLIT_KEYS:
            raise bad_field(path, key, f"only {', '.join(SPLIT_KEYS)}", "an unknown field")
    verbs = {
        _name_index(path, "unseen_verbs", "verb", vocabulary.verbs, name)
        for name in _read_list(path, value, "unseen_verbs")
    }
    objects = {
        _name_index(path, "unseen_objects", "object", vocabulary.objects, name)
        for name in _read_list(path, value, "unseen_objects")
    }
    unseen = {
        hoi
        for hoi, (verb, label) in enumerate(vocabulary.interactions)
        if verb in verbs or label in objects
    }
    for pair in _read_list(path, value, "unseen_interactions"):
        unseen.add(_interaction_index(path, vocabulary, pair))
    if not unseen:
        expected = f"at least one unseen interaction in {', '.join(SPLIT_KEYS)}"
        raise bad_field(path, "split", expected, "none (that is the split full)")
    if len(unseen) == vocabulary.num_interactions:
        raise bad_field(path, "split", "at least one seen interaction", "all of them unseen")
    name = path.name if path.stem in split_names(vocabulary) else path.stem
    return _build_split(vocabulary, name, unseen, unseen_verbs_only=set(value) == {"unseen_verbs"})


def _read_list(path: Path, value: dict[str, Any], field: str) -> list[Any]:
    entries = value.get(field, [])
    if not isinstance(entries, list):
        raise bad_field(path, field, "a list", entries)
    return entries


def _name_index(path: Path, field: str, kind: str, names: tuple[str, ...], name: Any) -> int:
    """Index of a name; spaces and underscores are equivalent."""
    known = [entry.replace(" ", "_") for entry in names]
    normalised = name.replace(" ", "_") if isinstance(name, str) else name
    if normalised not in known:
        raise bad_field(path, field, f"{kind}s of the vocabulary ({_preview(names)})", name)
    return known.index(normalised)


def _preview(names: tuple[str, ...], max_names: int = 20) -> str:
    return ", ".join(names[:max_names]) + (", ..." if len(names) > max_names else "")


def _interaction_index(path: Path, vocabulary: Vocabulary, pair: Any) -> int:
    field = "unseen_interactions"
    if not isinstance(pair, list) or len(pair) != 2:
        raise bad_field(path, field, "[verb, object] pairs", pair)
    verb = _name_index(path, field, "verb", vocabulary.verbs, pair[0])
    label = _name_index(path, field, "object", vocabulary.objects, pair[1])
    hoi = int(vocabulary.interaction_ids[verb, label])
    if hoi < 0:
        valid = tuple(vocabulary.objects[label] for label in np.flatnonzero(vocabulary.valid[verb]))
        expected = f"an object of the interactions of {vocabulary.verbs[verb]} ({_preview(valid)})"
        raise bad_field(path, field, expected, pair)
    return hoi
