"""One shard: a task that any process can run from what it is given, and its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.utils.errors import InputError
from pipeline.utils.files import differing_parts
from teacher_cache.extraction.extract import Panel, ask
from teacher_cache.extraction.inputs import Opened, Sources, opened_here
from teacher_cache.reader.cache import read_teacher
from teacher_cache.reader.format import SHARDS, TEACHER, shard_name
from teacher_cache.writer.plan import read_plan
from teacher_cache.writer.shard import ShardRecord, finished_record, write_shard


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made. Images and models stay out of it, so that thousands of tasks are small.

    Attributes:
        folder: the cache.
        fingerprint: of the cache.
        number: of the shard.
        first, end: its range of the dataset's images.
        sources: where images and models are found.
    """

    folder: Path
    fingerprint: str
    number: int
    first: int
    end: int
    sources: Sources

    @property
    def path(self) -> Path:
        return self.folder / SHARDS / shard_name(self.number)

    def __len__(self) -> int:
        return self.end - self.first


def make_shard(task: ShardTask, report: Callable[[int], None] | None = None) -> ShardRecord:
    """Asks about the shard's images and writes the answers, unless they are there.

    Args:
        task: the shard.
        report: told how many images are done, batch by batch.

    Raises:
        InputError: an image cannot be read and the build is strict, a model cannot be loaded, or
            this process finds other sources than the builder did.
    """
    opened = opened_here(task.sources)
    _check(task, opened)
    # Whoever made this shard may have been stopped before telling so.
    record = finished_record(task.path, task.fingerprint)
    if record is not None:
        if report is not None:
            report(len(task))
        return record
    models, vocabulary = opened.models, opened.subject.vocabulary
    text = read_teacher(task.folder / TEACHER, task.fingerprint)
    panel = Panel(models.detector, models.clip, text, vocabulary)
    questions = opened.subject.questions[task.first : task.end]
    answers, failed = ask(questions, panel, task.sources.asking, report or (lambda count: None))
    write_shard(
        task.path,
        task.fingerprint,
        list(answers),
        list(answers.values()),
        failed,
        vocabulary.num_verbs,
    )
    record = finished_record(task.path, task.fingerprint)
    assert record is not None
    return record


def _check(task: ShardTask, opened: Opened) -> None:
    """Makes sure that this process would answer as the builder meant.

    Another machine may see another file under the same name, and files may change meanwhile.
    """
    if opened.fingerprint != task.fingerprint:
        changes = differing_parts(read_plan(task.folder)["parts"], opened.parts)
        raise InputError(f"{task.folder}: a worker finds other inputs than the builder ({changes})")
