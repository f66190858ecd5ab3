"""Checks of single fields of annotation files; every error names file, image and field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import InputError, bad_field
from pipeline.vocabulary import Vocabulary

BOX = "four finite numbers [x1, y1, x2, y2]"


class UnknownNumber(InputError):
    """An object or a verb that the vocabulary lacks."""


class RepeatedImage(InputError):
    """An image that the file names a second time."""


@dataclass(frozen=True)
class Place:
    """Where in a file we are: the image (or entry), for errors."""

    file: Path
    image: str

    def wrong(self, field: str, expected: str, found: object) -> InputError:
        """The error for a field of this image."""
        return bad_field(self.file, f"{self.image}: {field}", expected, found)

    def objects(self, entry: dict[str, Any], field: str) -> list[dict[str, Any]]:
        """A list of JSON objects; it may be empty, but not missing."""
        rows = self.value(entry, field, field, "a list of objects")
        if not isinstance(rows, list):
            raise self.wrong(field, "a list of objects", rows)
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise self.wrong(f"{field}[{index}]", "an object", row)
        return rows

    def value(self, entry: dict[str, Any], key: str, field: str, expected: str) -> Any:
        """The value under a key that must be there."""
        if key not in entry:
            raise self.wrong(field, expected, "nothing (the key is missing)")
        return entry[key]

    def whole(self, value: Any, field: str, expected: str = "a whole number") -> int:
        """A whole number; true and false are none."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(field, expected, value)
        return value

    def box(self, value: Any, field: str, expected: str = BOX) -> list[float]:
        """Four finite numbers."""
        good = (
            isinstance(value, list)
            and len(value) == 4
            and all(isinstance(number, (int, float)) for number in value)
            and not any(isinstance(number, bool) for number in value)
        )
        # A whole number may be too large for a float: then it is no finite coordinate either.
        if not good or not all(abs(number) < math.inf for number in value):
            raise self.wrong(field, expected, value)
        if any(abs(number) > 1e9 for number in value):
            raise self.wrong(field, f"{expected} in pixels", value)
        return [float(number) for number in value]

    def size(self, value: list[Any], field: str) -> tuple[int, int]:
        """Width and height in pixels."""
        expected = "[width, height], whole numbers from 1 on"
        if not isinstance(value, list) or len(value) != 2:
            raise self.wrong(field, expected, value)
        width, height = (self.whole(number, field, expected) for number in value)
        if min(width, height) < 1:
            raise self.wrong(field, expected, value)
        return width, height

    def label(self, category: Any, field: str, vocabulary: Vocabulary) -> int:
        """Object index of a category id."""
        ids = vocabulary.object_ids
        expected = f"an object id of {vocabulary.name} (from {min(ids)} to {max(ids)})"
        if self.whole(category, field, expected) not in vocabulary.label_of_id:
            raise UnknownNumber(str(self.wrong(field, expected, category)))
        return vocabulary.label_of_id[category]


def image_name(file: Path, where: str, value: Any) -> str:
    """A file name below the images folder.

    Raises:
        InputError: it is no text in UTF-8, is empty, or leads out of the folder.
    """
    expected = "the name of an image file"
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise bad_field(file, where, expected, value)
    if not is_utf8(value):
        raise bad_field(file, where, f"{expected} in UTF-8", ascii(value))
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise bad_field(file, where, f"{expected} below the images folder", value)
    return value


def is_utf8(name: str) -> bool:
    """Whether a name is text: of bytes that are no UTF-8, Python makes half characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


class Names:
    """The image names of a file so far; none may come twice."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: set[str] = set()

    def add(self, where: str, value: Any) -> str:
        """Checks a name and remembers it."""
        name = image_name(self._file, where, value)
        if name in self._seen:
            error = bad_field(self._file, where, "every image once", f"{name} a second time")
            raise RepeatedImage(str(error))
        self._seen.add(name)
        return name
