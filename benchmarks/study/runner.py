"""Computes the artifacts of the study for one seed, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.study.artifacts import (
    RESULTS,
    SPLITS,
    WHOLE,
    Artifact,
    Scale,
    command_kind,
    fill_placeholders,
)
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json

# Exit codes of commands that failed: unexpected errors, and invalid input.
FAILURES = (1, 2)
# Seconds on one common CPU core, used until times on this machine are known.
USUAL_SECONDS = {
    "eoid-data toy": 12.0,
    "eoid-cache toy-models": 150.0,
    "eoid-cache build": 20.0,
    "eoid-cache rescore": 4.0,
    "eoid-cache evaluate": 6.0,
    "eoid-cache prompts": 4.0,
    "eoid-train student": 75.0,
    "eoid-train evaluate": 15.0,
    "python -m benchmarks.study.other_prompts": 40.0,
}


class StoppedError(Exception):
    """A command was interrupted; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class SeedRunner:
    """Runs the commands of one seed.

    Attributes:
        out: folder of the study.
        seed: seed of datasets, models and students.
        execute: runs a command, with its output redirected to a file unless that is None, and
            returns its exit code.
        scale: size of datasets and trainings.
        base: folder of demos, whose outputs are used in place; None for none.
        logged: whether the output of commands goes to log files beside the artifacts' folders.
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

    def path(self, artifact: Artifact) -> Path:
        """The folder of an artifact."""
        given = self._demo_folder(artifact)
        return self.folder / artifact.folder if given is None else given

    def is_made(self, artifact: Artifact) -> bool:
        """Whether the artifact's command has succeeded."""
        if self._demo_folder(artifact) is not None:
            return True
        return (
            self._record(artifact).is_file()
            and (self.path(artifact) / artifact.output_file).is_file()
        )

    def missing(self, artifacts: Iterable[Artifact]) -> list[Artifact]:
        """Missing artifacts among these and their inputs, each once, inputs first."""
        found: dict[str, Artifact] = {}
        for artifact in artifacts:
            if artifact.digest not in found and not self.is_made(artifact):
                for source in self.missing(source for _, source in artifact.inputs):
                    found.setdefault(source.digest, source)
                found[artifact.digest] = artifact
        return list(found.values())

    def command(self, artifact: Artifact) -> list[str]:
        """The words of an artifact's command, without placeholders."""
        inputs = {name: self.path(source) for name, source in artifact.inputs}
        values = {"out": self.path(artifact), "seed": self.seed, "splits": SPLITS, **inputs}
        words = (*artifact.command, *self.scale.words.get(artifact.kind, ()))
        return [fill_placeholders(word, values) for word in words]

    def make(self, artifact: Artifact) -> bool:
        """Runs an artifact's command; an interrupted command resumes.

        Returns:
            Whether the command succeeded.

        Raises:
            StoppedError: the command was interrupted.
            InputError: the command succeeded, but its output file is missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        words = self.command(artifact)
        started = time.monotonic()
        code = self.execute(words, self.log(artifact))
        seconds = time.monotonic() - started
        if code:
            if code in FAILURES:
                return False
            raise StoppedError(code)
        file = self.path(artifact) / artifact.output_file
        if not file.is_file():
            raise InputError(f"{file}: expected as output of the command, found no such file")
        write_json(self._record(artifact), {"seconds": round(seconds, 1), "command": words})
        return True

    def log(self, artifact: Artifact) -> Path | None:
        """The log file of an artifact's command; None if its output is shown."""
        return self.folder / f"{artifact.folder}.log" if self.logged else None

    def results(self, artifact: Artifact, file: str = RESULTS) -> dict[str, Any] | None:
        """A JSON file of an artifact; None if it is missing."""
        return read_json(self.path(artifact) / file) if self.is_made(artifact) else None

    def seconds(self) -> Iterator[tuple[str, float]]:
        """Kind and duration of every command that was run."""
        for record in sorted(self.folder.glob("*.done.json")):
            value = read_json(record)
            yield command_kind(value["command"]), value["seconds"]

    def _record(self, artifact: Artifact) -> Path:
        return self.folder / f"{artifact.folder}.done.json"

    def _demo_folder(self, artifact: Artifact) -> Path | None:
        """The folder of a demo with the same output, which is read only; None for none."""
        if self.base is None or artifact.demo_stage is None or not self.scale.is_whole:
            return None
        demo = self.base / f"seed-{self.seed}"
        stages = demo / "stages.json"
        if not stages.is_file() or artifact.demo_stage not in read_json(stages)["finished"]:
            return None
        folder = demo / artifact.demo_stage
        return folder if (folder / artifact.output_file).is_file() else None


def estimate(runners: Iterable[SeedRunner], artifacts: Iterable[Artifact]) -> float:
    """Estimated seconds of commands: the mean of past ones of their kind, or a usual value."""
    seconds_by_kind: dict[str, list[float]] = {}
    for runner in runners:
        for kind, seconds in runner.seconds():
            seconds_by_kind.setdefault(kind, []).append(seconds)
    usual = {**USUAL_SECONDS, **{kind: mean(seconds) for kind, seconds in seconds_by_kind.items()}}
    return sum(usual.get(artifact.kind, 0.0) for artifact in artifacts)
