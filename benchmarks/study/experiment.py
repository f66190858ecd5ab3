"""Experiments and the rows of their tables."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.study.artifacts import Artifact, Scale
from pipeline.utils.files import sha256_of_json


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        label: name of the row.
        run: run or evaluation of the student.
        against: label of the row to compare with; None for the experiment's reference.
        teacher: scores of the teacher, if the table shows its accuracy; else None.
        x: position on the horizontal axis of a curve; None for the teacher's accuracy.
        paper: split of the published results to show in the row; None for none.
    """

    label: str
    run: Artifact
    against: str | None = None
    teacher: Artifact | None = None
    x: float | None = None
    paper: str | None = None

    @property
    def artifacts(self) -> list[Artifact]:
        """Artifacts that the row's numbers are read from."""
        return [self.run, *([self.teacher] if self.teacher else [])]

    def digest(self, scale: Scale) -> str:
        """SHA-256 of all commands behind the row's numbers."""
        return sha256_of_json([scale.name, *(artifact.digest for artifact in self.artifacts)])


@dataclass(frozen=True)
class Experiment:
    """One table and one figure.

    Attributes:
        name: short name, for files and `--only`.
        title: title of table and figure.
        variants: the rows.
        reference: label of the row that the others are compared with; None if each names its own.
        paper: note on the paper's choice and results.
        axis: label of the horizontal axis for a curve; None for a chart of rows.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    reference: str | None
    paper: str
    axis: str | None = None
