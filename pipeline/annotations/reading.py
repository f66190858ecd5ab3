"""What holds for a whole annotation file while it is read, and what was found wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.fields import Place, RepeatedImage, UnknownNumber
from pipeline.box_form import CORNERS, MANY, SIDES, BoxForm, OtherForm
from pipeline.errors import InputError, bad_field
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
    OtherForm: "files of boxes or labels in another form",
    InputError: "malformed entries",
}
# Fewer labels tell nothing about the whole file.
ENOUGH_LABELS = 5
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
        forms: what its boxes look like, by the form that is expected of them.
        pairs: how many labels with an object have had "right" and "swapped" roles.
    """

    file: Path
    vocabulary: Vocabulary
    strict: bool = False
    survey: bool = False
    blemishes: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unlabelled: set[str] = field(default_factory=set)
    forms: dict[str, BoxForm] = field(
        default_factory=lambda: {form: BoxForm(form, MANY) for form in (CORNERS, SIDES)}
    )
    pairs: Counter[str] = field(default_factory=Counter)

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

    def note_boxes(
        self, boxes: list[list[float]], size: tuple[int, int] | None, form: str = CORNERS
    ) -> None:
        """Looks at the boxes of an image, as they stand in the file."""
        self.forms[form].add(np.array(boxes, dtype=np.float64).reshape(-1, 4), size)

    def note_pair(self, subject: int, target: int) -> None:
        """Looks at the objects that a label's subject and object are."""
        person = self.vocabulary.person
        self.pairs["swapped" if subject != person == target else "right"] += 1

    def check_form(self) -> None:
        """Refuses a file all of whose boxes or labels are meant otherwise, at its end.

        Raises:
            OtherForm: names the form.
        """
        for form in self.forms.values():
            form.check(self.file, "bbox")
        swapped, total = self.pairs["swapped"], self.pairs.total()
        if total >= ENOUGH_LABELS and 2 * swapped > total:
            expected = "a person as subject and a thing as object"
            found = f"subject and object swapped in {swapped} of {total} labels"
            raise OtherForm(str(bad_field(self.file, "subject_id and object_id", expected, found)))

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
