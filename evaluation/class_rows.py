"""The results of every interaction: the rows of the report's long table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.comparison import Comparison


@dataclass(frozen=True)
class ClassRow:
    """One interaction.

    Attributes:
        name: "sit on chair".
        index: HOI index, None for a name that the vocabulary lacks.
        unseen, rare: which groups it is in.
        training, test: labelled instances in the two parts, None unknown. Labels of unseen
            interactions count too, although no student had them.
        values: AP of each contestant, None without ground truth.
    """

    name: str
    index: int | None
    unseen: bool
    rare: bool
    training: int | None
    test: int | None
    values: tuple[float | None, ...]


def class_rows(
    comparison: Comparison,
    training_counts: np.ndarray | None = None,
    test_counts: np.ndarray | None = None,
) -> list[ClassRow]:
    """Every interaction that some contestant has an AP of: the unseen ones first, each kind by
    the first contestant's AP.

    Args:
        training_counts, test_counts: (H,) labelled instances, None unknown.
    """
    vocabulary = comparison.vocabulary
    index_of = {
        vocabulary.interaction_name(index): index for index in range(vocabulary.num_interactions)
    }
    named = {
        name
        for one in comparison.contestants
        for result in one.results
        for name in result.per_class
    }
    unseen, rare = set(comparison.unseen), set(vocabulary.rare)
    rows = []
    for name in sorted(named, key=lambda name: (index_of.get(name, len(index_of)), name)):
        index = index_of.get(name)
        rows.append(
            ClassRow(
                name,
                index,
                index in unseen,
                index in rare,
                _count(training_counts, index),
                _count(test_counts, index),
                tuple(one.mean_ap([name]) for one in comparison.contestants),
            )
        )
    return sorted(rows, key=lambda row: (not row.unseen, -(row.values[0] or 0.0)))


def _count(counts: np.ndarray | None, index: int | None) -> int | None:
    return None if counts is None or index is None else int(counts[index])
