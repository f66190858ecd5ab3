"""Several results side by side: who is who, and the numbers of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evaluation.results import Results
from pipeline.errors import InputError
from pipeline.splits import FULL
from pipeline.vocabulary import Vocabulary

Role = Literal["distilled", "control", "all_labels", "teacher", "predictions"]
# In the order of tables and charts: title, and what made it.
ROLES: dict[Role, tuple[str, str]] = {
    "distilled": ("Distilled", "seen labels and the teacher's answers"),
    "control": ("No distillation", "seen labels only"),
    "all_labels": ("All labels", "unseen labels too: the ceiling"),
    "teacher": ("Teacher", "CLIP on every candidate pair"),
    "predictions": ("Predictions", "from a file"),
}
# Where nothing is unseen, all labels are no ceiling but the thing itself.
FULLY_SUPERVISED = ("Student", "trained with all labels")


@dataclass(frozen=True)
class Contestant:
    """All results of one role; its numbers are means over them.

    Attributes:
        role: what the results are in the comparison.
        title, note: for people.
        results: one for each seed.
        style: name of its colour and shapes; the role's where nothing is said.
    """

    role: Role
    title: str
    note: str
    results: tuple[Results, ...]
    style: str = ""

    def __post_init__(self) -> None:
        if not self.style:
            object.__setattr__(self, "style", self.role)

    def metric(self, name: str, known_object: bool = False) -> float | None:
        """A metric's mean over the results, None where one lacks it.

        Args:
            known_object: of the known-object setting that stands beside the results' own.
        """
        tables = [one.known_object if known_object else one for one in self.results]
        values = [None if table is None else table.metrics.get(name) for table in tables]
        counted = [value for value in values if value is not None]
        return float(np.mean(counted)) if len(counted) == len(values) else None

    def run_title(self, result: Results) -> str:
        """What a single result is called beside the others: its seed where that is enough."""
        seeds = [one.seed for one in self.results]
        if result.seed is None:
            same = [one for one in self.results if (one.name, one.seed) == (result.name, None)]
            place = next(index for index, one in enumerate(same) if one is result)
            return result.name if len(same) == 1 else f"{result.name} {place + 1}"
        alone = seeds.count(result.seed) == 1
        return f"seed {result.seed}" if alone else f"{result.name}, seed {result.seed}"

    def mean_ap(self, interactions: Sequence[str]) -> float | None:
        """mAP over interactions by name, mean over the results; None without ground truth."""
        values = [
            result.per_class[name]
            for result in self.results
            for name in interactions
            if name in result.per_class
        ]
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Action:
    """A row of the chart: a verb or an interaction, and its AP for each contestant."""

    name: str
    unseen: bool
    values: tuple[float | None, ...]

    def of(self, *places: int) -> Action:
        """The same row with some contestants only."""
        return replace(self, values=tuple(self.values[place] for place in places))


@dataclass(frozen=True)
class Comparison:
    """Results on the same dataset, split and setting.

    Attributes:
        first: the result whose dataset, setting and so on the report names.
        split, unseen: the zero-shot split that all metrics are grouped by.
        contestants: by role, in the order of `ROLES`.
    """

    first: Results
    split: str
    unseen: tuple[int, ...]
    vocabulary: Vocabulary
    contestants: tuple[Contestant, ...]

    def find(self, role: Role) -> Contestant | None:
        """The contestant of a role."""
        return next((found for found in self.contestants if found.role == role), None)

    @property
    def unseen_verbs(self) -> tuple[int, ...]:
        """Verbs that the student has no label of at all."""
        seen = {
            verb
            for index, (verb, _) in enumerate(self.vocabulary.interactions)
            if index not in set(self.unseen)
        }
        return tuple(verb for verb in range(self.vocabulary.num_verbs) if verb not in seen)

    def share_closed(self) -> float | None:
        """Share of the unseen mAP between no distillation and all labels that distillation won."""
        found = [self.find(role) for role in ("distilled", "control", "all_labels")]
        values = [one.metric("unseen") for one in found if one is not None]
        if len(values) < 3 or None in values:
            return None
        distilled, control, ceiling = (value for value in values if value is not None)
        return (distilled - control) / (ceiling - control) if ceiling > control else None


def compare(results: Sequence[Results], vocabulary: Vocabulary) -> Comparison:
    """Brings results to one split and sorts them by role.

    Args:
        results: in any order; those of split `full` are grouped by the others' split.

    Raises:
        InputError: the results are of different datasets, vocabularies, settings or splits.
    """
    zero_shot = [result for result in results if result.split != FULL]
    lead = (zero_shot or list(results))[0]
    for result in results:
        for what in ("dataset", "vocabulary", "setting"):
            if getattr(result, what) != getattr(lead, what):
                raise _different(what, lead, result)
    for result in zero_shot:
        if (result.split, result.unseen) != (lead.split, lead.unseen):
            raise _different("split", lead, result)
    members: dict[Role, list[Results]] = {role: [] for role in ROLES}
    others: list[Contestant] = []
    for result in results:
        grouped = _regroup(result, lead.unseen, vocabulary)
        role = _role(result)
        if role == "predictions":
            source = "from a checkpoint" if result.kind == "student" else ROLES[role][1]
            note = source + (", after pairwise NMS" if result.nms else "")
            others.append(Contestant(role, result.name, note, (grouped,)))
        else:
            members[role].append(grouped)
    titles = dict(ROLES) if lead.unseen else {**ROLES, "all_labels": FULLY_SUPERVISED}
    named = [
        Contestant(role, *titles[role], tuple(sorted(found, key=lambda one: one.seed or 0)))
        for role, found in members.items()
        if found
    ]
    # Files of unknown making take the styles that are left, so that several can be told apart.
    taken = {one.role for one in named}
    styles = ["predictions", *(role for role in ROLES if role not in {*taken, "predictions"})]
    others = [replace(one, style=styles[place % len(styles)]) for place, one in enumerate(others)]
    return Comparison(lead, lead.split, lead.unseen, vocabulary, (*named, *others))


def action_rows(comparison: Comparison, limit: int) -> tuple[list[Action], str]:
    """Rows of the per-action chart, unseen ones first, each kind by the first contestant's AP.

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
        values = tuple(one.mean_ap(names) for one in comparison.contestants)
        if any(value is not None for value in values):
            rows.append((len(members), Action(name, is_unseen, values)))
    kept = sorted(rows, key=lambda row: (not row[1].unseen, -row[0]))[:limit]
    left_out = (
        f"The {len(rows) - len(kept)} actions with fewest objects are left out."
        if len(rows) > len(kept)
        else ""
    )
    actions = [action for _, action in kept]
    actions.sort(key=lambda action: (not action.unseen, -(action.values[0] or 0.0)))
    return actions, left_out


def _role(result: Results) -> Role:
    if result.kind == "teacher":
        return "teacher"
    # Nobody knows what a published checkpoint was trained on.
    if result.kind == "predictions" or result.training_split is None:
        return "predictions"
    if result.training_split == FULL:
        return "all_labels"
    return "distilled" if result.distillation else "control"


def _regroup(result: Results, unseen: tuple[int, ...], vocabulary: Vocabulary) -> Results:
    if result.unseen == unseen:
        return result
    names = {vocabulary.interaction_name(index) for index in unseen}

    def groups(per_class: dict[str, float]) -> dict[str, float | None]:
        inside = [value for name, value in per_class.items() if name in names]
        outside = [value for name, value in per_class.items() if name not in names]
        return {
            "unseen": float(np.mean(inside)) if inside else None,
            "seen": float(np.mean(outside)) if outside else None,
        }

    further = result.known_object
    if further is not None:
        further = replace(further, metrics={**further.metrics, **groups(further.per_class)})
    metrics = {**result.metrics, **groups(result.per_class)}
    return replace(result, unseen=unseen, metrics=metrics, known_object=further)


def _different(what: str, first: Results, second: Results) -> InputError:
    return InputError(
        f"results to compare: expected one {what}, found {getattr(first, what)} ({first.name})"
        f" and {getattr(second, what)} ({second.name})"
    )
