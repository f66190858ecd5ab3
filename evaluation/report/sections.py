"""Sections of the report: AP by class, frequency and action, V-COCO's roles, training curves; from
single detections precision and recall, error kinds, confusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.analysis.class_tables import ActionRow, ClassRow, build_action_rows
from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.analysis.confusion import compute_verb_confusion
from evaluation.analysis.error_kinds import (
    ERROR_DEFINITIONS,
    ERROR_TITLES,
    classify_errors,
    count_errors,
    top_scoring_mask,
)
from evaluation.analysis.precision_recall import (
    MIN_POSITIVES,
    precision_recall_curve,
    select_interactions,
)
from evaluation.analysis.training_log import read_training_log
from evaluation.report.charts.bars import (
    MAX_NAMED_CLASSES,
    ErrorRow,
    action_bars,
    class_bars,
    error_bars,
    teacher_student_chart,
)
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.plots import (
    MAX_SIDE_BY_SIDE,
    CurvePanel,
    ap_by_frequency,
    confusion_matrix,
    precision_recall_curves,
    training_curves,
)
from evaluation.report.inputs import ReportInputs
from evaluation.tables import format_percent
from evaluation.vcoco.average_precision import SCENARIO_KEYS, ActionResults

MAX_ACTION_ROWS = 40
MAX_CONFUSIONS = 12
# Returns the AP of an action's agents, or of one of its roles in a scenario.
ApGetter = Callable[[ActionResults], float | None]


@dataclass(frozen=True)
class Table:
    """A table of numbers below the charts of a section."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        anchor: id of the section on the page.
        title, note: heading, and an explanation above the charts.
        charts: at least one.
        terms: definitions of terms in the charts.
        tables: the numbers of the charts.
        side_by_side: whether wide windows show the charts side by side.
    """

    anchor: str
    title: str
    note: str
    charts: tuple[Chart, ...]
    terms: dict[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    side_by_side: bool = False


def build_class_section(comparison: Comparison, rows: Sequence[ClassRow]) -> Section:
    """AP of every interaction, as a chart for the first entry."""
    first = comparison.entries[0]
    content = "AP of every interaction"
    if len(rows) > MAX_NAMED_CLASSES:
        content = "All interactions by falling AP, the best and the worst by name"
    note = f"{content}: {first.title}. The table below has the numbers of all entries."
    return Section("classes", "Interaction by interaction", note, (class_bars(rows, first),))


def build_frequency_sections(comparison: Comparison, rows: Sequence[ClassRow]) -> list[Section]:
    """AP against the number of training instances; no section if these are unknown."""
    known = [row for row in rows if row.num_training is not None]
    if not known:
        return []
    note = "Each point is an interaction; the axis is logarithmic."
    if comparison.unseen:
        note += (
            " Unseen interactions are placed by the number of their labels in the dataset, although"
            " only a student trained with all labels had them."
        )
    chart = ap_by_frequency(known, comparison.entries)
    return [Section("frequency", "AP and number of training instances", note, (chart,))]


def build_action_sections(comparison: Comparison) -> list[Section]:
    """AP of every action, and student beside teacher; no section without AP of interactions."""
    actions, left_out = build_action_rows(comparison, MAX_ACTION_ROWS)
    if not actions:
        return []
    note = "★ Unseen actions first. " if comparison.unseen else ""
    if comparison.unseen and not comparison.unseen_verbs:
        note += (
            "In this split single interactions are unseen; each has bars of its own, and a seen"
            " action is the mean over its seen objects."
        )
    else:
        note += "Mean AP over the objects of each action."
    chart = action_bars(actions, comparison.entries)
    sections = [Section("actions", "Action by action", f"{note} {left_out}".strip(), (chart,))]
    student, teacher = comparison.entries[0], comparison.find("teacher")
    if teacher is not None and student is not teacher:
        index = comparison.entries.index(teacher)
        all_rows, _ = build_action_rows(comparison, comparison.vocabulary.num_interactions)
        rows = [row.select(0, index) for row in all_rows]
        rows = [row for row in rows if None not in row.values]
        if not rows:
            return sections
        chart = teacher_student_chart(rows, student, teacher)
        note = "AP of the student and of its teacher for each action, joined by a line."
        sections.append(Section("teacher", "Teacher and student", note, (chart,)))
    return sections


def build_training_sections(comparison: Comparison) -> list[Section]:
    """Training curves of the runs with a training log."""
    logs = [
        (entry, log)
        for entry in comparison.entries
        for result in entry.results
        if (log := read_training_log(result.metrics_log)) is not None
    ]
    if not logs:
        return []
    note = "The terms of the training loss, and the learning rate."
    return [Section("training", "Training", note, (training_curves(logs),))]


def build_vcoco_sections(comparison: Comparison) -> list[Section]:
    """Role AP and agent AP of every action of V-COCO; no section without V-COCO's scores."""
    entries = [entry for entry in comparison.entries if entry.vcoco_actions()]
    if not entries:
        return []
    actions = list(dict.fromkeys(name for entry in entries for name in entry.vcoco_actions()))
    role_rows: list[tuple[str, str, ApGetter]] = [
        (f"{_display_name(action)}, {role}", action, _role_ap(role, SCENARIO_KEYS[0]))
        for action in actions
        for role in dict.fromkeys(role for entry in entries for role in entry.vcoco_roles(action))
    ]
    agent_rows: list[tuple[str, str, ApGetter]] = [
        (_display_name(action), action, _agent_ap) for action in actions
    ]
    charts = [
        action_bars(rows, entries, name, title, panel=title)
        for name, title, row_specs in (
            ("roles", "Role AP, scenario 1", role_rows),
            ("agents", "Agent AP", agent_rows),
        )
        if (rows := _vcoco_action_rows(entries, row_specs))
    ]
    if not charts:
        return []
    note = (
        "V-COCO's own evaluation: an agent is a person who does the action, a role is an object of"
        " the action. If a role has no annotated object, scenario 1 requires an empty box and"
        " scenario 2 accepts any box."
    )
    return [
        Section(
            "roles",
            "Agents and roles",
            note,
            tuple(charts),
            tables=(_vcoco_table(entries, actions),),
        )
    ]


def _display_name(name: str) -> str:
    return name.replace("_", " ")


def _agent_ap(action: ActionResults) -> float | None:
    return action.agent_ap


def _role_ap(role: str, scenario: str) -> ApGetter:
    return lambda action: action.roles.get(role, {}).get(scenario)


def _vcoco_action_rows(
    entries: list[ComparisonEntry], row_specs: list[tuple[str, str, ApGetter]]
) -> list[ActionRow]:
    """Rows of a chart by falling AP of the first entry; rows without any AP are left out.

    Args:
        row_specs: title, action and AP of each row.
    """
    rows = [
        ActionRow(title, False, tuple(entry.vcoco_ap(action, get_ap) for entry in entries))
        for title, action, get_ap in row_specs
    ]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    return sorted(rows, key=lambda row: -(row.values[0] or 0.0))


def _vcoco_table(entries: list[ComparisonEntry], actions: list[str]) -> Table:
    rows = []
    for entry in entries:
        for action in actions:
            agent = format_percent(entry.vcoco_ap(action, _agent_ap))
            for index, role in enumerate(entry.vcoco_roles(action) or [""]):
                values = [
                    format_percent(entry.vcoco_ap(action, _role_ap(role, key)))
                    for key in SCENARIO_KEYS
                ]
                first = (entry.title, _display_name(action), "" if index else agent)
                rows.append((*first, role, *(values if role else ["", ""])))
    header = ("", "action", "agent AP", "role", "role AP, scenario 1", "role AP, scenario 2")
    return Table("V-COCO's AP of every action, in %", header, tuple(rows))


def build_precision_recall_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Precision-recall curves of selected interactions; no section without detections."""
    if not inputs.predictions:
        return []
    vocabulary = comparison.vocabulary
    names = [vocabulary.interaction_name(index) for index in range(vocabulary.num_interactions)]
    lead = inputs.predictions[0]
    counts = lead.matched.num_positives(vocabulary.num_interactions)
    average_precision = [lead.result.per_class.get(name) for name in names]
    panels = [
        CurvePanel(
            names[index],
            rank,
            index in comparison.unseen,
            int(counts[index]),
            tuple(
                (
                    predictions.entry,
                    precision_recall_curve(predictions.matched, index, int(counts[index])),
                    predictions.result.per_class.get(names[index]),
                )
                for predictions in inputs.predictions
            ),
        )
        for index, rank in select_interactions(average_precision, counts, comparison.unseen)
        if counts[index]
    ]
    if not panels:
        return []
    note = (
        f"The interactions are selected by the AP of {lead.entry.title.lower()}, from those with at"
        f" least {MIN_POSITIVES} labelled instances if there are enough."
    )
    return [Section("curves", "Precision and recall", note, (precision_recall_curves(panels),))]


def build_error_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Kinds of errors of each entry; no section without detections."""
    if not inputs.predictions:
        return []
    vocabulary = comparison.vocabulary
    interactions = range(vocabulary.num_interactions)
    unseen = set(comparison.unseen)
    groups = {"all": list(interactions)}
    if unseen:
        groups = {
            "unseen": sorted(unseen),
            "seen": [index for index in interactions if index not in unseen],
        }
    rows, table = [], []
    for predictions in inputs.predictions:
        title = predictions.entry.title
        kinds = classify_errors(predictions.matched, vocabulary)
        for counted, selection in (
            (top_scoring_mask(predictions.matched, vocabulary), "best-scoring"),
            (np.ones(len(kinds), dtype=bool), "all"),
        ):
            for group, members in groups.items():
                counts = count_errors(predictions.matched, kinds, counted, members)
                if selection == "best-scoring":
                    rows.append(ErrorRow(title, group, counts))
                numbers = (
                    f"{counts.num_correct:,}",
                    f"{counts.num_wrong:,}",
                    *map(format_percent, counts.shares),
                )
                table.append((title, group, selection, *numbers))
    if not any(row.counts.num_wrong for row in rows):
        return []
    rows.sort(key=lambda row: list(groups).index(row.group))
    note = (
        "Kinds of false positives. Detections with scores near zero hardly change the AP, so for"
        " each interaction with N labelled instances the N best-scoring detections are counted."
    )
    header = ("", "interactions", "detections", "correct", "wrong", *ERROR_TITLES.values())
    return [
        Section(
            "errors",
            "Kinds of errors",
            note,
            (error_bars(rows),),
            {ERROR_TITLES[name]: text for name, text in ERROR_DEFINITIONS.items()},
            (Table("Errors: shares by kind in % of the wrong detections", header, tuple(table)),),
        )
    ]


def build_confusion_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Confusion between verbs for the first entries; no section without detections."""
    vocabulary = comparison.vocabulary
    verbs = [verb.replace("_", " ") for verb in vocabulary.verbs]
    unseen = comparison.unseen_verbs
    charts, rows = [], []
    for number, predictions in enumerate(inputs.detailed, start=1):
        confusion = compute_verb_confusion(predictions.matched, vocabulary)
        if not confusion.num_found:
            continue
        title = predictions.entry.title
        charts.append(confusion_matrix(confusion, verbs, unseen, title, f"confusion-{number}"))
        for labelled, predicted, pairs in confusion.most_frequent(MAX_CONFUSIONS):
            rows.append((title, verbs[labelled], verbs[predicted], f"{pairs:g}"))
    if not charts:
        return []
    note = (
        "Rows are the verbs of labelled pairs that are detected (correct object class, IoU ≥ 0.5 of"
        " both boxes), columns the verb of the best-scoring detection, in % of the row. A correct"
        " verb is counted in its own row, a wrong one is spread over the rows of the pair's labels."
    )
    header = ("", "labelled", "predicted", "pairs")
    table = Table("Most frequent confusions", header, tuple(rows))
    return [
        Section(
            "confusion",
            "Confusion among verbs",
            note,
            tuple(charts),
            tables=(table,) if rows else (),
            side_by_side=vocabulary.num_verbs <= MAX_SIDE_BY_SIDE,
        )
    ]
