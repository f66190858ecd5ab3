"""One shard: a task that any process can run from what it is given, and its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.vocabulary import Vocabulary
from teacher_cache.answering import AskingConfig, Panel, ask
from teacher_cache.clip_teacher import ClipConfig, ClipTeacher
from teacher_cache.decoding import Question
from teacher_cache.detectors import Detector, DetectorConfig
from teacher_cache.format import TEACHER
from teacher_cache.reader import read_teacher
from teacher_cache.writer import ShardRecord, finished_record, write_shard


@dataclass(frozen=True, eq=False)
class Setup:
    """What all shards of a build share.

    Attributes:
        folder: the cache.
        fingerprint: of the cache.
        vocabulary: of the dataset.
        detector, clip: which models.
        asking: how images go through them.
        device: where they run.
    """

    folder: Path
    fingerprint: str
    vocabulary: Vocabulary
    detector: DetectorConfig
    clip: ClipConfig
    asking: AskingConfig
    device: str


@dataclass(frozen=True, eq=False)
class ShardTask:
    """A shard to be made: where, and of which images."""

    path: Path
    questions: tuple[Question, ...]
    setup: Setup


@dataclass(frozen=True, eq=False)
class Models:
    """The frozen models of a build."""

    detector: Detector
    clip: ClipTeacher


# A process works for one cache at a time; its models stay loaded between shards.
_loaded: dict[tuple[DetectorConfig, ClipConfig, str, str], Models] = {}


def load_models(setup: Setup) -> Models:
    """This process's models, loaded when first asked for.

    Raises:
        InputError: a model or its weights cannot be loaded.
    """
    key = (setup.detector, setup.clip, setup.vocabulary.digest(), setup.device)
    if key not in _loaded:
        device = torch.device(setup.device)
        _loaded.clear()
        _loaded[key] = Models(
            Detector(setup.detector, setup.vocabulary, device), ClipTeacher(setup.clip, device)
        )
    return _loaded[key]


def forget_models() -> None:
    """Frees this process's models, where others do the work."""
    _loaded.clear()


def make_shard(task: ShardTask, report: Callable[[int], None] | None = None) -> ShardRecord:
    """Asks about the shard's images and writes the answers.

    Args:
        task: the shard.
        report: told how many images are done, batch by batch.

    Raises:
        InputError: an image cannot be read and the build is strict, or a model cannot be loaded.
    """
    setup = task.setup
    models = load_models(setup)
    text = read_teacher(setup.folder / TEACHER, setup.fingerprint)
    panel = Panel(models.detector, models.clip, text, setup.vocabulary)
    answers, failed = ask(task.questions, panel, setup.asking, report or (lambda count: None))
    write_shard(
        task.path,
        setup.fingerprint,
        list(answers),
        list(answers.values()),
        failed,
        setup.vocabulary.num_verbs,
    )
    record = finished_record(task.path, setup.fingerprint)
    assert record is not None
    return record
