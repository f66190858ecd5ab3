"""Rows per interaction and per action: average precision, training instances, frequency."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evaluation.analysis.comparison import Comparison


@dataclass(frozen=True)
class ClassRow:
    """One interaction.

    Attributes:
        name: "sit on chair".
        index: HOI index, None for a name that the vocabulary lacks.
        unseen, rare: which groups it is in.
        num_training, num_test: labelled instances in the two parts, None unknown. Labels of unseen
            interactions count too, although no student had them.
        values: AP of each entry, None without ground truth.
    """

    name: str
    index: int | None
    unseen: bool
    rare: bool
    num_training: int | None
    num_test: int | None
    values: tuple[float | None, ...]


def build_class_rows(
    comparison: Comparison,
    training_counts: np.ndarray | None = None,
    test_counts: np.ndarray | None = None,
) -> list[ClassRow]:
    """Every interaction that some entry has an AP of: the unseen ones first, each kind by
    the first entry's AP.

    Args:
        training_counts, test_counts: (H,) labelled instances, None unknown.
    """
    vocabulary = comparison.vocabulary
    index_of = {
        vocabulary.interaction_name(index): index for index in range(vocabulary.num_interactions)
    }
    named = {
        name for one in comparison.entries for result in one.results for name in result.per_class
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
                _count_of(training_counts, index),
                _count_of(test_counts, index),
                tuple(one.mean_ap([name]) for one in comparison.entries),
            )
        )
    return sorted(rows, key=lambda row: (not row.unseen, -(row.values[0] or 0.0)))


def _count_of(counts: np.ndarray | None, index: int | None) -> int | None:
    return None if counts is None or index is None else int(counts[index])


@dataclass(frozen=True)
class ActionRow:
    """A row of the chart: a verb or an interaction, and its AP for each entry."""

    name: str
    unseen: bool
    values: tuple[float | None, ...]

    def select(self, *places: int) -> ActionRow:
        """The same row with some entries only."""
        return replace(self, values=tuple(self.values[place] for place in places))


def build_action_rows(comparison: Comparison, limit: int) -> tuple[list[ActionRow], str]:
    """Rows of the per-action chart, unseen ones first, each kind by the first entry's AP.

    Verbs; where no verb is unseen as a whole, the unseen interactions stand before the verbs'
    seen part.

    Args:
        limit: how many rows at most; when there are more, the ones with most interactions stay.

    Returns:
        rows and what was left out, "" when nothing was.
    """
    vocabulary, unseen = comparison.vocabulary, set(comparison.unseen)
    verbs = set(comparison.unseen_verbs)
    groups: list[tuple[str, bool, list[int]]] = []
    if not verbs:
        groups += [(vocabulary.interaction_name(index), True, [index]) for index in sorted(unseen)]
    for verb, name in enumerate(vocabulary.verbs):
        own = [index for index, pair in enumerate(vocabulary.interactions) if pair[0] == verb]
        members = own if verb in verbs else [index for index in own if index not in unseen]
        groups.append((name.replace("_", " "), verb in verbs, members))
    rows = []
    for name, is_unseen, members in groups:
        names = [vocabulary.interaction_name(index) for index in members]
        values = tuple(one.mean_ap(names) for one in comparison.entries)
        if any(value is not None for value in values):
            rows.append((len(members), ActionRow(name, is_unseen, values)))
    kept = sorted(rows, key=lambda row: (not row[1].unseen, -row[0]))[:limit]
    left_out = (
        f"The {len(rows) - len(kept)} actions with fewest objects are left out."
        if len(rows) > len(kept)
        else ""
    )
    actions = [action for _, action in kept]
    actions.sort(key=lambda action: (not action.unseen, -(action.values[0] or 0.0)))
    return actions, left_out
