"""What an experiment is."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.study.pieces import Piece, Scale
from pipeline.utils.files import sha256_of_json


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        label: what varies.
        run: the student.
        against: label of the row that it is compared with, None for the experiment's reference.
        teacher: how good the teacher is, where that is part of the question.
        x: its place on the axis of a curve; None where the teacher's accuracy is its place.
        paper: name of the split in the published results that stand beside it.
    """

    label: str
    run: Piece
    against: str | None = None
    teacher: Piece | None = None
    x: float | None = None
    paper: str | None = None

    @property
    def pieces(self) -> list[Piece]:
        """What its numbers are read from."""
        return [self.run, *([self.teacher] if self.teacher else [])]

    def digest(self, scale: Scale) -> str:
        """Of all commands behind its numbers."""
        return sha256_of_json([scale.name, *(piece.digest for piece in self.pieces)])


@dataclass(frozen=True)
class Experiment:
    """One table and one figure.

    Attributes:
        name: short, for files and `--only`.
        title: the question.
        variants: the rows.
        reference: label of the row that the others are compared with, None where each names one.
        paper: what the paper says or does, as far as this project knows.
        axis: what a curve's horizontal axis is; None draws rows.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    reference: str | None
    paper: str
    axis: str | None = None
