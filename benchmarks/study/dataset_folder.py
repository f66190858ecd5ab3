"""Writes dataset folders that refer to the images of another folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.utils.files import write_text

Part = tuple[Path, Path | None]


def write_dataset_toml(out: Path, name: str, vocabulary: str, parts: Mapping[str, Part]) -> None:
    """Writes the `dataset.toml` of a folder.

    Args:
        out: the folder.
        name: name of the dataset.
        vocabulary: name of a built-in vocabulary, or of a file in the folder.
        parts: for each part, the folder of its images and the file of its annotations or None;
            relative paths are relative to `out`.
    """
    lines = [f"name = {json.dumps(name)}", f"vocabulary = {json.dumps(vocabulary)}"]
    for part, (images, labels) in parts.items():
        lines += ["", f"[{part}]", f"images = {json.dumps(str(images))}"]
        lines += [f"annotations = {json.dumps(str(labels))}"] if labels else []
    write_text(out / "dataset.toml", "\n".join([*lines, ""]))
