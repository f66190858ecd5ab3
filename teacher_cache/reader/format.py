"""Format 1 of a cache folder: names, types, the fingerprint, and one image's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.types import Pairs
from pipeline.utils.errors import bad_field
from pipeline.vocabulary import Vocabulary

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PLAN = "build.json"
TEACHER = "teacher.h5"
SHARDS = "shards"
LOCK = ".lock"
# Values of `pairs/source`.
ANNOTATED, PROPOSED = 0, 1

# Pixels and scores are float32; model outputs are float16, half the bytes of a folder.
PAIR_DATASETS: dict[str, np.dtype] = {
    "pairs/human_box": np.dtype("<f4"),
    "pairs/object_box": np.dtype("<f4"),
    "pairs/human_score": np.dtype("<f4"),
    "pairs/object_score": np.dtype("<f4"),
    "pairs/object_label": np.dtype("<i2"),
    "pairs/source": np.dtype("u1"),
    "pairs/region": np.dtype("<i4"),
    "pairs/action_probabilities": np.dtype("<f2"),
}
REGION_BOX = "regions/box"
REGION_EMBEDDING = "regions/embedding"
IMAGE_ID = "images/id"
PAIR_OFFSETS = "images/pair_offsets"
FAILED_ID = "failed/id"
FAILED_REASON = "failed/reason"


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """The teacher's outputs for one image.

    Attributes:
        pairs: the P human-object pairs.
        probabilities: (P, V) float32, the teacher's action probabilities; 0 for verbs that do
            not go with the object. They were stored as float16.
        region_indices: (P,) int64, every pair's row of `region_boxes`.
        region_boxes: (R, 4) float32, xyxy, pixels of the original image: the distinct union boxes.
        embeddings: (R, D) normalised image embeddings of the regions, as stored: float16 and
            read-only when they come from a cache; None in a cache without them.
    """

    pairs: Pairs
    probabilities: np.ndarray
    region_indices: np.ndarray
    region_boxes: np.ndarray
    embeddings: np.ndarray | None


def shard_name(index: int) -> str:
    """File name of a shard: five digits, so that names sort as numbers."""
    return f"{index:05d}.h5"


def vocabulary_to_dict(vocabulary: Vocabulary) -> dict[str, Any]:
    """The vocabulary in the form of a manifest."""
    value = vocabulary.to_dict()
    return {key: value[key] for key in ("name", "objects", "verbs", "interactions")}


def check_format_version(file: Path, version: Any) -> None:
    """Refuses what a later version of this project wrote.

    Raises:
        InputError: not the format version that this code knows.
    """
    if version != FORMAT_VERSION:
        raise bad_field(file, "format_version", str(FORMAT_VERSION), version)
