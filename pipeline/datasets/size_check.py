"""Holds the sizes that annotations declare against those of the picture files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.annotations.box_format import MAX_WRONG_SHARE, XYXY, BoxFormatCheck
from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import DATASET_FILE, STORED, UPRIGHT, Dataset
from pipeline.images import FIRST_SIDEWAYS, ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError

# A larger share of pictures of other sizes than declared tells that they are other pictures.
MAX_MISMATCH_SHARE = 0.01


@dataclass
class ImageSizeCheck:
    """What the headers of a part's pictures say.

    Attributes:
        folder, file: of the pictures, and of the annotations.
        orientation: how the dataset's boxes are meant, "upright" or "stored".
        orientation_assumed: `dataset.toml` does not say so.
        sizes: (width, height) of the upright pictures, by image id.
        unreadable: why a picture cannot be read, by image id.
        size_mismatch: the declared and the real size, where they differ, by image id.
        orientation_mismatch: the same, where the declared size is that of the other orientation.
        ambiguous: pictures that EXIF turns and whose annotations do not tell how they are meant.
        fit_other: pictures that EXIF turns, with boxes that fit into them in the other
            orientation alone.
        num_confirmed: how many pictures have the declared size in the dataset's orientation
            alone.
        box_format: what boxes of pictures whose size is not declared look like.
        stale_exif: why EXIF tags are not applied; empty where they are.
    """

    folder: Path
    file: Path
    orientation: str
    orientation_assumed: bool
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    size_mismatch: dict[str, str] = field(default_factory=dict)
    orientation_mismatch: dict[str, str] = field(default_factory=dict)
    ambiguous: list[str] = field(default_factory=list)
    fit_other: list[str] = field(default_factory=list)
    num_confirmed: int = 0
    box_format: BoxFormatCheck = field(
        default_factory=lambda: BoxFormatCheck(XYXY, MAX_WRONG_SHARE)
    )
    stale_exif: str = ""

    @property
    def unusable(self) -> dict[str, str]:
        """Why a picture is not to be used, in one line, by image id."""
        other = {
            name: f"{self.folder / name}: expected the declared size, {told}"
            for name, told in {**self.orientation_mismatch, **self.size_mismatch}.items()
        }
        return {**self.unreadable, **other}

    def raise_errors(self, strict: bool = False) -> None:
        """Refuses a part of which more than a hundredth is of other sizes than declared, or many of
        whose boxes reach clearly outside the pictures.

        Raises:
            InputError: it is; under `strict`, if one picture is of another size.
        """
        for problem in (
            self.orientation_error(strict),
            self.size_error(strict),
            self.scale_error(),
        ):
            if problem:
                raise InputError(problem)

    def orientation_error(self, strict: bool = False) -> str:
        """What tells that boxes are meant in the other orientation, empty where nothing does."""
        if not self._too_many(self.orientation_mismatch, strict):
            return ""
        return (
            f"{self.file}: width and height: expected those of pictures {self._meant}"
            f' (orientation = "{self.orientation}"), found the others for'
            f" {self._first_of(self.orientation_mismatch)}; if boxes are meant so too, set"
            f' orientation = "{self._other}" in {DATASET_FILE}'
        )

    def size_error(self, strict: bool = False) -> str:
        """What tells that the pictures are others than the annotated ones, empty where nothing."""
        if not self._too_many(self.size_mismatch, strict):
            return ""
        return (
            f"{self.folder}: expected pictures of the sizes that {self.file} declares, found others"
            f" for {self._first_of(self.size_mismatch)}"
        )

    def scale_error(self) -> str:
        """What tells that boxes count in other pixels than the pictures', empty where nothing."""
        return self.box_format.scale_error(self.file, "bbox")

    def warnings(self) -> Iterator[str]:
        """What people should know of pictures that are not refused, a line each."""
        if self.stale_exif:
            yield self.stale_exif
        if self.ambiguous:
            yield (
                f"{self.folder}: {len(self.ambiguous)} of {len(self.sizes)} pictures are turned by"
                f" their EXIF tag, first {self.ambiguous[0]}, and the sizes in {self.file} do not"
                f" tell how boxes are meant; {'assumed' if self.orientation_assumed else 'taken'}"
                f' as boxes of pictures {self._meant} (orientation = "{self.orientation}" in'
                f" {DATASET_FILE})"
            )
        if self.fit_other:
            yield (
                f"{self.folder}: boxes of {len(self.fit_other)} turned pictures, first"
                f' {self.fit_other[0]}, fit only otherwise; is orientation = "{self._other}" right?'
            )
        if few := {**self.orientation_mismatch, **self.size_mismatch}:
            hint = (
                f' (orientation = "{self._other}" fits them)' if self.orientation_mismatch else ""
            )
            yield (
                f"{self.folder}: the sizes that {self.file} declares are not those of"
                f" {self._first_of(few)}; treated as unreadable{hint}"
            )

    @property
    def _meant(self) -> str:
        return "turned upright" if self.orientation == UPRIGHT else "as stored"

    @property
    def _other(self) -> str:
        return STORED if self.orientation == UPRIGHT else UPRIGHT

    def _too_many(self, names: dict[str, str], strict: bool) -> bool:
        return len(names) > (0 if strict else MAX_MISMATCH_SHARE * len(self.sizes))

    def _first_of(self, names: dict[str, str]) -> str:
        name, sizes = next(iter(names.items()))
        return f"{len(names)} of {len(self.sizes)} pictures, first {name}: {sizes}"


def check_image_sizes(
    dataset: Dataset, annotations: AnnotationFile, decode: bool = False
) -> ImageSizeCheck:
    """Reads the headers of a part's annotated pictures and compares.

    Args:
        dataset: whose pictures.
        annotations: of one of its parts, as `Dataset.load` gives them.
        decode: also find pictures that were cut off; takes longer.
    """
    names = [one.image_id for one in annotations.annotations]
    headers = dataset.read_headers(annotations.part, names, decode)
    folder = dataset.part(annotations.part).images
    found = ImageSizeCheck(
        folder, annotations.path, dataset.orientation, not dataset.has_orientation
    )
    found.stale_exif = dataset.stale_exif.get(annotations.part, "")
    for annotation, header in zip(annotations.annotations, headers, strict=True):
        if isinstance(header, InputError):
            found.unreadable[annotation.image_id] = str(header)
        else:
            found.sizes[annotation.image_id] = header.size
            _check_image(annotation, header, found)
    if found.num_confirmed:
        # Neither orientation holds for all, so a few files are others than the annotated ones.
        found.size_mismatch = {**found.orientation_mismatch, **found.size_mismatch}
        found.orientation_mismatch = {}
    return found


def _check_image(annotation: Annotation, header: ImageHeader, found: ImageSizeCheck) -> None:
    name, declared = annotation.image_id, annotation.size
    width, height = header.size
    is_turned = header.orientation >= FIRST_SIDEWAYS and width != height
    if declared is not None and declared != header.size:
        # Annotations in stored pixels have been turned upright, and their declared sizes too.
        swap = header.orientation >= FIRST_SIDEWAYS and found.orientation == STORED
        stated = declared[::-1] if swap else declared
        told = f"declared {stated[0]} x {stated[1]}, the file has {_describe_size(header)}"
        is_other = is_turned and declared == (height, width)
        (found.orientation_mismatch if is_other else found.size_mismatch)[name] = told
    elif declared is not None and is_turned:
        found.num_confirmed += 1
    elif header.orientation != 1 and len(annotation.boxes):
        found.ambiguous.append(name)
        if _fit_inside(annotation.boxes, (height, width)) and not _fit_inside(
            annotation.boxes, header.size
        ):
            found.fit_other.append(name)
    if declared is None and name not in found.fit_other[-1:]:
        found.box_format.add(annotation.boxes, header.size, name)


def _fit_inside(boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether boxes reach over no edge by more than a pixel."""
    return bool((boxes[:, 2:] <= np.array(size) + 1).all())


def _describe_size(header: ImageHeader) -> str:
    width, height = header.stored_size
    stored = f"{width} x {height}"
    if header.orientation == 1:
        return stored
    return (
        f"{stored} as stored, {header.size[0]} x {header.size[1]} upright"
        f" (EXIF orientation {header.orientation})"
    )
