"""Dataset folders that show pictures of another folder where they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.utils.files import write_text

Part = tuple[Path, Path | None]


def write_folder(out: Path, name: str, vocabulary: str, parts: Mapping[str, Part]) -> None:
    """Writes a folder's `dataset.toml`.

    Args:
        out: the folder.
        name: of the dataset.
        vocabulary: a shipped name, or a file in the folder.
        parts: folder of images and file of annotations, None for none, by the part's name; a
            relative path is seen from the folder.
    """
    lines = [f"name = {json.dumps(name)}", f"vocabulary = {json.dumps(vocabulary)}"]
    for part, (images, labels) in parts.items():
        lines += ["", f"[{part}]", f"images = {json.dumps(str(images))}"]
        lines += [f"annotations = {json.dumps(str(labels))}"] if labels else []
    write_text(out / "dataset.toml", "\n".join([*lines, ""]))
