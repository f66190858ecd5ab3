"""Reads the training log of a run, `metrics.jsonl`: one JSON object per logged step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.utils.errors import bad_field

TOTAL_LOSS, LEARNING_RATE = "total loss", "learning rate"
KEPT_CANDIDATES = "candidates kept"
LOSS_TITLES = {"verb_hard": "verbs: hard labels", "verb_soft": "verbs: soft targets"}


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """The training log of a run.

    Attributes:
        steps: (N,) number of optimiser steps.
        series: (N,) float64 values by name: total loss, its terms, candidate pairs kept by the
            matching, learning rate; NaN at steps without a value.
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
    steps, rows = [], []
    # Text after the last line break is a line that is still being written, or that an interrupted
    # run left incomplete.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            steps.append(int(entry["step"]))
            losses = entry.get("losses", {})
            values = {
                TOTAL_LOSS: entry.get("loss"),
                **losses,
                KEPT_CANDIDATES: entry.get("candidates", {}).get("kept"),
                LEARNING_RATE: entry.get("lr"),
            }
        except (ValueError, TypeError, KeyError, AttributeError):
            expected = "an object with step, loss, losses and lr"
            raise bad_field(path, f"line {number}", expected, line) from None
        rows.append(
            {
                LOSS_TITLES.get(name, name.replace("_", " ")): float(value)
                for name, value in values.items()
                if isinstance(value, int | float) and not name.rsplit("_", 1)[-1].isdigit()
            }
        )
    if not rows:
        return None
    series = {
        name: np.array([row.get(name, np.nan) for row in rows])
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    return TrainingLog(np.array(steps), series)
