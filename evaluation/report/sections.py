"""Sections of the report: scores, V-COCO roles and training curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evaluation.analysis.class_tables import Action, ClassRow, action_rows
from evaluation.analysis.comparison import Comparison, Contestant
from evaluation.analysis.training_log import read_training_log
from evaluation.report.charts.bars import MOST_NAMED, action_bars, class_bars, teacher_and_student
from evaluation.report.charts.figure import Chart
from evaluation.report.charts.plots import ap_by_training, training_curves
from evaluation.results import SCENARIO_KEYS, ActionResults
from evaluation.tables import percent


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


# Gives an action's AP of agents, or of a role in a scenario.
Pick = Callable[[ActionResults], float | None]


def by_role(comparison: Comparison) -> list[Section]:
    """Role AP and agent AP of every action of V-COCO; none without its evaluation."""
    scored = [one for one in comparison.contestants if one.vcoco_actions()]
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
                _rows(
                    scored, [(f"{_said(a)}, {r}", a, _role(r, SCENARIO_KEYS[0])) for a, r in roles]
                ),
            ),
            ("agents", "Agent AP", _rows(scored, [(_said(a), a, _agent) for a in actions])),
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
        Section("roles", "Agents and roles", note, tuple(charts), tables=(_table(scored, actions),))
    ]


def _said(name: str) -> str:
    return name.replace("_", " ")


def _agent(action: ActionResults) -> float | None:
    return action.agent_ap


def _role(role: str, scenario: str) -> Pick:
    return lambda action: action.roles.get(role, {}).get(scenario)


def _rows(scored: list[Contestant], wanted: list[tuple[str, str, Pick]]) -> list[Action]:
    """Rows of a chart by the first contestant's AP; those nobody has a number of are left out."""
    rows = [
        Action(title, False, tuple(one.vcoco_ap(action, pick) for one in scored))
        for title, action, pick in wanted
    ]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    return sorted(rows, key=lambda row: -(row.values[0] or 0.0))


def _table(scored: list[Contestant], actions: list[str]) -> Table:
    rows = []
    for one in scored:
        for action in actions:
            agent = percent(one.vcoco_ap(action, _agent))
            for place, role in enumerate(one.vcoco_roles(action) or [""]):
                values = [percent(one.vcoco_ap(action, _role(role, key))) for key in SCENARIO_KEYS]
                first = (one.title, _said(action), "" if place else agent)
                rows.append((*first, role, *(values if role else ["", ""])))
    head = ("", "action", "agent AP", "role", "role AP, scenario 1", "role AP, scenario 2")
    return Table("V-COCO's AP of every action, in %", head, tuple(rows))
