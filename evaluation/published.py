"""Published numbers to stand beside results of the same dataset, split and setting."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from evaluation.results import Results
from pipeline.files import read_json


@dataclass(frozen=True)
class Published:
    """One published result.

    Attributes:
        name: of the method.
        metrics: fractions by the names that `Results` uses; not all of them were published.
        conditions: in which ways it differs from anybody's own runs.
        source: where it was published.
    """

    name: str
    metrics: dict[str, float]
    conditions: str
    source: str


def published_results(result: Results, split: str) -> tuple[Published, ...]:
    """What is published for a result's dataset, split and setting; empty where nothing is.

    Args:
        split: the split that the metrics are grouped by.
    """
    value = _file()
    wanted = (result.dataset, result.vocabulary, result.setting)
    return tuple(
        Published(
            entry["name"],
            {name: number / 100 for name, number in entry["metrics"].items()},
            _conditions(entry["conditions"], value["test_images"][entry["dataset"]], result),
            entry["source"],
        )
        for entry in value["results"]
        if (entry["dataset"], entry["dataset"], entry["setting"]) == wanted
        and split in entry["splits"]
    )


def published_entry(name: str, dataset: str, split: str) -> dict[str, Any] | None:
    """What the file of published results says of a method, in percent; None for nothing."""
    for entry in _file()["results"]:
        if (entry["name"], entry["dataset"]) == (name, dataset) and split in entry["splits"]:
            return entry
    return None


def _file() -> dict[str, Any]:
    with resources.as_file(resources.files("evaluation") / "data" / "published.json") as file:
        return read_json(file)


def _conditions(stated: str, test_images: int, result: Results) -> str:
    if result.num_images == test_images:
        return stated
    others = f"all {test_images:,} test pictures instead of {result.num_images:,}"
    return f"{stated}; {others}"
