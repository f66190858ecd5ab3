"""Artifacts of the study: outputs of commands, computed once per seed.

Students are trained less than in the demo, to allow for many runs: on fewer images, for fewer
epochs, and with a small batch size, which gives more steps per epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.utils.files import sha256_of_file, sha256_of_json

SPLITS = Path(__file__).parent / "splits"
LABELLED, EPOCHS, BATCH, RATE = 640, 2, 4, "1e-3"
RESULTS, TEACHER_RESULTS = "results.json", "teacher.json"
TEMPLATES = (
    "a picture of person {ing} {object}",
    "person {ing} {object}",
    "a person {ing} a {object}",
)


def command_kind(words: Sequence[str]) -> str:
    """A command without its arguments: program and sub-command, or the module that Python runs."""
    return " ".join(words[: 3 if words[0] == "python" else 2])


@dataclass(frozen=True)
class Artifact:
    """The output folder of a command.

    Attributes:
        name: prefix of the folder's name, before a digest of everything that it depends on.
        command: words of the command, with the placeholders `<out>` (the artifact's folder),
            `<seed>`, `<splits>` (the folder of the study's splits) and `<NAME>` (the folder of the
            input NAME).
        inputs: names and artifacts that the command reads.
        output_file: name of a file that exists in the folder if the command succeeded.
        demo_stage: stage of the demo, and its folder, with the same output; None for none.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[tuple[str, Artifact], ...] = ()
    output_file: str = RESULTS
    demo_stage: str | None = None

    @property
    def kind(self) -> str:
        """See `command_kind`."""
        return command_kind(self.command)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the command, its inputs' digests and the split files that it reads."""
        files = {
            word: sha256_of_file(SPLITS / word.removeprefix("<splits>/"))
            for word in self.command
            if word.startswith("<splits>/")
        }
        inputs = {name: artifact.digest for name, artifact in self.inputs}
        return sha256_of_json([self.command, inputs, files])

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.digest[:8]}"


@dataclass(frozen=True)
class Scale:
    """Size of datasets and trainings.

    Attributes:
        words: additional options by kind of command.
        is_whole: whether all sizes are the default ones, so that the demo's outputs can be used.
    """

    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return not self.words

    @property
    def name(self) -> str:
        return "" if self.is_whole else f"small-{sha256_of_json(dict(self.words))[:8]}"


WHOLE = Scale()
TINY = Scale(
    {
        "eoid-data toy": ("--train", "30", "--test", "6"),
        "eoid-cache toy-models": (
            *("--images", "32", "--teacher-steps", "4", "--detector-epochs", "1"),
        ),
        "eoid-train student": ("--epochs", "1", "--batch-size", "16"),
        "python -m benchmarks.study.images_without_verbs": ("--count", "5"),
        "python -m benchmarks.study.other_prompts": ("--count", "1"),
    }
)


def fill_placeholders(word: str, values: Mapping[str, object]) -> str:
    """A word of a command with values in place of its placeholders."""
    return re.sub(r"<(\w+)>", lambda found: str(values[found.group(1)]), word)


MODELS = Artifact(
    "models",
    ("eoid-cache", "toy-models", "<out>", "--seed", "<seed>"),
    output_file="detector.safetensors",
    demo_stage="models",
)


def teacher(name: str, *options: str) -> Artifact:
    """A teacher trained with other options than the demo's."""
    words = ("eoid-cache", "toy-models", "<out>", "--only", "teacher", "--seed", "<seed>")
    output_file = "teacher/open_clip_model.safetensors"
    return Artifact(f"teacher-{name}", (*words, *options), output_file=output_file)


def toy(num_images: int, name: str = "toy", seed: str = "<seed>") -> Artifact:
    """A toy dataset with `num_images` training images."""
    words = ("eoid-data", "toy", "<out>", "--train", str(num_images), "--seed", seed)
    return Artifact(name, words, output_file="dataset.toml")


TOY = toy(LABELLED)


def study_module(
    name: str,
    file: str,
    *words: str,
    inputs: tuple[tuple[str, Artifact], ...],
    output_file: str = "dataset.toml",
) -> Artifact:
    """The output of a module of this package, usually a dataset.

    Args:
        name: name of the artifact.
        file: name of the module.
        words: arguments of the module.
        inputs, output_file: see `Artifact`.
    """
    return Artifact(name, ("python", "-m", f"benchmarks.study.{file}", *words), inputs, output_file)


def unlabelled_images(name: str, toy: Artifact) -> Artifact:
    """The training images of a toy dataset, as a dataset without annotations."""
    words = ("<toy>", "--out", "<out>")
    return study_module(f"unlabelled-{name}", "unlabelled_images", *words, inputs=(("toy", toy),))


def cache(
    name: str,
    *options: str,
    teacher: Artifact = MODELS,
    dataset: Artifact = TOY,
) -> Artifact:
    """A cache of a dataset's training part, with the demo's detector.

    Args:
        name: suffix of the artifact's name.
        options: options of `eoid-cache build`.
        teacher: models that contain the teacher.
        dataset: the dataset.
    """
    detector = ("--detector", "toy", "--detector-weights", "<models>/detector.safetensors")
    detector_options = () if "--candidates" in options else detector
    words = (
        "eoid-cache",
        "build",
        "<toy>",
        "--out",
        "<out>",
        "--clip-model",
        "<teacher>/teacher",
    )
    inputs = (("toy", dataset), ("models", MODELS), ("teacher", teacher))
    return Artifact(f"cache-{name}", (*words, *detector_options, *options), inputs, "manifest.json")


CACHE = cache("region")


def rescored(name: str, source: Artifact, *options: str) -> Artifact:
    """A cache with probabilities computed anew from its region embeddings."""
    words = ("eoid-cache", "rescore", "<source>", "--out", "<out>")
    inputs = (("source", source), ("toy", TOY))
    return Artifact(f"cache-{name}", (*words, *options), inputs, "manifest.json")


def student(
    *options: str,
    cache: Artifact = CACHE,
    split: str = "ua",
    dataset: Artifact = TOY,
    epochs: int = EPOCHS,
    inputs: tuple[tuple[str, Artifact], ...] = (),
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
    split_option = f"<splits>/{split}.toml" if (SPLITS / f"{split}.toml").is_file() else split
    words = (
        "eoid-train",
        "student",
        "--data",
        "<toy>",
        "--cache",
        "<cache>",
        "--split",
        split_option,
    )
    model = ("--preset", "toy", "--pretrained", "<models>/detector.safetensors", "--seed", "<seed>")
    length = ("--epochs", str(epochs), "--batch-size", str(BATCH), "--learning-rate", RATE)
    inputs = (("toy", dataset), ("cache", cache), ("models", MODELS), *inputs)
    return Artifact(
        f"student-{split}",
        (*words, "--out", "<out>", *model, *length, "--no-report", *options),
        inputs,
    )


PLAIN = student()


def teacher_score(source: Artifact, split: str = "ua") -> Artifact:
    """Scores of a cache's teacher on the training images."""
    words = ("eoid-cache", "evaluate", "<source>", "--data", "<toy>", "--split", split)
    inputs = (("source", source), ("toy", TOY))
    json_file = f"<out>/{TEACHER_RESULTS}"
    return Artifact(
        f"score-{source.name.removeprefix('cache-')}",
        (*words, "--json", json_file, "--overwrite"),
        inputs,
        TEACHER_RESULTS,
    )
