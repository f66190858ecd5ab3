"""Names, dtypes and version of cache format 1, and `TeacherOutputs`, the content of one image."""

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
# The part of a fingerprint that names a teacher other than one of open_clip, and that of what its
# probabilities are: a softmax over the actions of a pair's object, which is meant where the part is
# absent, or independent of each other.
TEACHER_PART, PROBABILITIES_PART = "teacher", "probabilities"
SOFTMAX, INDEPENDENT = "softmax", "independent"
# The toy detector's name in fingerprints and settings. It has to stay: with another value, existing
# caches would have another fingerprint.
TOY, TOY_IN_CACHES = "toy", "world"
# Values of `pairs/source`: an annotated pair, or one formed from detected boxes.
ANNOTATED, PROPOSED = 0, 1

# Pixels and scores are float32. Probabilities and embeddings are float16: they take most of the
# space, and their error (about 5e-4) is below the difference between kinds of devices.
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
        probabilities: (P, V) float32 action probabilities of the teacher; 0 for verbs that form no
            interaction with the pair's object. Read from a cache, they have float16 precision.
        region_indices: (P,) int64, the row of `region_boxes` that belongs to each pair.
        region_boxes: (R, 4) float32, xyxy, pixels of the original image: the distinct union boxes.
        embeddings: (R, D) normalised image embeddings of the regions; read from a cache, they are
            float16 and read-only; None in a cache without embeddings.
    """

    pairs: Pairs
    probabilities: np.ndarray
    region_indices: np.ndarray
    region_boxes: np.ndarray
    embeddings: np.ndarray | None


def shard_name(index: int) -> str:
    """File name of a shard; with five digits names sort in the order of their numbers."""
    return f"{index:05d}.h5"


def displayed_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of a fingerprint with the names that the commands take."""
    is_toy = parts.get("detector.model") == TOY_IN_CACHES
    return {**parts, **({"detector.model": TOY} if is_toy else {})}


def vocabulary_to_dict(vocabulary: Vocabulary) -> dict[str, Any]:
    """The vocabulary as the manifest stores it."""
    value = vocabulary.to_dict()
    return {key: value[key] for key in ("name", "objects", "verbs", "interactions")}


def check_format_version(file: Path, version: Any) -> None:
    """Raises an InputError if a file's `format_version` is not `FORMAT_VERSION`."""
    if version != FORMAT_VERSION:
        raise bad_field(file, "format_version", str(FORMAT_VERSION), version)
