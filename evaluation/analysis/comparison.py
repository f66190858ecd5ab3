"""Comparison of several results: their roles, and the mean numbers of each role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from typing import Literal

import numpy as np

from evaluation.hico.average_precision import harmonic_mean
from evaluation.results import Results
from evaluation.vcoco.average_precision import (
    AGENT_AP,
    ROLE_AP,
    ROLE_AP_WITHOUT_POINT,
    SCENARIO_KEYS,
)
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
VCOCO_METRICS = (AGENT_AP, *ROLE_AP, *ROLE_AP_WITHOUT_POINT)


@dataclass(frozen=True)
class ComparisonEntry:
    """The results of one role, whose numbers are means over them.

    Attributes:
        role: role in the comparison.
        title, note: display name, and what distinguishes the entry from the others.
        results: one for each seed.
        style: name of its colour, line style and marker.
    """

    role: EntryRole
    title: str
    note: str
    results: tuple[Results, ...]
    style: str

    def mean(self, get_number: Callable[[Results], float | None]) -> float | None:
        """Mean of a number over the results; None if one of them does not have it."""
        values = [value for result in self.results if (value := get_number(result)) is not None]
        return float(np.mean(values)) if len(values) == len(self.results) else None

    def metric(self, name: str, known_object: bool = False) -> float | None:
        """Mean of a metric over the results; see `result_metric`."""
        return self.mean(lambda result: result_metric(result, name, known_object))

    def vcoco_ap(
        self, action: str, role: str = "", scenario: str = SCENARIO_KEYS[0]
    ) -> float | None:
        """Mean AP of one of V-COCO's actions over the results: of its agents, or of a role."""

        def get_ap(result: Results) -> float | None:
            scores = result.vcoco.per_action.get(action) if result.vcoco else None
            if scores is None:
                return None
            return scores.roles.get(role, {}).get(scenario) if role else scores.agent_ap

        return self.mean(get_ap)

    def run_title(self, result: Results) -> str:
        """Display name of one of the results: seed or name, with a number if it is not unique."""
        titles = [
            other.name if other.seed is None else f"seed {other.seed}" for other in self.results
        ]
        place = next(place for place, other in enumerate(self.results) if other is result)
        unique = titles.count(titles[place]) == 1
        return titles[place] if unique else f"{titles[place]} ({place + 1})"

    def mean_ap(self, interactions: Sequence[str]) -> float | None:
        """mAP over interactions by name, mean over the results; None without ground truth."""
        values = [
            result.per_class[name]
            for result in self.results
            for name in interactions
            if name in result.per_class
        ]
        return float(np.mean(values)) if values else None


def result_metric(result: Results, name: str, known_object: bool = False) -> float | None:
    """A metric of HICO-DET's or, by its name, of V-COCO's evaluation; None without it.

    Args:
        known_object: use the second, known-object setting of the result.
    """
    if name in VCOCO_METRICS:
        return result.vcoco.metrics.get(name) if result.vcoco else None
    scores = result.known_object if known_object else result
    return scores.metrics.get(name) if scores else None


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

    @cached_property
    def unseen_verbs(self) -> tuple[int, ...]:
        """Verbs whose interactions are all unseen."""
        unseen = set(self.unseen)
        seen = {
            verb
            for index, (verb, _) in enumerate(self.vocabulary.interactions)
            if index not in unseen
        }
        return tuple(verb for verb in range(self.vocabulary.num_verbs) if verb not in seen)

    @cached_property
    def unseen_in_seen_verbs(self) -> tuple[int, ...]:
        """Unseen interactions of verbs that have seen interactions too."""
        verbs, interactions = set(self.unseen_verbs), self.vocabulary.interactions
        return tuple(index for index in self.unseen if interactions[index][0] not in verbs)

    @property
    def with_interaction_ap(self) -> Comparison:
        """The comparison with only the entries that have AP of single interactions."""
        entries = (
            entry for entry in self.entries if any(result.per_class for result in entry.results)
        )
        return replace(self, entries=tuple(entries))

    @property
    def vcoco_roles(self) -> dict[str, list[str]]:
        """Roles of V-COCO's actions; empty without V-COCO's scores."""
        results = [result for entry in self.entries for result in entry.results]
        scores = next((result.vcoco for result in results if result.vcoco is not None), None)
        actions = {} if scores is None else scores.per_action
        return {action: list(each.roles) for action, each in actions.items()}

    @property
    def headline_metric(self) -> str:
        """Name of the metric that the page starts with: unseen mAP; where nothing unseen is
        labelled in the test part, V-COCO's role AP if some result has it, else full mAP."""
        if self.unseen and any(entry.metric("unseen") is not None for entry in self.entries):
            return "unseen"
        has_vcoco = any(entry.metric(ROLE_AP[0]) is not None for entry in self.entries)
        return ROLE_AP[0] if has_vcoco else "full"

    def gap_closed(self) -> float | None:
        """Share of the gap in unseen mAP between no distillation and all labels that distillation
        closes; None if one of the three is missing or there is no gap."""
        distilled, control, upper_bound = (
            None if (entry := self.find(role)) is None else entry.metric("unseen")
            for role in ("distilled", "control", "all_labels")
        )
        if distilled is None or control is None or upper_bound is None or upper_bound <= control:
            return None
        return (distilled - control) / (upper_bound - control)


def compare(results: Sequence[Results], vocabulary: Vocabulary) -> Comparison:
    """Groups results by one split and sorts them by role.

    Args:
        results: in any order; those of split `full` are regrouped by the split of the others.

    Raises:
        InputError: the results have different datasets, vocabularies, settings or splits.
    """
    zero_shot = [result for result in results if result.split != FULL]
    # Results with V-COCO's scores alone, and of limited images, come first only if there are no
    # others.
    lead = min(
        zero_shot or results, key=lambda result: (not result.per_class, bool(result.limit_note))
    )
    for result in results:
        for field in ("dataset", "vocabulary", "setting"):
            _check_equal(field, field, lead, result)
    for result in zero_shot:
        for field in ("split", "unseen"):
            _check_equal("split", field, lead, result)
    titles = (
        {**ENTRY_ROLES} if lead.unseen else {**ENTRY_ROLES, "all_labels": FULLY_SUPERVISED_TITLE}
    )
    # The first result of each role; runs with other settings are no other seeds of it.
    firsts: dict[EntryRole, Results] = {}
    members_of: dict[EntryRole, list[Results]] = {role: [] for role in titles}
    for result in results:
        role = _role_of(result)
        if firsts.setdefault(role, result).recipe != result.recipe:
            role = "predictions"
        members_of[role].append(_regroup_metrics(result, lead.unseen, vocabulary))
    entries: list[ComparisonEntry] = []
    for role, (title, note) in titles.items():
        members = members_of[role]
        if role == "predictions":
            # They take the styles of the unused roles, so that charts distinguish them.
            used = {entry.role for entry in entries}
            styles = cycle(
                [
                    "predictions",
                    *(role for role in ENTRY_ROLES if role not in {*used, "predictions"}),
                ]
            )
            members.sort(key=lambda result: not result.per_class)
            entries += [
                ComparisonEntry(role, result.name, _describe_training(result), (result,), style)
                for result, style in zip(members, styles, strict=False)
            ]
        elif members:
            members.sort(key=lambda result: result.seed or 0)
            entries.append(ComparisonEntry(role, title, note, tuple(members), role))
    return Comparison(lead, lead.split, lead.unseen, vocabulary, tuple(entries))


def _role_of(result: Results) -> EntryRole:
    # The numbers of a short trial must not be averaged with those of whole runs, nor pass for them.
    if result.limit_note:
        return "predictions"
    if result.kind == "teacher":
        return "teacher"
    # A probe is no student. The training data of a published checkpoint are unknown, and a run with
    # further training data is no other seed of a run without.
    unknown = result.kind in ("predictions", "probe") or result.training_split is None
    if unknown or result.shots or result.sources:
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
    notes = [result.limit_note] if result.limit_note else []
    role = _role_of(result)
    if role != "predictions":
        notes.append(f"{ENTRY_ROLES[role][0].lower()}, with other settings")
    if further_data:
        notes.append(f"with {' and '.join(further_data)}")
    if result.kind == "probe":
        teacher = " and the teacher's predictions" if result.distillation else " only"
        labels = "all labels" if result.training_split == FULL else f"seen labels{teacher}"
        notes.insert(0, f"verb head on the cache's embeddings: {labels}")
    if not notes:
        is_student = result.kind == "student"
        notes.append("from a checkpoint" if is_student else ENTRY_ROLES["predictions"][1])
    if result.nms:
        notes.append("after pairwise NMS")
    return ", ".join(notes)


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


def _check_equal(name: str, field: str, first: Results, second: Results) -> None:
    if getattr(first, field) != getattr(second, field):
        raise InputError(
            f"results to compare: expected one {name}, found {getattr(first, name)} ({first.name})"
            f" and {getattr(second, name)} ({second.name})"
        )
