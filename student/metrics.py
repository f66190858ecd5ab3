"""A run's logs: files with one JSON object a line, each with the step it is about."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.files import write_text

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


def rewind(path: Path, step: int) -> None:
    """Drops what a killed run logged after its last checkpoint; those steps come again.

    Args:
        path: the log; nothing happens where there is none.
        step: optimiser steps done at the checkpoint.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _logged_by(line, step)]
    if kept != lines:
        write_text(path, "".join(kept))


def _logged_by(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        # A power cut can leave anything at the end of a file.
        return False
