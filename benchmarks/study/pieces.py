"""What the study is made of: each piece is the result of one command, made once for every seed.

Students are smaller than the demo's, to be many: fewer pictures, fewer epochs, and small batches,
with which few pictures go further.
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
class Piece:
    """The result of a command.

    Attributes:
        name: of its folder, before a digest of all that it depends on.
        command: words, in which `<out>` stands for its own folder, `<seed>` for the seed,
            `<splits>` for the study's own splits and `<NAME>` for another piece's folder.
        needs: these other pieces, with their names in the command.
        proof: the file in its folder that a finished command leaves there.
        of_demo: where a demo's folder of the seed has the same thing.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[tuple[str, Piece], ...] = ()
    proof: str = RESULTS
    of_demo: str | None = None

    @property
    def kind(self) -> str:
        """See `command_kind`."""
        return command_kind(self.command)

    @cached_property
    def digest(self) -> str:
        """Of all commands and splits behind it: another command makes another piece."""
        files = {
            word: sha256_of_file(SPLITS / word.removeprefix("<splits>/"))
            for word in self.command
            if word.startswith("<splits>/")
        }
        needs = {name: piece.digest for name, piece in self.needs}
        return sha256_of_json([self.command, needs, files])

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.digest[:8]}"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        words: further options by kind of command.
        is_whole: nothing is smaller than by default, so that a demo's pieces are the study's.
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
        "python -m benchmarks.study.lacking": ("--count", "5"),
        "python -m benchmarks.study.others": ("--count", "1"),
    }
)


def filled(word: str, places: Mapping[str, object]) -> str:
    """A word of a command with its places filled in."""
    return re.sub(r"<(\w+)>", lambda found: str(places[found.group(1)]), word)


MODELS = Piece(
    "models",
    ("eoid-cache", "toy-models", "<out>", "--seed", "<seed>"),
    proof="detector.safetensors",
    of_demo="models",
)


def teacher(name: str, *options: str) -> Piece:
    """Another teacher than the demo's; the detector stays the same."""
    words = ("eoid-cache", "toy-models", "<out>", "--only", "teacher", "--seed", "<seed>")
    proof = "teacher/open_clip_model.safetensors"
    return Piece(f"teacher-{name}", (*words, *options), proof=proof)


def toy(pictures: int, name: str = "toy", seed: str = "<seed>") -> Piece:
    """A toy dataset with this number of training pictures."""
    words = ("eoid-data", "toy", "<out>", "--train", str(pictures), "--seed", seed)
    return Piece(name, words, proof="dataset.toml")


TOY = toy(LABELLED)


def module(
    name: str,
    file: str,
    *words: str,
    needs: tuple[tuple[str, Piece], ...],
    proof: str = "dataset.toml",
) -> Piece:
    """What a module of this package makes, usually a dataset.

    Args:
        name: of the piece.
        file: the module's name.
        words: its arguments.
        needs, proof: see `Piece`.
    """
    return Piece(name, ("python", "-m", f"benchmarks.study.{file}", *words), needs, proof)


def pictures_alone(name: str, toy: Piece) -> Piece:
    """The training pictures of a toy dataset as a dataset that nobody annotated."""
    words = ("<toy>", "--out", "<out>")
    return module(f"pictures-{name}", "pictures", *words, needs=(("toy", toy),))


def cache(
    name: str,
    *options: str,
    by: Piece = MODELS,
    of: Piece = TOY,
) -> Piece:
    """A cache of the training part, whose detector is the demo's.

    Args:
        name: of the piece.
        options: of `eoid-cache build`.
        by: the models with the teacher.
        of: the dataset.
    """
    detects = ("--detector", "toy", "--detector-weights", "<models>/detector.safetensors")
    asked = () if "--candidates" in options else detects
    words = (
        "eoid-cache",
        "build",
        "<toy>",
        "--out",
        "<out>",
        "--clip-model",
        "<teacher>/teacher",
    )
    needs = (("toy", of), ("models", MODELS), ("teacher", by))
    return Piece(f"cache-{name}", (*words, *asked, *options), needs, "manifest.json")


CACHE = cache("region")


def rescored(name: str, source: Piece, *options: str) -> Piece:
    """A cache's regions asked anew."""
    words = ("eoid-cache", "rescore", "<source>", "--out", "<out>")
    needs = (("source", source), ("toy", TOY))
    return Piece(f"cache-{name}", (*words, *options), needs, "manifest.json")


def student(
    *options: str,
    by: Piece = CACHE,
    split: str = "ua",
    of: Piece = TOY,
    epochs: int = EPOCHS,
    needs: tuple[tuple[str, Piece], ...] = (),
) -> Piece:
    """A student's run.

    Args:
        options: of `eoid-train student`, beyond the toy preset.
        by: the cache that it learns from.
        split: a name, or one of the study's own files.
        of: the dataset.
        epochs: passes through it.
        needs: further pieces that the options name.
    """
    named = f"<splits>/{split}.toml" if (SPLITS / f"{split}.toml").is_file() else split
    words = ("eoid-train", "student", "--data", "<toy>", "--cache", "<cache>", "--split", named)
    init = ("--preset", "toy", "--pretrained", "<models>/detector.safetensors", "--seed", "<seed>")
    length = ("--epochs", str(epochs), "--batch-size", str(BATCH), "--learning-rate", RATE)
    needs = (("toy", of), ("cache", by), ("models", MODELS), *needs)
    return Piece(
        f"student-{split}",
        (*words, "--out", "<out>", *init, *length, "--no-report", *options),
        needs,
    )


PLAIN = student()


def teacher_score(source: Piece, split: str = "ua") -> Piece:
    """How good a cache's teacher is on the pictures that students learn from."""
    words = ("eoid-cache", "evaluate", "<source>", "--data", "<toy>", "--split", split)
    needs = (("source", source), ("toy", TOY))
    json_file = f"<out>/{TEACHER_RESULTS}"
    return Piece(
        f"score-{source.name.removeprefix('cache-')}",
        (*words, "--json", json_file, "--overwrite"),
        needs,
        TEACHER_RESULTS,
    )
