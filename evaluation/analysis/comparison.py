"""Comparison of several results: their roles, and the mean numbers of each role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evaluation.hico.average_precision import harmonic_mean
from evaluation.results import Results
from evaluation.vcoco.average_precision import ROLE_AP, ActionResults, VcocoResults
from pipeline.splits import FULL
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

EntryRole = Literal["distilled", "control", "all_labels", "teacher", "predictions"]
# Title and note of each role, in the order of tables and charts.
ENTRY_ROLES: dict[EntryRole, tuple[str, str]] = {
    "distilled": ("Distilled", "seen labels and the teacher's predictions"),
    "control": ("No distillation", "seen labels only"),
    "all_labels": ("All labels", "seen and unseen labels: the upper bound"),
    "teacher": ("Teacher", "CLIP on every candidate pair"),
    "predictions": ("Predictions", "from a file"),
}
# Without unseen interactions, training with all labels is no upper bound but the normal case.
FULLY_SUPERVISED_TITLE = ("Student", "trained with all labels")


@dataclass(frozen=True)
class ComparisonEntry:
    """The results of one role, whose numbers are means over them.

    Attributes:
        role: role in the comparison.
        title, note: display name, and what distinguishes the entry from the others.
        results: one for each seed.
        style: name of its colour, line style and marker; empty for that of the role.
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
        """Mean of a metric over the results; None if one of them does not have it.

        Args:
            known_object: use the second, known-object setting of the results.
        """
        tables = [result.known_object if known_object else result for result in self.results]
        return _mean_or_none(
            [None if table is None else table.metrics.get(name) for table in tables]
        )

    def vcoco_metric(self, name: str) -> float | None:
        """Mean of one of V-COCO's averages over the results; None if one does not have it."""
        tables = [result.vcoco for result in self.results]
        return _mean_or_none(
            [None if table is None else table.metrics.get(name) for table in tables]
        )

    def vcoco_ap(
        self, action: str, get_ap: Callable[[ActionResults], float | None]
    ) -> float | None:
        """Mean of an AP of one of V-COCO's actions over the results; None if one has none."""
        tables = [
            result.vcoco.per_action.get(action) if result.vcoco else None for result in self.results
        ]
        return _mean_or_none([None if table is None else get_ap(table) for table in tables])

    def vcoco_actions(self) -> list[str]:
        """V-COCO's actions in the order of the results; empty without V-COCO's scores."""
        return list(dict.fromkeys(name for scores in self._vcoco() for name in scores.per_action))

    def vcoco_roles(self, action: str) -> list[str]:
        """The roles of one of V-COCO's actions."""
        actions = [
            scores.per_action[action] for scores in self._vcoco() if action in scores.per_action
        ]
        return list(dict.fromkeys(role for scores in actions for role in scores.roles))

    def _vcoco(self) -> list[VcocoResults]:
        return [result.vcoco for result in self.results if result.vcoco is not None]

    def run_title(self, result: Results) -> str:
        """Display name of one of the results: its seed if no other has the same."""
        if result.seed is None:
            same_name = [
                other for other in self.results if (other.name, other.seed) == (result.name, None)
            ]
            index = next(index for index, other in enumerate(same_name) if other is result)
            return result.name if len(same_name) == 1 else f"{result.name} {index + 1}"
        unique = [other.seed for other in self.results].count(result.seed) == 1
        return f"seed {result.seed}" if unique else f"{result.name}, seed {result.seed}"

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
    """Mean of the values; None if one of them is missing."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if len(present) == len(values) else None


@dataclass(frozen=True)
class Comparison:
    """Results on the same dataset, split and setting.

    Attributes:
        first: the result whose dataset, setting and number of images the report states.
        split, unseen: the zero-shot split by which all metrics are grouped.
        vocabulary: of the dataset.
        entries: by role, in the order of `ENTRY_ROLES`.
    """

    first: Results
    split: str
    unseen: tuple[int, ...]
    vocabulary: Vocabulary
    entries: tuple[ComparisonEntry, ...]

    def find(self, role: EntryRole) -> ComparisonEntry | None:
        """The first entry of a role."""
        return next((entry for entry in self.entries if entry.role == role), None)

    @property
    def unseen_verbs(self) -> tuple[int, ...]:
        """Verbs whose interactions are all unseen."""
        seen = {
            verb
            for index, (verb, _) in enumerate(self.vocabulary.interactions)
            if index not in set(self.unseen)
        }
        return tuple(verb for verb in range(self.vocabulary.num_verbs) if verb not in seen)

    @property
    def with_interaction_ap(self) -> Comparison:
        """The comparison with only the entries that have AP of single interactions."""
        entries = (
            entry for entry in self.entries if any(result.per_class for result in entry.results)
        )
        return replace(self, entries=tuple(entries))

    @property
    def vcoco_leads(self) -> bool:
        """Whether the headline is V-COCO's role AP: some result has it and nothing is unseen."""
        return not self.unseen and any(
            entry.vcoco_metric(ROLE_AP[0]) is not None for entry in self.entries
        )

    def gap_closed(self) -> float | None:
        """Share of the gap in unseen mAP between no distillation and all labels that distillation
        closes; None if one of the three is missing or there is no gap."""
        entries = [self.find(role) for role in ("distilled", "control", "all_labels")]
        values = [entry.metric("unseen") for entry in entries if entry is not None]
        if len(values) < 3 or None in values:
            return None
        distilled, control, upper_bound = (value for value in values if value is not None)
        return (distilled - control) / (upper_bound - control) if upper_bound > control else None


def compare(results: Sequence[Results], vocabulary: Vocabulary) -> Comparison:
    """Groups results by one split and sorts them by role.

    Args:
        results: in any order; those of split `full` are regrouped by the split of the others.

    Raises:
        InputError: the results have different datasets, vocabularies, settings or splits.
    """
    zero_shot = [result for result in results if result.split != FULL]
    # Results with V-COCO's scores alone come first only if there are no others.
    lead = min(zero_shot or results, key=lambda result: not result.per_class)
    for result in results:
        for field in ("dataset", "vocabulary", "setting"):
            if getattr(result, field) != getattr(lead, field):
                raise _mismatch_error(field, lead, result)
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
    entries = [
        ComparisonEntry(
            role, *titles[role], tuple(sorted(group, key=lambda result: result.seed or 0))
        )
        for role, group in members.items()
        if group
    ]
    # Results without a role take the styles of the unused roles, so that charts distinguish them.
    used = {entry.role for entry in entries}
    styles = ["predictions", *(role for role in ENTRY_ROLES if role not in {*used, "predictions"})]
    others.sort(key=lambda entry: not entry.results[0].per_class)
    others = [
        replace(entry, style=styles[index % len(styles)]) for index, entry in enumerate(others)
    ]
    return Comparison(lead, lead.split, lead.unseen, vocabulary, (*entries, *others))


def _role_of(result: Results) -> EntryRole:
    if result.kind == "teacher":
        return "teacher"
    # The training data of a published checkpoint are unknown.
    if result.kind == "predictions" or result.training_split is None:
        return "predictions"
    # A run with further training data is no other seed of a run without.
    if result.shots or result.sources:
        return "predictions"
    if result.training_split == FULL:
        return "all_labels"
    return "distilled" if result.distillation else "control"


def _describe_training(result: Results) -> str:
    """Note of an entry of the role `predictions`."""
    further_data = [f"images of {source['name']}" for source in result.sources]
    if result.shots:
        labels = "a label" if result.shots == 1 else f"{result.shots} labels"
        further_data.insert(0, f"{labels} of every unseen interaction")
    if further_data:
        note = f"with {' and '.join(further_data)}"
    else:
        note = "from a checkpoint" if result.kind == "student" else ENTRY_ROLES["predictions"][1]
    return note + (", after pairwise NMS" if result.nms else "")


def _regroup_metrics(result: Results, unseen: tuple[int, ...], vocabulary: Vocabulary) -> Results:
    """The result with its seen and unseen mAP computed for the given unseen interactions."""
    if result.unseen == unseen:
        return result
    unseen_names = {vocabulary.interaction_name(index) for index in unseen}

    def group_means(per_class: dict[str, float]) -> dict[str, float | None]:
        seen_ap = [value for name, value in per_class.items() if name not in unseen_names]
        unseen_ap = [value for name, value in per_class.items() if name in unseen_names]
        seen, unseen = (float(np.mean(ap)) if ap else None for ap in (seen_ap, unseen_ap))
        return {"seen": seen, "unseen": unseen, "harmonic_mean": harmonic_mean(seen, unseen)}

    known_object = result.known_object
    if known_object is not None:
        metrics = {**known_object.metrics, **group_means(known_object.per_class)}
        known_object = replace(known_object, metrics=metrics)
    metrics = {**result.metrics, **group_means(result.per_class)}
    return replace(result, unseen=unseen, metrics=metrics, known_object=known_object)


def _mismatch_error(field: str, first: Results, second: Results) -> InputError:
    return InputError(
        f"results to compare: expected one {field}, found {getattr(first, field)} ({first.name})"
        f" and {getattr(second, field)} ({second.name})"
    )
