"""A training run's `metrics.jsonl`: one JSON object a line, with the losses at a step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.utils.errors import bad_field

TOTAL_LOSS, LEARNING_RATE = "total loss", "learning rate"
LOSS_TITLES = {"verb_hard": "verbs: labels", "verb_soft": "verbs: teacher's answers"}


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """What a run wrote down while training.

    Attributes:
        steps: (N,) optimiser steps done.
        series: (N,) values by name: total loss, its parts, learning rate; NaN where a line lacks
            one.
    """

    steps: np.ndarray
    series: dict[str, np.ndarray]


def read_training_log(path: Path | None) -> TrainingLog | None:
    """A run's log; None where there is none or it has no line yet.

    Losses of auxiliary layers (their names end in a number) are left out, and so is a line that a
    killed run left unfinished.

    Raises:
        InputError: a line is not what a log has.
    """
    if path is None or not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").split("\n")
    # Whatever stands behind the last line break was still being written.
    entries = [_parse_line(path, row, line) for row, line in enumerate(lines[:-1]) if line.strip()]
    if not entries:
        return None
    names = dict.fromkeys(name for _, values in entries for name in values)
    series = {
        name: np.array([values.get(name, np.nan) for _, values in entries], dtype=np.float64)
        for name in names
    }
    return TrainingLog(np.array([step for step, _ in entries]), series)


def _parse_line(path: Path, row: int, line: str) -> tuple[int, dict[str, float]]:
    expected = "an object with step, loss, losses and lr"
    where = f"line {row + 1}"
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError:
        raise bad_field(path, where, expected, line) from None
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        raise bad_field(path, where, expected, line)
    losses = entry.get("losses", {})
    named = {
        LOSS_TITLES.get(name, name.replace("_", " ")): value
        for name, value in (losses if isinstance(losses, dict) else {}).items()
        if not name.rsplit("_", 1)[-1].isdigit()
    }
    values = {TOTAL_LOSS: entry.get("loss"), **named, LEARNING_RATE: entry.get("lr")}
    return entry["step"], {
        name: float(value) for name, value in values.items() if isinstance(value, int | float)
    }
