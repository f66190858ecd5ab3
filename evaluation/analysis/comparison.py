"""Several results side by side: who is who, and the numbers of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evaluation.hico.average_precision import harmonic_mean
from evaluation.results import ROLE_AP, ActionResults, Results, VcocoResults
from pipeline.splits import FULL
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class Comparison:
    """Results on the same dataset, split and setting.

    Attributes:
        first: the result whose dataset, setting and so on the report names.
        split, unseen: the zero-shot split that all metrics are grouped by.
        entries: by role, in the order of `ENTRY_ROLES`.
    """

    first: Results
    split: str
    unseen: tuple[int, ...]
    vocabulary: Vocabulary
    entries: tuple[ComparisonEntry, ...]

    def find(self, role: EntryRole) -> ComparisonEntry | None:
        """The entry of a role."""
        return next((found for found in self.entries if found.role == role), None)

    @property
    def unseen_verbs(self) -> tuple[int, ...]:
        """Verbs that the student has no label of at all."""
        seen = {
            verb
            for index, (verb, _) in enumerate(self.vocabulary.interactions)
            if index not in set(self.unseen)
        }
        return tuple(verb for verb in range(self.vocabulary.num_verbs) if verb not in seen)

    @property
    def with_interaction_ap(self) -> Comparison:
        """The same with those entries only that have AP of single interactions."""
        able = (one for one in self.entries if any(result.per_class for result in one.results))
        return replace(self, entries=tuple(able))

    @property
    def vcoco_leads(self) -> bool:
        """V-COCO's own evaluation comes first: nothing is unseen, and some result has it."""
        return not self.unseen and any(
            one.vcoco_metric(ROLE_AP[0]) is not None for one in self.entries
        )

    def gap_closed(self) -> float | None:
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
    # Files of V-COCO's scores alone lead only where there is nothing else.
    lead = min(zero_shot or results, key=lambda result: not result.per_class)
    for result in results:
        for what in ("dataset", "vocabulary", "setting"):
            if getattr(result, what) != getattr(lead, what):
                raise _mismatch_error(what, lead, result)
    for result in zero_shot:
        if (result.split, result.unseen) != (lead.split, lead.unseen):
            raise _mismatch_error("split", lead, result)
    members: dict[EntryRole, list[Results]] = {role: [] for role in ENTRY_ROLES}
    others: list[ComparisonEntry] = []
    for result in results:
        grouped = _regroup_metrics(result, lead.unseen, vocabulary)
        role = _role_of(result)
        if role == "predictions":
            others.append(
                ComparisonEntry(role, result.name, _describe_training(result), (grouped,))
            )
        else:
            members[role].append(grouped)
    titles = (
        dict(ENTRY_ROLES) if lead.unseen else {**ENTRY_ROLES, "all_labels": FULLY_SUPERVISED_TITLE}
    )
    named = [
        ComparisonEntry(role, *titles[role], tuple(sorted(found, key=lambda one: one.seed or 0)))
        for role, found in members.items()
        if found
    ]
    # Files of unknown making take the styles that are left, so that several can be told apart.
    taken = {one.role for one in named}
    styles = ["predictions", *(role for role in ENTRY_ROLES if role not in {*taken, "predictions"})]
    others.sort(key=lambda one: not one.results[0].per_class)
    others = [replace(one, style=styles[place % len(styles)]) for place, one in enumerate(others)]
    return Comparison(lead, lead.split, lead.unseen, vocabulary, (*named, *others))


def _role_of(result: Results) -> EntryRole:
    if result.kind == "teacher":
        return "teacher"
    # Nobody knows what a published checkpoint was trained on.
    if result.kind == "predictions" or result.training_split is None:
        return "predictions"
    # What had more to learn from stands for itself, and is no further seed of what had not.
    if result.shots or result.sources:
        return "predictions"
    if result.training_split == FULL:
        return "all_labels"
    return "distilled" if result.distillation else "control"


def _describe_training(result: Results) -> str:
    """What made a result that stands for itself."""
    further = [f"images of {source['name']}" for source in result.sources]
    if result.shots:
        labels = "a label" if result.shots == 1 else f"{result.shots} labels"
        further.insert(0, f"{labels} of every unseen interaction")
    if further:
        source = f"with {' and '.join(further)}"
    else:
        source = "from a checkpoint" if result.kind == "student" else ENTRY_ROLES["predictions"][1]
    return source + (", after pairwise NMS" if result.nms else "")


def _regroup_metrics(result: Results, unseen: tuple[int, ...], vocabulary: Vocabulary) -> Results:
    if result.unseen == unseen:
        return result
    names = {vocabulary.interaction_name(index) for index in unseen}

    def groups(per_class: dict[str, float]) -> dict[str, float | None]:
        inside = [value for name, value in per_class.items() if name in names]
        outside = [value for name, value in per_class.items() if name not in names]
        seen = float(np.mean(outside)) if outside else None
        unseen = float(np.mean(inside)) if inside else None
        return {"seen": seen, "unseen": unseen, "harmonic_mean": harmonic_mean(seen, unseen)}

    further = result.known_object
    if further is not None:
        further = replace(further, metrics={**further.metrics, **groups(further.per_class)})
    metrics = {**result.metrics, **groups(result.per_class)}
    return replace(result, unseen=unseen, metrics=metrics, known_object=further)


def _mismatch_error(what: str, first: Results, second: Results) -> InputError:
    return InputError(
        f"results to compare: expected one {what}, found {getattr(first, what)} ({first.name})"
        f" and {getattr(second, what)} ({second.name})"
    )


EntryRole = Literal["distilled", "control", "all_labels", "teacher", "predictions"]
# In the order of tables and charts: title, and what made it.
ENTRY_ROLES: dict[EntryRole, tuple[str, str]] = {
    "distilled": ("Distilled", "seen labels and the teacher's answers"),
    "control": ("No distillation", "seen labels only"),
    "all_labels": ("All labels", "unseen labels too: the ceiling"),
    "teacher": ("Teacher", "CLIP on every candidate pair"),
    "predictions": ("Predictions", "from a file"),
}
# Where nothing is unseen, all labels are no ceiling but the thing itself.
FULLY_SUPERVISED_TITLE = ("Student", "trained with all labels")


@dataclass(frozen=True)
class ComparisonEntry:
    """All results of one role; its numbers are means over them.

    Attributes:
        role: what the results are in the comparison.
        title, note: for people.
        results: one for each seed.
        style: name of its colour and shapes; the role's where nothing is said.
    """

    role: EntryRole
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
        return _mean_or_none(values)

    def vcoco_metric(self, name: str) -> float | None:
        """An average of V-COCO's evaluation, mean over the results, None where one lacks it."""
        tables = [one.vcoco for one in self.results]
        return _mean_or_none([None if one is None else one.metrics.get(name) for one in tables])

    def vcoco_ap(self, action: str, pick: Callable[[ActionResults], float | None]) -> float | None:
        """An AP of one of V-COCO's actions, mean over the results, None where one lacks it."""
        entries = [one.vcoco.per_action.get(action) if one.vcoco else None for one in self.results]
        return _mean_or_none([None if entry is None else pick(entry) for entry in entries])

    def vcoco_actions(self) -> list[str]:
        """V-COCO's actions in the results' order; none without its evaluation."""
        return list(dict.fromkeys(name for one in self._vcoco() for name in one.per_action))

    def vcoco_roles(self, action: str) -> list[str]:
        """The roles of one of V-COCO's actions."""
        entries = [one.per_action[action] for one in self._vcoco() if action in one.per_action]
        return list(dict.fromkeys(role for entry in entries for role in entry.roles))

    def _vcoco(self) -> list[VcocoResults]:
        return [one.vcoco for one in self.results if one.vcoco is not None]

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


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean, None where a value is missing."""
    counted = [value for value in values if value is not None]
    return float(np.mean(counted)) if len(counted) == len(values) else None
