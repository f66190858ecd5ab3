"""Writes format 1: a shard is either complete under its name or not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.files import replacing, sha256_of_file
from teacher_cache.format import (
    FAILED_ID,
    FAILED_REASON,
    FORMAT_VERSION,
    IMAGE_ID,
    PAIR_DATASETS,
    PAIR_OFFSETS,
    REGION_BOX,
    REGION_EMBEDDING,
    ImageAnswers,
)
from teacher_cache.reader import TeacherText

TEXT = h5py.string_dtype("utf-8")


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of a finished shard.

    Attributes:
        name: file name.
        sha256: of the file.
        images: ids of the images with answers.
        pairs, regions: how many rows.
        failed: reasons by id of images that could not be read.
    """

    name: str
    sha256: str
    images: tuple[str, ...]
    pairs: int
    regions: int
    failed: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entry; `failed` stands in the manifest's own list."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "pairs": self.pairs,
            "regions": self.regions,
            "images": list(self.images),
        }


def write_shard(
    path: Path,
    fingerprint: str,
    image_ids: Sequence[str],
    answers: Sequence[ImageAnswers],
    failed: dict[str, str],
    num_verbs: int,
) -> None:
    """Writes one shard; datasets are contiguous, so that readers can map them.

    Args:
        path: where; the file appears complete or not at all.
        fingerprint: of the cache.
        image_ids, answers: N images and what the teacher says about them, regions numbered within
            the image.
        failed: reasons by id of the shard's images that could not be read.
        num_verbs: V, for shards without any pair.
    """
    counts = [len(answer.pairs) for answer in answers]
    region_counts = [len(answer.region_boxes) for answer in answers]
    first_regions = np.cumsum([0, *region_counts])
    columns = {
        "pairs/human_box": [answer.pairs.human_boxes for answer in answers],
        "pairs/object_box": [answer.pairs.object_boxes for answer in answers],
        "pairs/human_score": [answer.pairs.human_scores for answer in answers],
        "pairs/object_score": [answer.pairs.object_scores for answer in answers],
        "pairs/object_label": [answer.pairs.object_labels for answer in answers],
        "pairs/source": [answer.pairs.sources for answer in answers],
        "pairs/region": [
            answer.regions + first
            for answer, first in zip(answers, first_regions[:-1], strict=True)
        ],
        "pairs/action_probabilities": [answer.probabilities for answer in answers],
    }
    widths: dict[str, tuple[int, ...]] = {
        "pairs/human_box": (4,),
        "pairs/object_box": (4,),
        "pairs/action_probabilities": (num_verbs,),
    }
    with _new_file(path, fingerprint) as file:
        file.create_dataset(IMAGE_ID, data=list(image_ids), dtype=TEXT)
        file.create_dataset(FAILED_ID, data=list(failed), dtype=TEXT)
        file.create_dataset(FAILED_REASON, data=list(failed.values()), dtype=TEXT)
        file.create_dataset(PAIR_OFFSETS, data=np.cumsum([0, *counts]).astype(np.int64))
        for name, kind in PAIR_DATASETS.items():
            file.create_dataset(name, data=_joined(columns[name], widths.get(name, ()), kind))
        boxes = [answer.region_boxes for answer in answers]
        file.create_dataset(REGION_BOX, data=_joined(boxes, (4,), np.dtype("<f4")))
        embeddings = [answer.embeddings for answer in answers if answer.embeddings is not None]
        if embeddings:
            width = (embeddings[0].shape[1],)
            data = _joined(embeddings, width, np.dtype("<f2"))
            file.create_dataset(REGION_EMBEDDING, data=data)


def write_teacher(path: Path, fingerprint: str, text: TeacherText) -> None:
    """Writes `teacher.h5`: what is needed to ask new questions of stored image embeddings.

    Of several writers at the same instant the first one wins, so that all ask with one text.
    """
    with _new_file(path, fingerprint, once=not path.exists()) as file:
        file.attrs["logit_scale"] = text.logit_scale
        file.create_dataset("prompts", data=[list(row) for row in text.prompts], dtype=TEXT)
        file.create_dataset("text_embeddings", data=text.embeddings.astype(np.float32))


@contextmanager
def _new_file(path: Path, fingerprint: str, once: bool = False) -> Iterator[h5py.File]:
    """An HDF5 file that is put together in memory: HDF5 itself does not survive a full disk."""
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver="v110") as file:
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["fingerprint"] = fingerprint
        yield file
        file.flush()
        image = file.id.get_file_image()
    with replacing(path, once) as temporary:
        temporary.write_bytes(image)


def is_finished_shard(path: Path, fingerprint: str) -> bool:
    """Whether a complete shard of this cache is there; a file's name says complete."""
    return _contents(path, fingerprint) is not None


def finished_record(path: Path, fingerprint: str) -> ShardRecord | None:
    """The record of a shard on disk; None where there is no finished one of this cache."""
    contents = _contents(path, fingerprint)
    return contents and replace(contents, sha256=sha256_of_file(path))


def _contents(path: Path, fingerprint: str) -> ShardRecord | None:
    """A record without its checksum, which takes reading all of the file."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if (
                file.attrs.get("format_version") != FORMAT_VERSION
                or file.attrs.get("fingerprint") != fingerprint
            ):
                return None
            images = tuple(file[IMAGE_ID].asstr()[()].tolist())
            reasons = file[FAILED_REASON].asstr()[()].tolist()
            failed = dict(zip(file[FAILED_ID].asstr()[()].tolist(), reasons, strict=True))
            pairs = int(file[PAIR_OFFSETS][-1])
            regions = len(file[REGION_BOX])
    except (OSError, KeyError):
        return None
    return ShardRecord(path.name, "", images, pairs, regions, failed)


def _joined(arrays: Sequence[np.ndarray], width: tuple[int, ...], kind: np.dtype) -> np.ndarray:
    if not arrays:
        return np.zeros((0, *width), dtype=kind)
    return np.concatenate(arrays).astype(kind)
