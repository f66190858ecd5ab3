"""Detects EXIF orientation tags that are left over from before images were rotated.

Some programs rotate the pixels of an image and keep its EXIF tag. Where boxes are annotated in
stored pixels, the labelled people show this: in images that the tag turns by 90 degrees people
should be wider than high as stored. If they are higher than wide, the images are stored upright
already and the tag must not be applied.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.annotations.box_format import MAX_WRONG_SHARE, far_outside_mask
from pipeline.images import ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError

# Tags count as left over only with this many people, whose mean logarithmic aspect ratio is this
# many standard errors above 0. For the people of HICO-DET the mean is 0.4, the deviation 0.5.
MIN_PEOPLE, MIN_STANDARD_ERRORS = 10, 3


@dataclass(frozen=True)
class SidewaysImages:
    """Statistics of a part's images that their EXIF tags turn by 90 degrees, boxes as stored.

    Attributes:
        num_images: number of these images.
        log_aspect_ratios: (P,) logarithm of height by width of the labelled people.
        num_fit_stored, num_fit_upright: images whose declared size, or whose boxes if no size is
            declared, fit the stored image but not the upright one, and the other way round.
        undeclared: those of the images that fit only upright that declare no size, by file name.
    """

    num_images: int
    log_aspect_ratios: np.ndarray
    num_fit_stored: int
    num_fit_upright: int
    undeclared: tuple[str, ...]

    def check(self, file: Path) -> None:
        """Refuses boxes that fit the upright images only. Declared sizes are checked elsewhere.

        Raises:
            InputError: names the annotation file and the first of these images.
        """
        if len(self.undeclared) > max(self.num_fit_stored, MAX_WRONG_SHARE * self.num_images):
            raise InputError(
                f'{file}: bbox: expected boxes in stored pixels (orientation = "stored"), found'
                f" boxes of {len(self.undeclared)} images that fit only after the EXIF tag is"
                f" applied, first {self.undeclared[0]}; if this is intended, set orientation ="
                ' "upright" in dataset.toml'
            )


def find_sideways_images(
    annotations: Sequence[Annotation], headers: Sequence[ImageHeader | InputError], person: int
) -> SidewaysImages:
    """Statistics of the images that EXIF tags turn by 90 degrees.

    Args:
        annotations: boxes in stored pixels.
        headers: headers of the same images; unreadable images are skipped.
        person: object index of `person`.
    """
    people, num_images, num_fit_stored, num_fit_upright = [np.zeros((0, 4))], 0, 0, 0
    undeclared = []
    for annotation, header in zip(annotations, headers, strict=True):
        if isinstance(header, InputError) or not header.is_transposed:
            continue
        num_images += 1
        people.append(annotation.boxes[annotation.labels == person])
        fits_stored, fits_upright = (
            not far_outside_mask(annotation.boxes, size).any()
            if annotation.size is None
            else annotation.size == size
            for size in (header.stored_size, header.size)
        )
        num_fit_stored += fits_stored and not fits_upright
        if fits_upright and not fits_stored:
            num_fit_upright += 1
            if annotation.size is None:
                undeclared.append(annotation.image_id)
    boxes = np.concatenate(people)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return SidewaysImages(
        num_images, np.log(height / width), num_fit_stored, num_fit_upright, tuple(undeclared)
    )


def stale_exif_message(parts: Collection[SidewaysImages]) -> str:
    """Why the EXIF tags of a dataset are not applied; empty if they are to be applied.

    Args:
        parts: statistics of the dataset's parts, which are judged together.
    """
    ratios = np.concatenate([part.log_aspect_ratios for part in parts])
    if len(ratios) < MIN_PEOPLE or sum(part.num_fit_upright for part in parts) > sum(
        part.num_fit_stored for part in parts
    ):
        return ""
    if ratios.mean() < MIN_STANDARD_ERRORS * ratios.std() / len(ratios) ** 0.5:
        return ""
    return (
        f"EXIF tags turn {sum(part.num_images for part in parts)} images of the dataset by 90"
        f" degrees, but the {len(ratios)} people labelled in them stand upright as stored"
        f" (height {np.exp(ratios.mean()):.1f} times the width); the tags are taken as left over"
        " and are not applied"
    )
