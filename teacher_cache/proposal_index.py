"""A detections file brought into rows once, for every process that makes shards.

Results files of large datasets take minutes to read. While a cache is being built, the rows lie
beside its shards, from where other processes map them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.annotations import AnnotationFile
from pipeline.boxes import upright_boxes
from pipeline.datasets import STORED, Dataset, image_names
from pipeline.errors import InputError
from pipeline.files import replacing, sha256_of_file, sha256_of_json
from pipeline.images import ImageHeader
from teacher_cache.image_numbers import images_by_key
from teacher_cache.proposals import ROW, Proposals, SizesOf, read_proposals


@dataclass(frozen=True)
class ProposalsConfig:
    """Where detections come from.

    Attributes:
        file: in COCO's results form.
        folder: the cache, where the rows are kept.
    """

    file: Path
    folder: Path


def open_proposals(
    config: ProposalsConfig, dataset: Dataset, annotations: AnnotationFile, strict: bool
) -> Proposals:
    """The rows that another process left, or the file's own.

    Args:
        config: where.
        dataset, annotations: what the detections are about.
        strict: refuse boxes over the edge and without area.

    Raises:
        InputError: the file is missing or wrong.
    """
    if not config.file.is_file():
        raise InputError(f"{config.file}: no such file")
    digest = sha256_of_file(config.file)
    # What the rows follow from. Strict builds do not take what a lenient one clipped.
    about = [digest, dataset.vocabulary.digest(), annotations.digest, annotations.part, strict]
    index = config.folder / f"proposals-{sha256_of_json(about)[:16]}.npy"
    try:
        rows = np.load(index, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError):
        rows = None
    if rows is not None and rows.dtype == ROW:
        return Proposals(rows, digest, Counter(), index)
    folder = dataset.part(annotations.part).images
    images = images_by_key(annotations.annotations, image_names(folder) | annotations.unlabelled)
    sizes_of = _sizes(dataset, annotations)
    read = read_proposals(config.file, images, sizes_of, dataset.vocabulary, strict)
    _turn_upright(read.rows, dataset, annotations)
    return replace(read, index=index)


def keep_proposals(proposals: Proposals) -> None:
    """Leaves rows where `open_proposals` of other processes finds them."""
    assert proposals.index is not None
    if not proposals.index.is_file():
        with replacing(proposals.index) as temporary, open(temporary, "wb") as file:
            np.save(file, proposals.rows)


def drop_proposals(proposals: Proposals) -> None:
    """Removes the rows; a finished cache does not need them."""
    assert proposals.index is not None
    proposals.index.unlink(missing_ok=True)


def _sizes(dataset: Dataset, annotations: AnnotationFile) -> SizesOf:
    """Sizes as annotated, or as the pictures' headers say."""

    def sizes_of(places: np.ndarray) -> np.ndarray:
        distinct, rows = np.unique(places, return_inverse=True)
        sizes = np.full((len(distinct), 2), np.inf)
        stored = dataset.orientation == STORED
        asked = []
        for row, place in enumerate(distinct.tolist()):
            annotation = annotations.annotations[place]
            if annotation.size is None or stored:
                asked.append((row, annotation.image_id))
            else:
                sizes[row] = annotation.size
        headers = dataset.read_headers(annotations.part, [name for _, name in asked])
        for (row, _), header in zip(asked, headers, strict=True):
            # An image that cannot be read will be listed as failed, whatever its boxes.
            if isinstance(header, ImageHeader):
                sizes[row] = header.stored_size if stored else header.size
        return sizes[rows]

    return sizes_of


def _turn_upright(rows: np.ndarray, dataset: Dataset, annotations: AnnotationFile) -> None:
    """Turns the boxes of rows upright, in place, where the dataset's files count stored pixels."""
    if dataset.orientation != STORED:
        return
    places, starts = np.unique(rows["image"], return_index=True)
    names = [annotations.annotations[place].image_id for place in places.tolist()]
    ends = [*starts[1:].tolist(), len(rows)]
    headers = dataset.read_headers(annotations.part, names)
    for header, start, end in zip(headers, starts.tolist(), ends, strict=True):
        if isinstance(header, ImageHeader):
            boxes = rows["box"][start:end]
            rows["box"][start:end] = upright_boxes(boxes, header.orientation, header.stored_size)
