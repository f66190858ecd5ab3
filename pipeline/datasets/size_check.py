"""Checks images against what the dataset declares: sizes and EXIF orientation.

Some programs rotate the pixels of an image and keep its EXIF tag. Where boxes are annotated in
stored pixels, the labelled people show this: in images that the tag turns by 90 degrees people
should be wider than high as stored. If they are higher than wide, the images are stored upright
already and the tag must not be applied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.annotations.box_format import MAX_WRONG_SHARE, XYXY, BoxFormatCheck, far_outside_mask
from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.layouts import DATASET_FILE, STORED, UPRIGHT
from pipeline.images import ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.utils.text import count_noun

if TYPE_CHECKING:
    from pipeline.datasets.dataset import Dataset

# A part is refused if the declared size is wrong for more than this share of its images: they are
# probably not the annotated ones, or were resized.
MAX_MISMATCH_SHARE = 0.01
# Tags count as left over only with this many people, whose mean logarithmic aspect ratio is this
# many standard errors above 0. For the people of HICO-DET the mean is 0.4, the deviation 0.5.
MIN_PEOPLE, MIN_STANDARD_ERRORS = 10, 3


@dataclass
class ImageSizeCheck:
    """Result of comparing a part's annotations with the headers of its images.

    Attributes:
        folder, file: the images folder and the annotation file.
        orientation: the dataset's orientation of boxes, "upright" or "stored".
        orientation_assumed: `dataset.toml` does not set the orientation.
        stale_exif: message why EXIF tags are not applied; empty if they are.
        sizes: (width, height) of the upright images, by image id.
        unreadable: error message of every unreadable image, by image id.
        size_mismatch: declared and actual size, by image id, where they differ.
        orientation_mismatch: the same for images whose declared size is right in the other
            orientation.
        ambiguous: images with an EXIF orientation whose declared size fits both orientations, or
            is missing.
        fit_other: those of the ambiguous images whose boxes fit the other orientation only.
        box_format: format statistics of boxes in images without declared size.
    """

    folder: Path
    file: Path
    orientation: str
    orientation_assumed: bool
    stale_exif: str = ""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    size_mismatch: dict[str, str] = field(default_factory=dict)
    orientation_mismatch: dict[str, str] = field(default_factory=dict)
    ambiguous: list[str] = field(default_factory=list)
    fit_other: list[str] = field(default_factory=list)
    box_format: BoxFormatCheck = field(
        default_factory=lambda: BoxFormatCheck(XYXY, MAX_WRONG_SHARE)
    )

    @property
    def unusable(self) -> dict[str, str]:
        """Error message of every image that must not be used, by image id."""
        mismatched = {
            name: f"{self.folder / name}: expected the declared size, {sizes}"
            for name, sizes in {**self.orientation_mismatch, **self.size_mismatch}.items()
        }
        return {**self.unreadable, **mismatched}

    def raise_errors(self, strict: bool = False) -> None:
        """Refuses a part whose images or boxes do not belong together; see `errors`."""
        for problem in self.errors(strict):
            raise InputError(problem)

    def errors(self, strict: bool = False) -> Iterator[str]:
        """Messages if more than `MAX_MISMATCH_SHARE` of the images have another size than declared,
        and if many boxes reach far outside the images.

        Args:
            strict: no image may have another size than declared.
        """
        limit = 0 if strict else MAX_MISMATCH_SHARE * len(self.sizes)
        if len(self.orientation_mismatch) > limit:
            yield (
                f"{self.file}: width and height: expected those of the {self.orientation} images"
                f' (orientation = "{self.orientation}"), found those of the other orientation for'
                f" {self._first_of(self.orientation_mismatch)}; if boxes have that orientation too,"
                f' set orientation = "{self._other}" in {DATASET_FILE}'
            )
        if len(self.size_mismatch) > limit:
            yield (
                f"{self.folder}: expected images of the sizes that {self.file} declares, found"
                f" other sizes for {self._first_of(self.size_mismatch)}"
            )
        if problem := self.box_format.scale_error(self.file, "bbox"):
            yield problem

    def warnings(self) -> Iterator[str]:
        """Warnings about a part that is not refused, one line each."""
        if self.stale_exif:
            yield self.stale_exif
        if self.ambiguous:
            source = "the default" if self.orientation_assumed else f"set in {DATASET_FILE}"
            yield (
                f"{self.folder}: {len(self.ambiguous)} of {len(self.sizes)} images have an EXIF"
                f" orientation, first {self.ambiguous[0]}, and the sizes in {self.file} do not show"
                f" whether boxes are in pixels of the upright or the stored images; they are read"
                f' with orientation = "{self.orientation}", {source}'
            )
        if self.fit_other:
            yield (
                f"{self.folder}: boxes of {count_noun(len(self.fit_other), 'images')} with an EXIF"
                f" orientation,"
                f" first {self.fit_other[0]}, fit the other orientation only; is orientation ="
                f' "{self._other}" right?'
            )
        if mismatched := {**self.orientation_mismatch, **self.size_mismatch}:
            hint = (
                f' (orientation = "{self._other}" fits them)' if self.orientation_mismatch else ""
            )
            yield (
                f"{self.folder}: the sizes that {self.file} declares are wrong for"
                f" {self._first_of(mismatched)}; these images are treated as unreadable{hint}"
            )

    @property
    def _other(self) -> str:
        return STORED if self.orientation == UPRIGHT else UPRIGHT

    def _first_of(self, names: dict[str, str]) -> str:
        name, sizes = next(iter(names.items()))
        return f"{len(names)} of {len(self.sizes)} images, first {name}: {sizes}"


def check_image_sizes(
    dataset: Dataset, annotations: AnnotationFile, decode: bool = False
) -> ImageSizeCheck:
    """Compares sizes and orientations of the annotated images of a part with its annotations.

    With `decode`, the images are decoded too, which finds truncated files but takes longer.
    """
    part = annotations.part
    headers = dataset.read_headers(part, [one.image_id for one in annotations.annotations], decode)
    found = ImageSizeCheck(
        dataset.part(part).images,
        annotations.path,
        dataset.orientation,
        not dataset.has_orientation,
        dataset.stale_exif.get(part, ""),
    )
    is_confirmed = False
    for annotation, header in zip(annotations.annotations, headers, strict=True):
        if isinstance(header, InputError):
            found.unreadable[annotation.image_id] = str(header)
        else:
            found.sizes[annotation.image_id] = header.size
            is_confirmed |= _check_image(annotation, header, found)
    if is_confirmed:
        # The dataset's orientation is right for other images, so these files have a wrong size.
        found.size_mismatch = {**found.orientation_mismatch, **found.size_mismatch}
        found.orientation_mismatch = {}
    return found


def _check_image(annotation: Annotation, header: ImageHeader, found: ImageSizeCheck) -> bool:
    """Adds an image to the result; whether its declared size fits this orientation only."""
    name, declared = annotation.image_id, annotation.size
    orientation_matters = header.is_transposed and header.size[0] != header.size[1]
    if declared is not None and declared != header.size:
        # `Dataset.load` has rotated the declared sizes of stored images too; the message shows them
        # as the annotation file has them.
        is_swapped = header.is_transposed and found.orientation == STORED
        in_file = declared[::-1] if is_swapped else declared
        sizes = f"declared {in_file[0]} x {in_file[1]}, the file has {_describe_size(header)}"
        is_other = orientation_matters and declared == header.size[::-1]
        (found.orientation_mismatch if is_other else found.size_mismatch)[name] = sizes
        return False
    if declared is not None and orientation_matters:
        return True
    fits_other_only = False
    if header.orientation != 1 and len(annotation.boxes):
        found.ambiguous.append(name)
        # A box may reach a pixel over the right or lower edge.
        fits_other_only = bool(
            (annotation.boxes[:, 2:] > np.array(header.size) + 1).any()
            and (annotation.boxes[:, 2:] <= np.array(header.size[::-1]) + 1).all()
        )
    if fits_other_only:
        found.fit_other.append(name)
    elif declared is None:
        found.box_format.add(annotation.boxes, header.size, name)
    return False


def _describe_size(header: ImageHeader) -> str:
    stored = "{} x {}".format(*header.stored_size)
    if header.orientation == 1:
        return stored
    upright = "{} x {}".format(*header.size)
    return f"{stored} as stored, {upright} upright (EXIF orientation {header.orientation})"


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
                f" boxes of {count_noun(len(self.undeclared), 'images')}, which fit only after the"
                f" EXIF tag is applied, first {self.undeclared[0]}; if this is intended, set"
                ' orientation = "upright" in dataset.toml'
            )


def find_sideways_images(
    annotations: Sequence[Annotation], headers: Sequence[ImageHeader | InputError], person: int
) -> SidewaysImages:
    """Statistics of the images that EXIF tags turn by 90 degrees, boxes in stored pixels.

    Unreadable images are skipped; `person` is the object index of people.
    """
    people, undeclared = [np.zeros((0, 4))], []
    num_images = num_fit_stored = num_fit_upright = 0
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

    The statistics of all parts are checked together.
    """
    ratios = np.concatenate([part.log_aspect_ratios for part in parts])
    if len(ratios) < MIN_PEOPLE or sum(part.num_fit_upright for part in parts) > sum(
        part.num_fit_stored for part in parts
    ):
        return ""
    if ratios.mean() < MIN_STANDARD_ERRORS * ratios.std() / len(ratios) ** 0.5:
        return ""
    num_images = sum(part.num_images for part in parts)
    return (
        f"EXIF tags turn {count_noun(num_images, 'images')} of the dataset by 90"
        f" degrees, but the {len(ratios)} people labelled in them stand upright as stored"
        f" (height {np.exp(ratios.mean()):.1f} times the width); the tags are taken as left over"
        " and are not applied"
    )
