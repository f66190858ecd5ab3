"""Who is who among several results, and the numbers of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.results import Results
from evaluation.vcoco_results import ActionResults, VcocoResults

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
        return _mean_of_all(values)

    def vcoco_metric(self, name: str) -> float | None:
        """An average of V-COCO's evaluation, mean over the results, None where one lacks it."""
        tables = [one.vcoco for one in self.results]
        return _mean_of_all([None if one is None else one.metrics.get(name) for one in tables])

    def vcoco_ap(self, action: str, pick: Callable[[ActionResults], float | None]) -> float | None:
        """An AP of one of V-COCO's actions, mean over the results, None where one lacks it."""
        entries = [one.vcoco.per_action.get(action) if one.vcoco else None for one in self.results]
        return _mean_of_all([None if entry is None else pick(entry) for entry in entries])

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


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean, None where a value is missing."""
    counted = [value for value in values if value is not None]
    return float(np.mean(counted)) if len(counted) == len(values) else None
