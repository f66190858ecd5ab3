"""Rows of tables and charts by interaction and by action: AP, number of instances, frequency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.analysis.comparison import Comparison


@dataclass(frozen=True)
class ClassRow:
    """An interaction, or an action: a verb over its objects.

    Attributes:
        name: such as "sit on chair".
        unseen, rare: groups of the interaction.
        values: AP of each entry, None without ground truth.
        num_training, num_test: labelled instances in the training and the test part, None unknown.
            Labels of unseen interactions are counted, although students are not trained with them.
    """

    name: str
    unseen: bool
    values: tuple[float | None, ...]
    rare: bool = False
    num_training: int | None = None
    num_test: int | None = None


def build_class_rows(
    comparison: Comparison,
    training_counts: np.ndarray | None = None,
    test_counts: np.ndarray | None = None,
) -> list[ClassRow]:
    """A row for every interaction with ground truth, also for names outside the vocabulary.

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
        num_training, num_test = (
            None if counts is None or index is None else int(counts[index])
            for counts in (training_counts, test_counts)
        )
        values = tuple(entry.mean_ap([name]) for entry in comparison.entries)
        rows.append(ClassRow(name, index in unseen, values, index in rare, num_training, num_test))
    return sort_rows(rows)


def sort_rows(rows: list[ClassRow]) -> list[ClassRow]:
    """The rows, unseen ones first, each kind by falling AP of the first entry."""
    return sorted(rows, key=lambda row: (not row.unseen, -(row.values[0] or 0.0)))


def build_action_rows(comparison: Comparison, limit: int) -> tuple[list[ClassRow], str]:
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
    names = [vocabulary.interaction_name(index) for index in range(vocabulary.num_interactions)]
    groups: list[tuple[str, bool, list[str]]] = []
    if not comparison.unseen_verbs:
        groups += [(names[index], True, [names[index]]) for index in comparison.unseen]
    for verb, name in enumerate(vocabulary.verbs):
        verb_unseen = verb in comparison.unseen_verbs
        members = [
            names[index]
            for index, pair in enumerate(vocabulary.interactions)
            if pair[0] == verb and (verb_unseen or index not in unseen)
        ]
        groups.append((name.replace("_", " "), verb_unseen, members))
    # Unseen ones first, then those with most interactions.
    groups.sort(key=lambda group: (not group[1], -len(group[2])))
    rows = [
        ClassRow(name, is_unseen, tuple(entry.mean_ap(members) for entry in comparison.entries))
        for name, is_unseen, members in groups
    ]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    num_left_out = len(rows) - limit
    note = f"The {num_left_out} actions with fewest objects are left out."
    return sort_rows(rows[:limit]), note if num_left_out > 0 else ""
