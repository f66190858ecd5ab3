"""What decides a prediction's results, so that a stopped command goes on and no other mixes in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.nms import NmsConfig
from pipeline.errors import InputError
from pipeline.files import differing_keys, sha256_of_file
from student.ready import ReadyModel

FORMAT = "eoid-predict-2"
COMPARED = (
    *("format", "model_sha256", "vocabulary", "split", "unseen", "prompts"),
    *("threshold", "top", "nms"),
)


def prediction_settings(
    opened: ReadyModel, threshold: float, top: int, nms: NmsConfig | None
) -> dict[str, Any]:
    """The settings as JSON: the model, what its numbers mean, and what is kept."""
    return {
        "format": FORMAT,
        "model": str(opened.file),
        "model_sha256": sha256_of_file(opened.file),
        "vocabulary": opened.vocabulary.name,
        "split": opened.split.name if opened.split else None,
        "unseen": [opened.vocabulary.interaction_name(one) for one in sorted(opened.unseen)],
        "prompts": sha256_of_file(opened.prompts) if opened.prompts else None,
        "threshold": threshold,
        "top": top,
        "nms": None if nms is None else asdict(nms),
    }


def refuse_other_settings(found: Any, settings: dict[str, Any], file: Path) -> None:
    """Guards results that are there.

    Args:
        found: the settings that `file` holds.

    Raises:
        InputError: they are not `settings`.
    """
    different = differing_keys(found, {key: settings[key] for key in COMPARED})
    if different:
        raise InputError(
            f"{file}: holds results of other settings ({', '.join(different)}); name a new folder"
            " or give --overwrite"
        )
