"""Recorded results of the study, of this machine or another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.study.artifacts import Scale
from benchmarks.study.experiment import Variant
from pipeline.utils.files import read_json

GROUPS = ("unseen", "seen", "full")
ACCURACY = "teacher_accuracy"
NAMES = (*GROUPS, ACCURACY)


@dataclass(frozen=True)
class Records:
    """Metrics in percent, by digest of the row, seed and name."""

    rows: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Reads the metrics of a folder of results."""
        rows: dict[str, dict[int, dict[str, float]]] = {}
        for file in sorted(folder.glob("*.json")):
            for row in read_json(file)["rows"]:
                seeds = rows.setdefault(row["digest"], {})
                for name, values in row["values"].items():
                    for seed, value in values.items():
                        seeds.setdefault(int(seed), {})[name] = value
        return cls(rows)

    def values(self, variant: Variant, scale: Scale) -> dict[int, Mapping[str, float]]:
        """The metrics of a row by seed."""
        return dict(self.rows.get(variant.digest(scale), {}))

    def has(self, variant: Variant, scale: Scale, seed: int) -> bool:
        """Whether there are metrics of a seed's student, and of its teacher if the row has one."""
        found = self.values(variant, scale).get(seed, {})
        return "full" in found and (variant.teacher is None or ACCURACY in found)
