"""Rows of tables and charts by interaction and by action: AP, number of instances, frequency."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evaluation.analysis.comparison import Comparison


@dataclass(frozen=True)
class ClassRow:
    """One interaction.

    Attributes:
        name: such as "sit on chair".
        index: HOI index, None for a name that is not in the vocabulary.
        unseen, rare: groups of the interaction.
        num_training, num_test: labelled instances in the training and the test part, None unknown.
            Labels of unseen interactions are counted, although students are not trained with them.
        values: AP of each entry, None without ground truth.
    """

    name: str
    index: int | None
    unseen: bool
    rare: bool
    num_training: int | None
    num_test: int | None
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class ActionRow:
    """A verb or an interaction of a bar chart, and its AP for each entry."""

    name: str
    unseen: bool
    values: tuple[float | None, ...]

    def select(self, *indices: int) -> ActionRow:
        """The row with the values of the given entries only."""
        return replace(self, values=tuple(self.values[index] for index in indices))


def build_class_rows(
    comparison: Comparison,
    training_counts: np.ndarray | None = None,
    test_counts: np.ndarray | None = None,
) -> list[ClassRow]:
    """A row for every interaction with ground truth.

    Args:
        training_counts, test_counts: (H,) labelled instances, None unknown.

    Returns:
        unseen interactions, then seen ones, each by falling AP of the first entry.
    """
    vocabulary = comparison.vocabulary
    index_of = {
        vocabulary.interaction_name(index): index for index in range(vocabulary.num_interactions)
    }
    names = {
        name
        for entry in comparison.entries
        for result in entry.results
        for name in result.per_class
    }
    unseen, rare = set(comparison.unseen), set(vocabulary.rare)
    rows = []
    for name in sorted(names, key=lambda name: (index_of.get(name, len(index_of)), name)):
        index = index_of.get(name)
        rows.append(
            ClassRow(
                name,
                index,
                index in unseen,
                index in rare,
                _count_of(training_counts, index),
                _count_of(test_counts, index),
                tuple(entry.mean_ap([name]) for entry in comparison.entries),
            )
        )
    return sorted(rows, key=lambda row: (not row.unseen, -(row.values[0] or 0.0)))


def _count_of(counts: np.ndarray | None, index: int | None) -> int | None:
    return None if counts is None or index is None else int(counts[index])


def build_action_rows(comparison: Comparison, limit: int) -> tuple[list[ActionRow], str]:
    """Rows of the chart by action.

    There is a row for each verb, over its objects. If no verb is unseen as a whole, each unseen
    interaction has a row of its own and the verbs' rows cover their seen interactions.

    Args:
        limit: maximum number of rows; the verbs with most interactions are kept.

    Returns:
        rows, unseen ones first, each kind by falling AP of the first entry; a sentence on rows
        that are left out, "" if there are none.
    """
    vocabulary, unseen = comparison.vocabulary, set(comparison.unseen)
    unseen_verbs = set(comparison.unseen_verbs)
    groups: list[tuple[str, bool, list[int]]] = []
    if not unseen_verbs:
        groups += [(vocabulary.interaction_name(index), True, [index]) for index in sorted(unseen)]
    for verb, name in enumerate(vocabulary.verbs):
        members = [index for index, pair in enumerate(vocabulary.interactions) if pair[0] == verb]
        if verb not in unseen_verbs:
            members = [index for index in members if index not in unseen]
        groups.append((name.replace("_", " "), verb in unseen_verbs, members))
    rows = []
    for name, is_unseen, members in groups:
        names = [vocabulary.interaction_name(index) for index in members]
        values = tuple(entry.mean_ap(names) for entry in comparison.entries)
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
