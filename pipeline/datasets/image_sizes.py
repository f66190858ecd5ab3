"""Holds the sizes that annotations declare against those of the picture files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.annotations.box_form import CORNERS, MANY, BoxForm
from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import STORED, TOML, UPRIGHT, Dataset
from pipeline.images import FIRST_TURNED, ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError

# A larger share of pictures of other sizes than declared tells that they are other pictures.
MOST_DIFFERENT = 0.01


@dataclass
class PictureSizes:
    """What the headers of a part's pictures say.

    Attributes:
        folder, file: of the pictures, and of the annotations.
        orientation: how the dataset's boxes are meant, "upright" or "stored".
        is_assumed: `dataset.toml` does not say so.
        sizes: (width, height) of the upright pictures, by image id.
        unreadable: why a picture cannot be read, by image id.
        different: the declared and the real size, where they differ, by image id.
        otherwise: the same, where the declared size is that of the other orientation.
        unsure: pictures that EXIF turns and whose annotations do not tell how they are meant.
        outside: pictures that EXIF turns, with boxes that fit into them in the other orientation
            alone.
        confirmed: how many pictures are declared as lying as the dataset says, and not otherwise.
        form: what boxes of pictures whose size is not declared look like.
        left_over: why EXIF tags are not applied; empty where they are.
    """

    folder: Path
    file: Path
    orientation: str
    is_assumed: bool
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    different: dict[str, str] = field(default_factory=dict)
    otherwise: dict[str, str] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    confirmed: int = 0
    form: BoxForm = field(default_factory=lambda: BoxForm(CORNERS, MANY))
    left_over: str = ""

    @property
    def unusable(self) -> dict[str, str]:
        """Why a picture is not to be used, in one line, by image id."""
        other = {
            name: f"{self.folder / name}: expected the declared size, {told}"
            for name, told in {**self.otherwise, **self.different}.items()
        }
        return {**self.unreadable, **other}

    def refuse(self, strict: bool = False) -> None:
        """Refuses a part of which more than a hundredth is of other sizes than declared, or many of
        whose boxes reach clearly outside the pictures.

        Raises:
            InputError: it is; under `strict`, if one picture is of another size.
        """
        for problem in (
            self.wrong_orientation(strict),
            self.wrong_size(strict),
            self.wrong_scale(),
        ):
            if problem:
                raise InputError(problem)

    def wrong_orientation(self, strict: bool = False) -> str:
        """What tells that boxes are meant in the other orientation, empty where nothing does."""
        if not self._many(self.otherwise, strict):
            return ""
        return (
            f"{self.file}: width and height: expected those of pictures {self._meant}"
            f' (orientation = "{self.orientation}"), found the others for'
            f" {self._first(self.otherwise)}; if boxes are meant so too, set orientation ="
            f' "{self._other}" in {TOML}'
        )

    def wrong_size(self, strict: bool = False) -> str:
        """What tells that the pictures are others than the annotated ones, empty where nothing."""
        if not self._many(self.different, strict):
            return ""
        return (
            f"{self.folder}: expected pictures of the sizes that {self.file} declares, found others"
            f" for {self._first(self.different)}"
        )

    def wrong_scale(self) -> str:
        """What tells that boxes count in other pixels than the pictures', empty where nothing."""
        return self.form.outside(self.file, "bbox")

    def lines(self) -> Iterator[str]:
        """What people should know of pictures that are not refused, a line each."""
        if self.left_over:
            yield self.left_over
        if self.unsure:
            yield (
                f"{self.folder}: {len(self.unsure)} of {len(self.sizes)} pictures are turned by"
                f" their EXIF tag, first {self.unsure[0]}, and the sizes in {self.file} do not tell"
                f" how boxes are meant; {'assumed' if self.is_assumed else 'taken'} as boxes of"
                f' pictures {self._meant} (orientation = "{self.orientation}" in {TOML})'
            )
        if self.outside:
            yield (
                f"{self.folder}: boxes of {len(self.outside)} turned pictures, first"
                f' {self.outside[0]}, fit only otherwise; is orientation = "{self._other}" right?'
            )
        if few := {**self.otherwise, **self.different}:
            hint = f' (orientation = "{self._other}" fits them)' if self.otherwise else ""
            yield (
                f"{self.folder}: the sizes that {self.file} declares are not those of"
                f" {self._first(few)}; treated as unreadable{hint}"
            )

    @property
    def _meant(self) -> str:
        return "turned upright" if self.orientation == UPRIGHT else "as stored"

    @property
    def _other(self) -> str:
        return STORED if self.orientation == UPRIGHT else UPRIGHT

    def _many(self, names: dict[str, str], strict: bool) -> bool:
        return len(names) > (0 if strict else MOST_DIFFERENT * len(self.sizes))

    def _first(self, names: dict[str, str]) -> str:
        name, sizes = next(iter(names.items()))
        return f"{len(names)} of {len(self.sizes)} pictures, first {name}: {sizes}"


def compare_sizes(
    dataset: Dataset, annotations: AnnotationFile, decode: bool = False
) -> PictureSizes:
    """Reads the headers of a part's annotated pictures and compares.

    Args:
        dataset: whose pictures.
        annotations: of one of its parts, as `Dataset.load` gives them.
        decode: also find pictures that were cut off; takes longer.
    """
    names = [one.image_id for one in annotations.annotations]
    headers = dataset.read_headers(annotations.part, names, decode)
    folder = dataset.part(annotations.part).images
    found = PictureSizes(folder, annotations.path, dataset.orientation, not dataset.has_orientation)
    found.left_over = dataset.left_over.get(annotations.part, "")
    for annotation, header in zip(annotations.annotations, headers, strict=True):
        if isinstance(header, InputError):
            found.unreadable[annotation.image_id] = str(header)
        else:
            found.sizes[annotation.image_id] = header.size
            _compare(annotation, header, found)
    if found.confirmed:
        # Neither orientation holds for all, so a few files are others than the annotated ones.
        found.different = {**found.otherwise, **found.different}
        found.otherwise = {}
    return found


def _compare(annotation: Annotation, header: ImageHeader, found: PictureSizes) -> None:
    name, declared = annotation.image_id, annotation.size
    width, height = header.size
    is_turned = header.orientation >= FIRST_TURNED and width != height
    if declared is not None and declared != header.size:
        # Annotations in stored pixels have been turned upright, and their declared sizes too.
        swap = header.orientation >= FIRST_TURNED and found.orientation == STORED
        stated = declared[::-1] if swap else declared
        told = f"declared {stated[0]} x {stated[1]}, the file has {_both(header)}"
        is_other = is_turned and declared == (height, width)
        (found.otherwise if is_other else found.different)[name] = told
    elif declared is not None and is_turned:
        found.confirmed += 1
    elif header.orientation != 1 and len(annotation.boxes):
        found.unsure.append(name)
        if _fits(annotation.boxes, (height, width)) and not _fits(annotation.boxes, header.size):
            found.outside.append(name)
    if declared is None and name not in found.outside[-1:]:
        found.form.add(annotation.boxes, header.size, name)


def _fits(boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether boxes reach over no edge by more than a pixel."""
    return bool((boxes[:, 2:] <= np.array(size) + 1).all())


def _both(header: ImageHeader) -> str:
    width, height = header.stored_size
    stored = f"{width} x {height}"
    if header.orientation == 1:
        return stored
    return (
        f"{stored} as stored, {header.size[0]} x {header.size[1]} upright"
        f" (EXIF orientation {header.orientation})"
    )
