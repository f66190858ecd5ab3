"""Artifacts of the study: outputs of commands, computed once per seed.

Students are trained less than in the demo, to allow for many runs: on fewer images, for fewer
epochs, and with a small batch size, which gives more steps per epoch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.utils.files import sha256_of_file, sha256_of_json

SPLITS = Path(__file__).parent / "splits"
LABELLED, EPOCHS, BATCH, RATE, BACKBONE = 640, 2, 4, "1e-3", 0.6


@dataclass(frozen=True, eq=False)
class Artifact:
    """The output folder of a command.

    Attributes:
        name: prefix of the folder's name, before a digest of everything that it depends on.
        command: the command line, with the placeholders `<out>` (the artifact's folder), `<seed>`,
            `<splits>` (the folder of the study's splits) and `<NAME>` (the folder of the input
            NAME).
        inputs: artifacts that the command reads, by name.
    """

    name: str
    command: str
    inputs: Mapping[str, Artifact] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the command, its inputs' digests and the split files that it reads."""
        names = re.findall(r"<splits>/(\S+)", self.command)
        splits = [sha256_of_file(SPLITS / name) for name in names]
        inputs = {name: artifact.digest for name, artifact in self.inputs.items()}
        return sha256_of_json([self.command, inputs, splits])

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.digest[:8]}"

    def words(self, values: Mapping[str, object]) -> list[str]:
        """The words of the command with values in place of the placeholders."""
        return [
            re.sub(r"<(\w+)>", lambda found: str(values[found.group(1)]), word)
            for word in shlex.split(self.command)
        ]


MODELS = Artifact("models", "eoid-cache toy-models <out> --seed <seed>")


def teacher(name: str, options: str) -> Artifact:
    """A teacher trained with other options than the demo's."""
    command = f"eoid-cache toy-models <out> --only teacher --seed <seed> {options}"
    return Artifact(f"teacher-{name}", command)


def toy(num_images: int, name: str = "toy", seed: str = "<seed>") -> Artifact:
    """A toy dataset with `num_images` training images."""
    return Artifact(name, f"eoid-data toy <out> --train {num_images} --seed {seed}")


TOY = toy(LABELLED)


def derived_dataset(name: str, command: str, source: Artifact) -> Artifact:
    """A dataset made of another one by a command of `benchmarks.study.datasets`."""
    words = f"python -m benchmarks.study.datasets {command} <toy> --out <out>"
    return Artifact(name, words, {"toy": source})


def cache(
    name: str, options: str = "", teacher: Artifact = MODELS, dataset: Artifact = TOY
) -> Artifact:
    """A cache of a dataset's training part, with the demo's detector.

    Args:
        name: suffix of the artifact's name.
        options: options of `eoid-cache build`.
        teacher: models that contain the teacher.
        dataset: the dataset.
    """
    command = "eoid-cache build <toy> --out <out> --clip-model <teacher>/teacher"
    detector = "--detector toy --detector-weights <models>/detector.safetensors"
    return Artifact(
        f"cache-{name}",
        f"{command} {detector} {options}",
        {"toy": dataset, "models": MODELS, "teacher": teacher},
    )


CACHE = cache("region")


def rescored(name: str, source: Artifact, options: str) -> Artifact:
    """A cache with probabilities computed anew from its region embeddings."""
    command = f"eoid-cache rescore <source> --out <out> {options}"
    return Artifact(f"cache-{name}", command, {"source": source, "toy": TOY})


def student(
    options: str = "",
    cache: Artifact = CACHE,
    split: str = "ua",
    dataset: Artifact = TOY,
    epochs: int = EPOCHS,
    **inputs: Artifact,
) -> Artifact:
    """The run of a student.

    Args:
        options: options of `eoid-train student` in addition to the toy preset.
        cache: the teacher cache.
        split: name of a split, or of a file in `splits` without its suffix.
        dataset: the dataset.
        epochs: number of training epochs.
        inputs: further artifacts that the options name.
    """
    file = f"<splits>/{split}.toml" if (SPLITS / f"{split}.toml").is_file() else split
    return Artifact(
        f"student-{split}",
        f"eoid-train student --data <toy> --cache <cache> --split {file} --out <out> --preset toy"
        f" --pretrained <models>/detector.safetensors --seed <seed> --epochs {epochs}"
        f" --batch-size {BATCH} --learning-rate {RATE} --backbone-lr-factor {BACKBONE}"
        f" --no-report {options}",
        {"toy": dataset, "cache": cache, "models": MODELS, **inputs},
    )


PLAIN = student()


def teacher_score(source: Artifact, split: str = "ua") -> Artifact:
    """Scores of a cache's teacher on the training images."""
    command = f"eoid-cache evaluate <source> --data <toy> --split {split}"
    return Artifact(
        f"score-{source.name.removeprefix('cache-')}",
        f"{command} --json <out>/results.json --overwrite",
        {"source": source, "toy": TOY},
    )
