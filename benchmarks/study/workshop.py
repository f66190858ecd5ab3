"""Makes the study's pieces for one seed, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.study.pieces import RESULTS, SPLITS, WHOLE, Piece, Scale, command_kind, filled
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json

# Exit codes of commands that did not do their work: unexpected, and bad input.
FAILURES = (1, 2)
# Seconds on one core of a common kind, until this machine's own are known.
USUAL_SECONDS = {
    "eoid-data toy": 12.0,
    "eoid-cache toy-models": 150.0,
    "eoid-cache build": 20.0,
    "eoid-cache rescore": 4.0,
    "eoid-cache evaluate": 6.0,
    "eoid-cache prompts": 4.0,
    "eoid-train student": 75.0,
    "eoid-train evaluate": 15.0,
    "python -m benchmarks.study.others": 40.0,
}


class StoppedError(Exception):
    """A command was told to stop; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Workshop:
    """Where the pieces of one seed lie, and how the missing ones are made.

    Attributes:
        out: folder of the study.
        seed: of everything.
        execute: runs a command's words, its lines going to a file where one is given, and gives
            its exit code.
        scale: how large everything is.
        base: folder of demos, whose pieces are taken where they are; None for none.
        logged: lines of commands go to files beside the pieces' folders.
    """

    out: Path
    seed: int
    execute: Callable[[Sequence[str], Path | None], int]
    scale: Scale = WHOLE
    base: Path | None = None
    logged: bool = False

    @property
    def folder(self) -> Path:
        return self.out / self.scale.name / f"seed-{self.seed}"

    def place(self, piece: Piece) -> Path:
        """The folder of a piece."""
        given = self._of_demo(piece)
        return self.folder / piece.folder if given is None else given

    def is_made(self, piece: Piece) -> bool:
        """Whether its command has ended well."""
        if self._of_demo(piece) is not None:
            return True
        return self._record(piece).is_file() and (self.place(piece) / piece.proof).is_file()

    def missing(self, pieces: Iterable[Piece]) -> list[Piece]:
        """What has to be made for pieces, each once, what others need first."""
        found: dict[str, Piece] = {}
        for piece in pieces:
            if piece.digest not in found and not self.is_made(piece):
                for need in self.missing(need for _, need in piece.needs):
                    found.setdefault(need.digest, need)
                found[piece.digest] = piece
        return list(found.values())

    def command(self, piece: Piece) -> list[str]:
        """The words that make a piece."""
        needs = {name: self.place(need) for name, need in piece.needs}
        places = {"out": self.place(piece), "seed": self.seed, "splits": SPLITS, **needs}
        words = (*piece.command, *self.scale.words.get(piece.kind, ()))
        return [filled(word, places) for word in words]

    def make(self, piece: Piece) -> bool:
        """Runs a piece's command; a command that was stopped before goes on.

        Returns:
            False where the command could not do its work.

        Raises:
            StoppedError: the command was told to stop.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        words = self.command(piece)
        started = time.monotonic()
        code = self.execute(words, self.log(piece))
        taken = time.monotonic() - started
        if code:
            if code in FAILURES:
                return False
            raise StoppedError(code)
        if not (self.place(piece) / piece.proof).is_file():
            raise InputError(f"{self.place(piece) / piece.proof}: expected by the study, not there")
        write_json(self._record(piece), {"seconds": round(taken, 1), "command": words})
        return True

    def log(self, piece: Piece) -> Path | None:
        """Where the lines of a piece's command go; None where they are shown."""
        return self.folder / f"{piece.folder}.log" if self.logged else None

    def results(self, piece: Piece, file: str = RESULTS) -> dict[str, Any] | None:
        """What a finished piece wrote; None where it is not made."""
        return read_json(self.place(piece) / file) if self.is_made(piece) else None

    def seconds(self) -> Iterator[tuple[str, float]]:
        """Kinds of the commands that were run, and their seconds."""
        for record in sorted(self.folder.glob("*.done.json")):
            value = read_json(record)
            yield command_kind(value["command"]), value["seconds"]

    def _record(self, piece: Piece) -> Path:
        return self.folder / f"{piece.folder}.done.json"

    def _of_demo(self, piece: Piece) -> Path | None:
        """A demo's folder with the same content; it is only looked at."""
        if self.base is None or piece.of_demo is None or not self.scale.is_whole:
            return None
        demo = self.base / f"seed-{self.seed}"
        stages = demo / "stages.json"
        if not stages.is_file() or piece.of_demo not in read_json(stages)["finished"]:
            return None
        folder = demo / piece.of_demo
        return folder if (folder / piece.proof).is_file() else None


def estimate(workshops: Iterable[Workshop], pieces: Iterable[Piece]) -> float:
    """Seconds that commands will take, from those that were run and else from usual ones."""
    taken: dict[str, list[float]] = {}
    for workshop in workshops:
        for kind, seconds in workshop.seconds():
            taken.setdefault(kind, []).append(seconds)
    usual = {**USUAL_SECONDS, **{kind: mean(seconds) for kind, seconds in taken.items()}}
    return sum(usual.get(piece.kind, 0.0) for piece in pieces)
