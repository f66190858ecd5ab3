"""The sections that follow from the scores of single interactions, and from training logs."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.action_rows import action_rows
from evaluation.charts.classes import MOST_NAMED, ap_by_training, class_bars
from evaluation.charts.curves import training_curves
from evaluation.charts.verbs import action_bars, teacher_and_student
from evaluation.class_rows import ClassRow
from evaluation.comparison import Comparison
from evaluation.sections.section import Section
from evaluation.training_log import read_training_log

MAX_ACTIONS = 40


def by_class(comparison: Comparison, rows: Sequence[ClassRow]) -> Section:
    """AP of every interaction of the first contestant."""
    first = comparison.contestants[0]
    what = "AP of every interaction"
    if len(rows) > MOST_NAMED:
        what = "All interactions by falling AP, the best and the worst by name"
    note = f"{what}: {first.title}. The table below has everybody's numbers."
    return Section("classes", "Interaction by interaction", note, (class_bars(rows, first),))


def by_training(comparison: Comparison, rows: Sequence[ClassRow]) -> list[Section]:
    """AP against the number of training instances; none where that is unknown."""
    known = [row for row in rows if row.training is not None]
    if not known:
        return []
    note = "Each point is an interaction; the axis is logarithmic."
    if comparison.unseen:
        note += (
            " Unseen interactions stand where their labels would have put them: the labels are in"
            " the dataset, but no student had them, except where it says all labels."
        )
    chart = ap_by_training(known, comparison.contestants)
    return [Section("frequency", "How much training data it takes", note, (chart,))]


def by_action(comparison: Comparison) -> list[Section]:
    """AP of every action, and the student beside its teacher; none without known interactions."""
    actions, left_out = action_rows(comparison, MAX_ACTIONS)
    if not actions:
        return []
    note = "★ Unseen actions first. " if comparison.unseen else ""
    if comparison.unseen and not comparison.unseen_verbs:
        note += (
            "Here single interactions are unseen, each with its own bars; an action among the seen"
            " counts its seen objects only."
        )
    else:
        note += "Mean AP over the objects of each action."
    chart = action_bars(actions, comparison.contestants)
    sections = [Section("actions", "Action by action", f"{note} {left_out}".strip(), (chart,))]
    student, teacher = comparison.contestants[0], comparison.find("teacher")
    if teacher is not None and student is not teacher:
        place = comparison.contestants.index(teacher)
        everything, _ = action_rows(comparison, comparison.vocabulary.num_interactions)
        both = [one for row in everything if None not in (one := row.of(0, place)).values]
        if not both:
            return sections
        chart = teacher_and_student(both, student, teacher)
        note = "A line between the two; where the student is right of its teacher, it is ahead."
        sections.append(Section("teacher", "Teacher and student", note, (chart,)))
    return sections


def by_training_step(comparison: Comparison) -> list[Section]:
    """Training curves of the runs that kept a log."""
    logs = [
        (one, log)
        for one in comparison.contestants
        for result in one.results
        if (log := read_training_log(result.metrics_log)) is not None
    ]
    if not logs:
        return []
    note = "The parts of the loss as the runs logged them, and the learning rate."
    return [Section("training", "Training", note, (training_curves(logs),))]
