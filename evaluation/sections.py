"""The sections of the report that show what lies behind the headline numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.charts import Chart
from evaluation.charts.classes import MOST_NAMED, ap_by_training, class_bars
from evaluation.charts.curves import CurvePanel, precision_recall_curves, training_curves
from evaluation.charts.mistakes import MOST_BESIDE, ErrorRow, confusion_matrix, error_bars
from evaluation.charts.verbs import action_bars, teacher_and_student
from evaluation.class_rows import ClassRow
from evaluation.comparison import Comparison, action_rows
from evaluation.confusion import verb_confusion
from evaluation.error_kinds import (
    DEFINITIONS,
    TITLES,
    best_scoring,
    count_errors,
    error_kinds,
)
from evaluation.evidence import Evidence, View
from evaluation.palette import ERROR_KINDS
from evaluation.precision_recall import choose_interactions, precision_recall
from evaluation.training_log import read_training_log
from evaluation.wording import percent

MAX_ACTIONS = 40
# Pictures and confusion are shown for the first contestants; more would not be looked at.
MAX_VIEWS = 2
MAX_CONFUSIONS = 12


@dataclass(frozen=True)
class Table:
    """Numbers behind a chart: caption, names of the columns, rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """Charts under one heading.

    Attributes:
        anchor: its id on the page.
        title, note: heading and what to know before looking.
        charts: pictures, at least one.
        terms: words that the charts use, with their meaning.
        tables: numbers behind the charts.
        beside: the charts stand side by side where there is room.
    """

    anchor: str
    title: str
    note: str
    charts: tuple[Chart, ...]
    terms: dict[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    beside: bool = False


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


def by_recall(comparison: Comparison, evidence: Evidence) -> list[Section]:
    """Precision-recall curves of chosen interactions; none without detections."""
    if not evidence.views:
        return []
    vocabulary = comparison.vocabulary
    names = [vocabulary.interaction_name(index) for index in range(vocabulary.num_interactions)]
    lead = evidence.views[0]
    counts = lead.judged.positives(vocabulary.num_interactions)
    average_precision = [lead.result.per_class.get(name) for name in names]
    panels = [
        CurvePanel(
            names[index],
            place,
            index in comparison.unseen,
            int(counts[index]),
            tuple(
                (
                    view.contestant,
                    precision_recall(view.judged, index, int(counts[index])),
                    view.result.per_class.get(names[index]),
                )
                for view in evidence.views
            ),
        )
        for index, place in choose_interactions(average_precision, counts, comparison.unseen)
        if counts[index]
    ]
    if not panels:
        return []
    note = (
        f"Chosen by the AP of {lead.contestant.title.lower()} among interactions with at least five"
        " labelled instances, where there are enough."
    )
    return [Section("curves", "Precision and recall", note, (precision_recall_curves(panels),))]


def by_error(comparison: Comparison, evidence: Evidence) -> list[Section]:
    """Kinds of errors of each contestant; none without detections."""
    if not evidence.views:
        return []
    vocabulary = comparison.vocabulary
    everything = range(vocabulary.num_interactions)
    unseen = set(comparison.unseen)
    groups = {"all": list(everything)}
    if unseen:
        groups = {
            "unseen": sorted(unseen),
            "seen": [index for index in everything if index not in unseen],
        }
    rows, table = [], []
    for view in evidence.views:
        kinds = error_kinds(view.judged, vocabulary)
        for counted, which in (
            (best_scoring(view.judged, vocabulary), "best-scoring"),
            (np.ones(len(kinds), dtype=bool), "all"),
        ):
            for group, members in groups.items():
                found = count_errors(view.judged, kinds, counted, members)
                if which == "best-scoring":
                    rows.append(ErrorRow(view.contestant.title, group, found))
                numbers = (f"{found.right:,}", f"{found.wrong:,}", *map(percent, found.shares))
                table.append((view.contestant.title, group, which, *numbers))
    if not any(row.counts.wrong for row in rows):
        return []
    rows.sort(key=lambda row: list(groups).index(row.group))
    note = (
        "What is wrong with wrong detections. Detections with scores near zero cost nothing, so of"
        " every interaction only as many best-scoring detections count as it has labelled"
        " instances."
    )
    head = ("", "interactions", "detections", "right", "wrong", *(TITLES[k] for k in ERROR_KINDS))
    return [
        Section(
            "errors",
            "Kinds of errors",
            note,
            (error_bars(rows),),
            {TITLES[name]: text for name, text in DEFINITIONS.items()},
            (Table("Errors: shares by kind in % of the wrong detections", head, tuple(table)),),
        )
    ]


def by_confusion(comparison: Comparison, evidence: Evidence) -> list[Section]:
    """Confusion among verbs of the first contestants; none without detections."""
    vocabulary = comparison.vocabulary
    verbs = [verb.replace("_", " ") for verb in vocabulary.verbs]
    unseen = comparison.unseen_verbs
    charts, rows = [], []
    for place, view in enumerate(evidence.views[:MAX_VIEWS]):
        confusion = verb_confusion(view.judged, vocabulary)
        if not confusion.found:
            continue
        title = view.contestant.title
        charts.append(confusion_matrix(confusion, verbs, unseen, title, f"confusion-{place + 1}"))
        for labelled, said, pairs in confusion.worst(MAX_CONFUSIONS):
            rows.append((title, verbs[labelled], verbs[said], f"{pairs:g}"))
    if not charts:
        return []
    note = (
        "Labelled pairs that were found (right object, both boxes overlapping by half), by"
        " labelled verb, and the verb of the best-scoring detection that found them, in % of the"
        " row. A right verb stands in its own row; a wrong one is shared among the pair's labels."
    )
    head = ("", "labelled", "said", "pairs")
    table = Table("Most frequent confusions", head, tuple(rows))
    return [
        Section(
            "confusion",
            "Confusion among verbs",
            note,
            tuple(charts),
            tables=(table,) if rows else (),
            beside=vocabulary.num_verbs <= MOST_BESIDE,
        )
    ]


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


def gallery_views(evidence: Evidence) -> tuple[View, ...]:
    """The views whose detections are drawn."""
    return evidence.views[:MAX_VIEWS]
