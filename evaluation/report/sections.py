"""Sections of the report: AP by class, frequency and action, V-COCO's roles, training curves; from
single detections precision and recall, error kinds, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evaluation.analysis.class_tables import ClassRow, build_action_rows, sort_rows
from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.analysis.confusion import compute_verb_confusion
from evaluation.analysis.error_kinds import (
    ERROR_DEFINITIONS,
    ERROR_TITLES,
    ErrorCounts,
    classify_errors,
    count_errors,
    top_scoring_mask,
)
from evaluation.analysis.training_log import read_training_log
from evaluation.hico.average_precision import (
    MIN_POSITIVES,
    precision_recall_curve,
    select_interactions,
)
from evaluation.report.charts.bars import (
    MAX_NAMED_CLASSES,
    action_bars,
    class_bars,
    error_bars,
    teacher_student_chart,
)
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.plots import (
    Curve,
    ap_by_frequency,
    confusion_matrices,
    precision_recall_curves,
    training_curves,
)
from evaluation.report.inputs import ReportInputs
from evaluation.tables import format_percent
from evaluation.vcoco.average_precision import SCENARIO_KEYS

MAX_ACTION_ROWS = 40
# HICO-DET's splits have at most 255: a row for each verb and for each unseen interaction.
MAX_TEACHER_ROWS = 260
MAX_CONFUSIONS = 12


@dataclass(frozen=True)
class Table:
    """A table of numbers below the charts of a section."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        anchor: id of the section on the page.
        title, note: heading, and an explanation above the charts.
        charts: at least one.
        terms: definitions of terms in the charts.
        table: the numbers of the charts.
    """

    anchor: str
    title: str
    note: str
    charts: list[Chart]
    terms: dict[str, str] = field(default_factory=dict)
    table: Table | None = None


def build_sections(
    comparison: Comparison, inputs: ReportInputs, rows: Sequence[ClassRow]
) -> list[Section]:
    """All sections whose inputs are available, in the order of the page.

    Args:
        rows: of `comparison.with_interaction_ap`.

    Raises:
        InputError: a training log is invalid.
    """
    detailed = comparison.with_interaction_ap
    sections = [
        _build_class_section(detailed, rows),
        _build_frequency_section(detailed, rows),
        *_build_action_sections(detailed),
        _build_vcoco_section(comparison),
        _build_precision_recall_section(comparison, inputs),
        _build_error_section(comparison, inputs),
        _build_confusion_section(comparison, inputs),
        _build_training_section(comparison),
    ]
    return [section for section in sections if section is not None]


def _build_class_section(comparison: Comparison, rows: Sequence[ClassRow]) -> Section | None:
    """AP of every interaction, as a chart for the first entry."""
    if not rows:
        return None
    first = comparison.entries[0]
    content = "AP of every interaction"
    if len(rows) > MAX_NAMED_CLASSES:
        content = "All interactions by falling AP, the best and the worst by name"
    note = f"{content}: {first.title}. The table below has the numbers of all entries."
    if rows[0].num_training is not None:
        note += " It also has the numbers of labelled instances"
        if comparison.unseen:
            note += "; students were not trained with those of unseen interactions"
        note += "."
    return Section("classes", "Interaction by interaction", note, [class_bars(rows, first)])


def _build_frequency_section(comparison: Comparison, rows: Sequence[ClassRow]) -> Section | None:
    """AP against the number of training instances."""
    known = [row for row in rows if row.num_training is not None]
    if not known:
        return None
    note = "Each point is an interaction; the axis is logarithmic."
    if comparison.unseen:
        note += (
            " Unseen interactions are placed by the number of their labels in the dataset, although"
            " only a student trained with all labels had them."
        )
    chart = ap_by_frequency(known, comparison.entries)
    return Section("frequency", "AP and number of training instances", note, [chart])


def _build_action_sections(comparison: Comparison) -> list[Section]:
    """AP of every action, and student beside teacher."""
    actions, left_out = build_action_rows(comparison, MAX_ACTION_ROWS)
    if not actions:
        return []
    note = "★ Unseen actions first. " if comparison.unseen else ""
    if comparison.unseen and not comparison.unseen_verbs:
        note += (
            "In this split single interactions are unseen; each has bars of its own, and a seen"
            " action is the mean over its seen objects."
        )
    elif count := len(comparison.unseen_in_seen_verbs):
        note += (
            "Mean AP over the objects of each action; of a seen action, over its seen objects"
            f" ({count:,} unseen interactions of seen actions are only in the table above)."
        )
    else:
        note += "Mean AP over the objects of each action."
    chart = action_bars(actions, comparison.entries)
    sections = [Section("actions", "Action by action", f"{note} {left_out}".strip(), [chart])]
    student, teacher = comparison.entries[0], comparison.find("teacher")
    if teacher is None or student is teacher:
        return sections
    place = comparison.entries.index(teacher)
    all_rows, _ = build_action_rows(comparison, comparison.vocabulary.num_interactions)
    rows = [replace(row, values=(row.values[0], row.values[place])) for row in all_rows]
    if rows := [row for row in rows if None not in row.values]:
        note = "AP of the student and of its teacher for each action, joined by a line."
        if len(rows) > MAX_TEACHER_ROWS:
            note += f" Of {len(rows)} actions, the {MAX_ACTION_ROWS} with the largest differences."
            rows = sort_rows(sorted(rows, key=_difference, reverse=True)[:MAX_ACTION_ROWS])
        chart = teacher_student_chart(rows, student, teacher)
        sections.append(Section("teacher", "Teacher and student", note, [chart]))
    return sections


def _difference(row: ClassRow) -> float:
    """The distance of the two values of a row, which are not None."""
    first, second = row.values
    return abs((first or 0.0) - (second or 0.0))


def _build_training_section(comparison: Comparison) -> Section | None:
    """Training curves of the runs with a training log."""
    logs = [
        (entry, log)
        for entry in comparison.entries
        for result in entry.results
        if (log := read_training_log(result.metrics_log)) is not None
    ]
    if not logs:
        return None
    note = (
        "The terms of the training loss, the number of candidate pairs of a batch that the matching"
        " keeps, and the learning rate."
    )
    return Section("training", "Training", note, [training_curves(logs)])


def _build_vcoco_section(comparison: Comparison) -> Section | None:
    """Role AP and agent AP of every action of V-COCO."""
    roles = comparison.vcoco_roles
    entries = [
        entry for entry in comparison.entries if any(result.vcoco for result in entry.results)
    ]
    charts = []
    for name, title, pairs in (
        (
            "roles",
            "Role AP, scenario 1",
            [(action, role) for action in roles for role in roles[action]],
        ),
        ("agents", "Agent AP", [(action, "") for action in roles]),
    ):
        rows = [
            ClassRow(
                action.replace("_", " ") + (f", {role}" if role else ""),
                False,
                tuple(entry.vcoco_ap(action, role) for entry in entries),
            )
            for action, role in pairs
        ]
        rows = [row for row in rows if any(value is not None for value in row.values)]
        if rows:
            charts.append(action_bars(sort_rows(rows), entries, name, title))
    if not charts:
        return None
    note = (
        "V-COCO's own evaluation: an agent is a person who does the action, a role is an object of"
        " the action. If a role has no annotated object, scenario 1 requires an empty box and"
        " scenario 2 accepts any box."
    )
    table = _build_vcoco_table(entries, roles)
    return Section("roles", "Agents and roles", note, charts, table=table)


def _build_vcoco_table(
    entries: Sequence[ComparisonEntry], roles: Mapping[str, Sequence[str]]
) -> Table:
    rows = []
    for entry in entries:
        for action, names in roles.items():
            agent = format_percent(entry.vcoco_ap(action))
            for index, role in enumerate(names or [""]):
                values = [
                    format_percent(entry.vcoco_ap(action, role, scenario)) if role else ""
                    for scenario in SCENARIO_KEYS
                ]
                name = action.replace("_", " ")
                rows.append((entry.title, name, "" if index else agent, role, *values))
    header = ("", "action", "agent AP", "role", "role AP, scenario 1", "role AP, scenario 2")
    return Table("V-COCO's AP of every action, in %", header, rows)


def _build_precision_recall_section(comparison: Comparison, inputs: ReportInputs) -> Section | None:
    """Precision-recall curves of selected interactions."""
    if not inputs.predictions:
        return None
    vocabulary = comparison.vocabulary
    names = [vocabulary.interaction_name(index) for index in range(vocabulary.num_interactions)]
    lead = inputs.predictions[0]
    counts = lead.matched.num_positives(vocabulary.num_interactions)
    average_precision = [lead.result.per_class.get(name) for name in names]
    panels = {}
    for index, rank in select_interactions(average_precision, counts, comparison.unseen):
        count, star = int(counts[index]), "★ " if index in comparison.unseen else ""
        panels[f"{star}{names[index]}\n{rank}, {count} labelled"] = [
            Curve(
                predictions.entry,
                *precision_recall_curve(predictions.matched, index, count),
                predictions.result.per_class.get(names[index]),
            )
            for predictions in inputs.predictions
        ]
    if not panels:
        return None
    note = (
        f"The interactions are selected by the AP of {lead.entry.title.lower()}, from those with at"
        f" least {MIN_POSITIVES} labelled instances if there are enough."
    )
    return Section("curves", "Precision and recall", note, [precision_recall_curves(panels)])


def _build_error_section(comparison: Comparison, inputs: ReportInputs) -> Section | None:
    """Kinds of errors of each entry."""
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    interactions = range(vocabulary.num_interactions)
    groups: dict[str, Sequence[int]] = {"all": interactions}
    if unseen:
        groups = {"unseen": unseen, "seen": sorted(set(interactions) - set(unseen))}
    bars: dict[str, list[tuple[str, ErrorCounts]]] = {group: [] for group in groups}
    table = []
    for predictions in inputs.predictions:
        title, matched = predictions.entry.title, predictions.matched
        kinds = classify_errors(matched, vocabulary)
        best = top_scoring_mask(matched, vocabulary)
        for selection, counted in (("best-scoring", best), ("all", np.ones_like(best))):
            for group, members in groups.items():
                counts = count_errors(matched, kinds, counted, members)
                if selection == "best-scoring":
                    bars[group].append((title, counts))
                numbers = (f"{counts.num_correct:,}", f"{counts.num_wrong:,}")
                shares = map(format_percent, counts.shares)
                table.append((title, group, selection, *numbers, *shares))
    if not any(counts.num_wrong for rows in bars.values() for _, counts in rows):
        return None
    note = (
        "Kinds of false positives. Detections with scores near zero hardly change the AP, so for"
        " each interaction with N labelled instances the N best-scoring detections are counted."
    )
    header = ("", "interactions", "detections", "correct", "wrong", *ERROR_TITLES.values())
    return Section(
        "errors",
        "Kinds of errors",
        note,
        [error_bars(bars)],
        {ERROR_TITLES[name]: text for name, text in ERROR_DEFINITIONS.items()},
        Table("Errors: shares by kind in % of the wrong detections", header, table),
    )


def _build_confusion_section(comparison: Comparison, inputs: ReportInputs) -> Section | None:
    """Confusion between verbs for the first entries."""
    vocabulary = comparison.vocabulary
    verbs = [verb.replace("_", " ") for verb in vocabulary.verbs]
    confusions = [
        (predictions.entry.title, confusion)
        for predictions in inputs.detailed
        if (confusion := compute_verb_confusion(predictions.matched, vocabulary)).num_found
    ]
    if not confusions:
        return None
    rows = [
        (title, verbs[labelled], verbs[predicted], f"{pairs:g}")
        for title, confusion in confusions
        for labelled, predicted, pairs in confusion.most_frequent(MAX_CONFUSIONS)
    ]
    header = ("", "labelled", "predicted", "pairs")
    note = (
        "Rows are the verbs of labelled pairs that are detected (correct object class, IoU ≥ 0.5 of"
        " both boxes), columns the verb of the best-scoring detection, in % of the row. A correct"
        " verb is counted in its own row, a wrong one is spread over the rows of the pair's labels."
    )
    chart = confusion_matrices(confusions, verbs, comparison.unseen_verbs)
    table = Table("Most frequent confusions", header, rows) if rows else None
    return Section("confusion", "Confusion among verbs", note, [chart], table=table)
