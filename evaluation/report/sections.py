"""Sections of the report: scores, V-COCO roles and training curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evaluation.analysis.class_tables import ActionRow, ClassRow, build_action_rows
from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.analysis.training_log import read_training_log
from evaluation.report.charts.bars import (
    MAX_NAMED_CLASSES,
    action_bars,
    class_bars,
    teacher_student_chart,
)
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.plots import ap_by_frequency, training_curves
from evaluation.results import SCENARIO_KEYS, ActionResults
from evaluation.tables import format_percent


@dataclass(frozen=True)
class Table:
    """Numbers behind a chart: caption, names of the columns, rows."""

    caption: str
    header: tuple[str, ...]
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
        side_by_side: the charts stand side by side where there is room.
    """

    anchor: str
    title: str
    note: str
    charts: tuple[Chart, ...]
    terms: dict[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    side_by_side: bool = False


MAX_ACTION_ROWS = 40


def build_class_section(comparison: Comparison, rows: Sequence[ClassRow]) -> Section:
    """AP of every interaction of the first entry."""
    first = comparison.entries[0]
    what = "AP of every interaction"
    if len(rows) > MAX_NAMED_CLASSES:
        what = "All interactions by falling AP, the best and the worst by name"
    note = f"{what}: {first.title}. The table below has everybody's numbers."
    return Section("classes", "Interaction by interaction", note, (class_bars(rows, first),))


def build_frequency_sections(comparison: Comparison, rows: Sequence[ClassRow]) -> list[Section]:
    """AP against the number of training instances; none where that is unknown."""
    known = [row for row in rows if row.num_training is not None]
    if not known:
        return []
    note = "Each point is an interaction; the axis is logarithmic."
    if comparison.unseen:
        note += (
            " Unseen interactions stand where their labels would have put them: the labels are in"
            " the dataset, but no student had them, except where it says all labels."
        )
    chart = ap_by_frequency(known, comparison.entries)
    return [Section("frequency", "How much training data it takes", note, (chart,))]


def build_action_sections(comparison: Comparison) -> list[Section]:
    """AP of every action, and the student beside its teacher; none without known interactions."""
    actions, left_out = build_action_rows(comparison, MAX_ACTION_ROWS)
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
    chart = action_bars(actions, comparison.entries)
    sections = [Section("actions", "Action by action", f"{note} {left_out}".strip(), (chart,))]
    student, teacher = comparison.entries[0], comparison.find("teacher")
    if teacher is not None and student is not teacher:
        place = comparison.entries.index(teacher)
        everything, _ = build_action_rows(comparison, comparison.vocabulary.num_interactions)
        both = [one for row in everything if None not in (one := row.select(0, place)).values]
        if not both:
            return sections
        chart = teacher_student_chart(both, student, teacher)
        note = "A line between the two; where the student is right of its teacher, it is ahead."
        sections.append(Section("teacher", "Teacher and student", note, (chart,)))
    return sections


def build_training_sections(comparison: Comparison) -> list[Section]:
    """Training curves of the runs that kept a log."""
    logs = [
        (one, log)
        for one in comparison.entries
        for result in one.results
        if (log := read_training_log(result.metrics_log)) is not None
    ]
    if not logs:
        return []
    note = "The parts of the loss as the runs logged them, and the learning rate."
    return [Section("training", "Training", note, (training_curves(logs),))]


# Gives an action's AP of agents, or of a role in a scenario.
ApGetter = Callable[[ActionResults], float | None]


def build_vcoco_sections(comparison: Comparison) -> list[Section]:
    """Role AP and agent AP of every action of V-COCO; none without its evaluation."""
    scored = [one for one in comparison.entries if one.vcoco_actions()]
    if not scored:
        return []
    actions = list(dict.fromkeys(name for one in scored for name in one.vcoco_actions()))
    roles = [
        (action, role)
        for action in actions
        for role in dict.fromkeys(role for one in scored for role in one.vcoco_roles(action))
    ]
    charts = [
        action_bars(bars, scored, name, title, panel=title)
        for name, title, bars in (
            (
                "roles",
                "Role AP, scenario 1",
                _vcoco_action_rows(
                    scored,
                    [
                        (f"{_display_name(a)}, {r}", a, _role_ap(r, SCENARIO_KEYS[0]))
                        for a, r in roles
                    ],
                ),
            ),
            (
                "agents",
                "Agent AP",
                _vcoco_action_rows(scored, [(_display_name(a), a, _agent_ap) for a in actions]),
            ),
        )
        if bars
    ]
    if not charts:
        return []
    note = (
        "V-COCO's own evaluation: an agent is a person who does the action, a role is the object"
        " that goes with it. Where an object is annotated nowhere, scenario 1 wants an empty"
        " answer and scenario 2 takes any."
    )
    return [
        Section(
            "roles",
            "Agents and roles",
            note,
            tuple(charts),
            tables=(_vcoco_table(scored, actions),),
        )
    ]


def _display_name(name: str) -> str:
    return name.replace("_", " ")


def _agent_ap(action: ActionResults) -> float | None:
    return action.agent_ap


def _role_ap(role: str, scenario: str) -> ApGetter:
    return lambda action: action.roles.get(role, {}).get(scenario)


def _vcoco_action_rows(
    scored: list[ComparisonEntry], wanted: list[tuple[str, str, ApGetter]]
) -> list[ActionRow]:
    """Rows of a chart by the first entry's AP; those nobody has a number of are left out."""
    rows = [
        ActionRow(title, False, tuple(one.vcoco_ap(action, pick) for one in scored))
        for title, action, pick in wanted
    ]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    return sorted(rows, key=lambda row: -(row.values[0] or 0.0))


def _vcoco_table(scored: list[ComparisonEntry], actions: list[str]) -> Table:
    rows = []
    for one in scored:
        for action in actions:
            agent = format_percent(one.vcoco_ap(action, _agent_ap))
            for place, role in enumerate(one.vcoco_roles(action) or [""]):
                values = [
                    format_percent(one.vcoco_ap(action, _role_ap(role, key)))
                    for key in SCENARIO_KEYS
                ]
                first = (one.title, _display_name(action), "" if place else agent)
                rows.append((*first, role, *(values if role else ["", ""])))
    head = ("", "action", "agent AP", "role", "role AP, scenario 1", "role AP, scenario 2")
    return Table("V-COCO's AP of every action, in %", head, tuple(rows))
