"""The report's sections; each part gives none where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.class_rows import ClassRow
from evaluation.comparison import Comparison
from evaluation.evidence import Evidence
from evaluation.sections.detections import by_confusion, by_error, by_recall
from evaluation.sections.roles import by_role
from evaluation.sections.scores import by_action, by_class, by_training, by_training_step
from evaluation.sections.section import Section, Table

__all__ = ["Section", "Table", "build_sections", "by_class"]


def build_sections(
    comparison: Comparison, evidence: Evidence, rows: Sequence[ClassRow]
) -> list[Section]:
    """All sections but that of every interaction, in the page's order.

    Args:
        rows: of `comparison.by_interaction`.

    Raises:
        InputError: a training log is wrong.
    """
    return [
        *by_training(comparison.by_interaction, rows),
        *by_action(comparison.by_interaction),
        *by_role(comparison),
        *by_recall(comparison, evidence),
        *by_error(comparison, evidence),
        *by_confusion(comparison, evidence),
        *by_training_step(comparison),
    ]
