"""What holds for a whole annotation file while it is read, and what was found wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.annotations.fields import Place, RepeatedImage, UnknownNumber
from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary

# The blemishes of published files, as people read them.
OVER_EDGE = "boxes over the image's edge (clipped)"
NO_AREA = "boxes without area (dropped)"
ON_NO_AREA = "labels of boxes without area (dropped)"
PAST_LIST = "labels pointing past the box list (dropped)"
NO_PERSON = "labels whose subject is no person (dropped)"
NO_INTERACTION_OF = "labels that are no interaction of the vocabulary (dropped)"
REPEATED = "repeated labels (dropped)"

# What makes a file unusable, as people read it.
DEFECTS: dict[type[InputError], str] = {
    UnknownNumber: "numbers of objects or verbs that the vocabulary lacks",
    RepeatedImage: "images named more than once",
    InputError: "malformed entries",
}
# Label of a box whose object the vocabulary lacks, in a survey.
UNKNOWN = -1


@dataclass(frozen=True)
class Reading:
    """What holds for a whole file while it is read.

    Attributes:
        file: its path, for errors.
        vocabulary: which verbs and objects its numbers mean.
        strict: refuse blemishes.
        survey: go on after wrong entries and blemishes, and count them.
        blemishes: how many of each kind were found so far.
        defects: how many wrong entries of each kind a survey found so far.
        examples: the first of each kind of both, as an error tells it.
        unlabelled: images that the file names without any labelled pair, and so says nothing of.
    """

    file: Path
    vocabulary: Vocabulary
    strict: bool = False
    survey: bool = False
    blemishes: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unlabelled: set[str] = field(default_factory=set)

    def blemish(self, kind: str, image: str, where: str, expected: str, found: object) -> None:
        """Counts a blemish.

        Raises:
            InputError: `strict`, in no survey.
        """
        if kind not in self.examples or self.strict:
            error = Place(self.file, image).wrong(where, expected, found)
            if self.strict and not self.survey:
                raise error
            self.examples.setdefault(kind, str(error))
        self.blemishes[kind] += 1

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Around the reading of one entry: a survey counts what is wrong with it and goes on."""
        try:
            yield
        except InputError as error:
            if not self.survey:
                raise
            kind = next(name for cause, name in DEFECTS.items() if isinstance(error, cause))
            self.defects[kind] += 1
            self.examples.setdefault(kind, str(error))

    def label(self, place: Place, category: Any, where: str) -> int:
        """Object index of a category id; `UNKNOWN` in a survey where the vocabulary lacks it.

        Raises:
            InputError: the vocabulary lacks it, in no survey.
        """
        with self.entry():
            return place.label(category, where, self.vocabulary)
        return UNKNOWN


def blemish_line(file: Path, blemishes: Counter[str]) -> str:
    """What was clipped or dropped, in one line for people; empty when nothing was."""
    counts = ", ".join(f"{count} {kind}" for kind, count in blemishes.items())
    return f"{file}: {counts}" if counts else ""
