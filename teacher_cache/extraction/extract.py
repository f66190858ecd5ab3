"""Runs detector and teacher on the images of one shard (EoID section 3.3).

For each image: detect persons and objects, form pairs, and let the teacher score them; CLIP, for
instance, encodes their union boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from pipeline.images import TransientReadError
from pipeline.types import Pairs
from pipeline.utils.devices import convert_out_of_memory
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.base import ObjectDetector
from teacher_cache.detectors.pairing import (
    ObjectBoxes,
    PairingConfig,
    concatenate_pairs,
    form_pairs,
)
from teacher_cache.extraction.decoding import (
    ImageTask,
    prefetch_images,
    same_size_batches,
    try_read,
)
from teacher_cache.reader.format import TeacherOutputs
from teacher_cache.teachers.base import Batch, CheckedScores, Teacher, TeacherImage
from teacher_cache.teachers.regions import RegionMode, union_regions, whole_image_region

# Threads that decode the images of the next batch.
MAX_DECODERS = 4


@dataclass(frozen=True)
class ExtractionConfig:
    """Settings of `extract`.

    Attributes:
        level: the region of a pair: "region", its union box, or "image", the whole image.
        region: how that becomes the teacher's square input.
        images_per_batch: largest detector batch; it contains images of one size.
        regions_per_batch: the teacher's batch size, also with regions of different images; None
            for its default.
        embeddings: whether region embeddings are stored.
        strict: whether an unreadable image ends the build.
    """

    pairing: PairingConfig = field(default_factory=PairingConfig)
    level: str = "region"
    region: RegionMode = field(default_factory=RegionMode)
    images_per_batch: int = 16
    regions_per_batch: int | None = None
    embeddings: bool = True
    strict: bool = False


@dataclass(frozen=True, eq=False)
class TeacherModels:
    """The frozen models, without a detector where all boxes are known beforehand."""

    detector: ObjectDetector | None
    teacher: Teacher
    vocabulary: Vocabulary


@dataclass(frozen=True, eq=False)
class _ImagePairs:
    """Pairs and regions of an image before the teacher: (P,) rows of the (R, 4) xyxy
    `region_boxes`."""

    index: int
    pairs: Pairs
    region_indices: np.ndarray
    region_boxes: np.ndarray


class UnreadableNowError(InputError):
    """An image cannot be read, but perhaps later."""


def extract(
    image_tasks: Sequence[ImageTask],
    models: TeacherModels,
    config: ExtractionConfig,
    on_progress: Callable[[int], None],
    last_try: bool = True,
) -> tuple[dict[str, TeacherOutputs], dict[str, str]]:
    """Computes the teacher's outputs for the images of a shard.

    Images are decoded one batch ahead, and the teacher may score one batch while the detector runs
    on the next. The images of a batch have equal sizes, so none of them is padded.

    Without `last_try`, images that cannot be read end the extraction, if they may be readable
    later: those without an intact header, which is noticed before the models run; those with a
    `TransientReadError`; and those that turn out to be whole when they are read again at the end.

    Args:
        image_tasks, models, config: images, models and settings.
        on_progress: receives the number of images after each batch.
        last_try: whether images that cannot be read are left out.

    Returns:
        Image id -> outputs, in the order of the image tasks; and image id -> error, for images that
        could not be read.

    Raises:
        InputError: an image cannot be read and the configuration is strict; scores are not
            valid; or the batches exceed the GPU's memory.
        UnreadableNowError: see above.
    """
    teacher, last_try = models.teacher, last_try or config.strict
    # Index of an image that cannot be read -> error.
    reasons: dict[int, str] = {}
    image_pairs: list[_ImagePairs] = []
    # Those of the latest batch, which the error message of `describe_batches` needs.
    sizes: list[tuple[int, int]] = []

    def describe_batches() -> str:
        shapes = {f"{width} x {height}" for width, height in sizes}
        detector_batch = f"{count_noun(len(sizes), 'images')} of {' and '.join(shapes)} pixels"
        regions = "" if teacher.batch_size is None else f"batch size {teacher.batch_size} regions, "
        return f"{regions}detector batch size {detector_batch}"

    def on_header_error(index: int, error: InputError) -> None:
        if not last_try:
            raise UnreadableNowError(str(error))
        on_error(index, error)

    def on_error(index: int, error: InputError) -> None:
        if config.strict:
            raise error
        if not last_try and isinstance(error, TransientReadError):
            raise UnreadableNowError(str(error))
        # Without the path: a cache must not depend on the folder of its dataset.
        reasons[index] = str(error).removeprefix(f"{image_tasks[index].path}: ")

    def make_batches(decoders: ThreadPoolExecutor) -> Iterator[Batch]:
        batches = same_size_batches(image_tasks, config.images_per_batch, on_header_error)
        for indices, images in prefetch_images(decoders, batches, image_tasks, on_error):
            sizes[:] = [image.size for image in images]
            if images:
                tasks = [(index, image_tasks[index]) for index in indices]
                batch = _detect_pairs(tasks, images, models, config)
                image_pairs.extend(batch)
                yield (
                    [
                        TeacherImage(task.image_id, image, one.region_boxes, one.region_indices)
                        for (_, task), image, one in zip(tasks, images, batch, strict=True)
                    ],
                    [one.pairs for one in batch],
                )
                on_progress(len(images))
            # Not held while the next ones are decoded.
            del images

    num_decoders = min(torch.get_num_threads(), MAX_DECODERS)
    with convert_out_of_memory(describe_batches), ThreadPoolExecutor(num_decoders) as decoders:
        scores = list(teacher.score_batches(make_batches(decoders), models.vocabulary))
    for index in () if last_try else reasons:
        # A file may have been copied to its place, or read wrongly, in the meantime.
        if not isinstance(try_read(image_tasks[index].path), InputError):
            raise UnreadableNowError(f"{image_tasks[index].path}: {reasons[index]}")
    on_progress(len(reasons))
    outputs = _teacher_outputs(
        image_pairs, scores, image_tasks, models.vocabulary.num_verbs, config.embeddings
    )
    # Batches are formed by image size; a shard lists its images in the annotation file's order.
    in_order = sorted(zip(image_pairs, outputs, strict=True), key=lambda each: each[0].index)
    by_image = {image_tasks[image.index].image_id: output for image, output in in_order}
    failed = {image_tasks[index].image_id: reasons[index] for index in sorted(reasons)}
    return by_image, failed


def _detect_pairs(
    image_tasks: Sequence[tuple[int, ImageTask]],
    images: Sequence[Image.Image],
    models: TeacherModels,
    config: ExtractionConfig,
) -> list[_ImagePairs]:
    """Forms the pairs of a batch of images from detected boxes, or from those of the tasks."""
    if models.detector is not None:
        boxes_by_image: list[ObjectBoxes | None] = [*models.detector.detect(images)]
    else:
        boxes_by_image = [image_task.boxes for _, image_task in image_tasks]
    image_pairs = []
    for (index, image_task), image, boxes in zip(image_tasks, images, boxes_by_image, strict=True):
        assert boxes is not None, "without a detector all boxes are known"
        found = pair_regions(image_task, boxes, image.size, models.vocabulary, config)
        image_pairs.append(_ImagePairs(index, *found))
    return image_pairs


def pair_regions(
    image_task: ImageTask,
    boxes: ObjectBoxes,
    size: tuple[int, int],
    vocabulary: Vocabulary,
    config: ExtractionConfig,
) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """The P pairs of an image, annotated ones and those of `boxes`, and their R regions.

    Returns:
        The pairs, (P,) rows of their regions, and (R, 4) xyxy regions in an image of width and
        height `size`.
    """
    candidates = form_pairs(boxes, vocabulary, config.pairing)
    pairs = concatenate_pairs(image_task.annotated_pairs, candidates)
    if config.level == "image":
        region_boxes, region_indices = whole_image_region(pairs, size)
    else:
        region_boxes, region_indices = union_regions(pairs)
    return pairs, region_indices, region_boxes


def _check_finite(
    image_pairs: Sequence[_ImagePairs], embeddings: np.ndarray, image_tasks: Sequence[ImageTask]
) -> None:
    """Refuses embeddings that are not finite, and names the first image with one."""
    rows = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if not len(rows):
        return
    image_indices = np.repeat(
        [image.index for image in image_pairs], [len(image.region_boxes) for image in image_pairs]
    )
    boxes = np.concatenate([image.region_boxes for image in image_pairs])
    raise bad_field(
        image_tasks[image_indices[rows[0]]].path,
        f"region {boxes[rows[0]].round(1).tolist()}",
        "finite embeddings in float32",
        f"others in {len(rows)} of {len(embeddings)} regions",
    )


def _teacher_outputs(
    image_pairs: Sequence[_ImagePairs],
    scores: Sequence[CheckedScores],
    image_tasks: Sequence[ImageTask],
    num_verbs: int,
    keep_embeddings: bool,
) -> list[TeacherOutputs]:
    """Divides the scores of all pairs and regions among the images."""
    pair_offsets = np.cumsum([0, *(len(image.pairs) for image in image_pairs)])
    region_offsets = np.cumsum([0, *(len(image.region_boxes) for image in image_pairs)])
    no_pairs = np.zeros((0, num_verbs), np.float32)
    probabilities = np.concatenate([no_pairs, *(each for each, _ in scores)])
    assert len(probabilities) == pair_offsets[-1], "a teacher scores all pairs"
    embedded = [each for _, each in scores if each is not None]
    embeddings = np.concatenate(embedded) if embedded else None
    if embeddings is not None:
        assert len(embeddings) == region_offsets[-1], "a teacher embeds all regions, or none"
        _check_finite(image_pairs, embeddings, image_tasks)
    return [
        TeacherOutputs(
            pairs=image.pairs,
            probabilities=probabilities[pair_offsets[n] : pair_offsets[n + 1]],
            region_indices=image.region_indices,
            region_boxes=image.region_boxes,
            embeddings=embeddings[region_offsets[n] : region_offsets[n + 1]]
            if embeddings is not None and keep_embeddings
            else None,
        )
        for n, image in enumerate(image_pairs)
    ]
