"""Reads the training log of a run, `metrics.jsonl`: one JSON object per logged step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.utils.errors import bad_field

TOTAL_LOSS, LEARNING_RATE = "total loss", "learning rate"
LOSS_TITLES = {"verb_hard": "verbs: hard labels", "verb_soft": "verbs: soft targets"}


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """The training log of a run.

    Attributes:
        steps: (N,) number of optimiser steps.
        series: (N,) float64 values by name: total loss, its terms, learning rate; NaN at steps
            without a value.
    """

    steps: np.ndarray
    series: dict[str, np.ndarray]


def read_training_log(path: Path | None) -> TrainingLog | None:
    """Reads the log of a run; None if there is no file or it is empty.

    Losses of auxiliary layers, whose names end in a number, are left out, and so is an incomplete
    last line.

    Raises:
        InputError: a line is invalid.
    """
    if path is None or not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").split("\n")
    # Text after the last line break is a line that is still being written, or that an interrupted
    # run left incomplete.
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
