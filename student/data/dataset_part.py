"""A dataset part as training and evaluation use it: annotations, and pictures that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset
from pipeline.datasets.size_check import ImageSizeCheck, check_image_sizes
from pipeline.types import Annotation, Detections, ImageRecord
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from student.utils.distributed import DistContext
from teacher_cache.reader.cache import TeacherCache

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class DatasetPart:
    """A part that was read and checked.

    Attributes:
        annotation_file: all its annotations.
        annotations, records: of the pictures that can be used, in the file's order.
        sizes: of the pictures, and what is wrong with others.
    """

    annotation_file: AnnotationFile
    annotations: Sequence[Annotation]
    records: Sequence[ImageRecord]
    sizes: ImageSizeCheck

    @property
    def image_sizes(self) -> np.ndarray:
        """(N, 2) heights and widths of the upright pictures of `records`."""
        sizes = [self.sizes.sizes[one.id][::-1] for one in self.records]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def with_empty_detections(self, detections: Sequence[Detections]) -> list[Detections]:
        """Detections of `records`, and none for each other picture, in the file's order."""
        found = {one.image_id: one for one in detections}
        return [
            found.get(one.image_id) or Detections.empty(one.image_id)
            for one in self.annotation_file.annotations
        ]


def open_part(
    dataset: Dataset,
    part: str,
    context: DistContext,
    cache: TeacherCache | None = None,
    require_labels: bool = True,
    decode: bool = False,
) -> DatasetPart:
    """Reads a part's annotations in every process and its pictures' headers in the first one.

    Args:
        dataset, part: which.
        context: told what people should know.
        cache: which pictures count, those with answers in it; all where there is none.
        require_labels: whether a part without any label is an error, and a picture that is not
            there although the cache has no answers about it.
        decode: also find pictures that were cut off; those that are missing cannot be used either
            and are no error.

    Raises:
        InputError: annotations, cache or pictures do not fit; in every process.
    """
    loaded: list[AnnotationFile] = []

    def counted(annotations: AnnotationFile) -> AnnotationFile:
        own = [one for one in annotations.annotations if cache is None or one.image_id in cache]
        return replace(annotations, annotations=tuple(own))

    def look() -> ImageSizeCheck:
        loaded.append(dataset.load(part))
        (annotations,) = loaded
        if line := annotations.format_issues():
            logger.warning(line)
        if require_labels:
            annotations.require_labels()
        own = counted(annotations)
        if cache is not None:
            cache.check(dataset.vocabulary, annotations.digest, part)
            if not own.annotations:
                raise InputError(f"{cache.path}: expected answers for training images, found none")
        if not decode:
            dataset.records(annotations if require_labels else own)
        sizes = check_image_sizes(dataset, own, decode)
        sizes.raise_errors()
        return sizes

    sizes, headers = context.broadcast(lambda: (look(), dataset.headers))
    dataset.headers.update(headers)
    file = loaded[0] if loaded else dataset.load(part)
    for line in sizes.warnings():
        logger.warning(line)
    own = counted(file)
    if left_out := len(file.annotations) - len(own.annotations):
        # A cache lists them as failed: their images could not be read.
        logger.warning(f"{cache and cache.path}: no answers for {left_out} images, left out")
    usable = [one for one in own.annotations if one.image_id not in sizes.unusable]
    records = dataset.records(replace(own, annotations=tuple(usable)))
    return DatasetPart(file, usable, records, sizes)


def open_test_part(dataset: Dataset, context: DistContext, skip_unreadable: bool) -> DatasetPart:
    """The test part.

    Raises:
        InputError: something does not fit, or a picture cannot be used and is not to be skipped.
    """
    part = open_part(dataset, "test", context, decode=True)
    if part.sizes.unusable:
        reason = next(iter(part.sizes.unusable.values()))
        count = (
            f"{len(part.sizes.unusable)} of {len(part.annotation_file.annotations)} test pictures"
        )
        if not part.records:
            raise InputError(f"{reason} ({count} cannot be used)")
        if not skip_unreadable:
            raise InputError(
                f"{reason} ({count} cannot be used; --skip-unreadable counts them as images without"
                " detections)"
            )
        logger.warning(f"{reason} ({count} cannot be used and count as images without detections)")
    return part
