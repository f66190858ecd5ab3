"""Which image of a dataset a detections file means by a number or a name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pipeline.types import Annotation

# What an image key that is no annotated image stands for.
UNKNOWN, NOT_ANNOTATED, AMBIGUOUS = -1, -2, -3
LAST_DIGITS = re.compile(r"\d+$")


def images_by_key(annotations: Sequence[Annotation], others: Iterable[str]) -> dict[int | str, int]:
    """The place among `annotations` for every name and number that means one of them.

    Numbers are the annotation file's own where it has some, as COCO's files do. Elsewhere an
    image's number is the one that its file name ends with: 15 for `HICO_train2015_00000015.jpg`.

    Args:
        annotations: of the images that are asked about.
        others: file names of images that lie beside them; NOT_ANNOTATED.

    Returns:
        Places by file name and by number; AMBIGUOUS for a number that several images share.
    """
    places = {annotation.image_id: place for place, annotation in enumerate(annotations)}
    keys: dict[int | str, int] = dict.fromkeys(others, NOT_ANNOTATED)
    keys.update(places)
    numbers = [(annotation.number, place) for place, annotation in enumerate(annotations)]
    if all(number is None for number, _ in numbers):
        numbers = [(_last_number(str(name)), place) for name, place in keys.items()]
    for number, place in numbers:
        if number is not None:
            keys[number] = place if number not in keys else AMBIGUOUS
    return keys


def _last_number(name: str) -> int | None:
    digits = LAST_DIGITS.search(PurePosixPath(name).stem)
    return int(digits.group()) if digits else None
