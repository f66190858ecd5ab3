"""One shard: a task that any process can run from what it is given, and its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes
from teacher_cache.extraction.extract import TeacherModels, extract
from teacher_cache.extraction.inputs import BuildInputs, InputsConfig, get_build_inputs
from teacher_cache.reader.cache import read_teacher_file
from teacher_cache.reader.format import SHARDS, TEACHER, shard_name
from teacher_cache.writer.plan import read_plan
from teacher_cache.writer.shard import ShardRecord, read_shard_record, write_shard


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made. Images and models stay out of it, so that thousands of tasks are small.

    Attributes:
        folder: the cache.
        fingerprint: of the cache.
        number: of the shard.
        first, end: its range of the dataset's images.
        inputs_config: where images and models are found.
    """

    folder: Path
    fingerprint: str
    number: int
    first: int
    end: int
    inputs_config: InputsConfig

    @property
    def path(self) -> Path:
        return self.folder / SHARDS / shard_name(self.number)

    def __len__(self) -> int:
        return self.end - self.first


def make_shard(task: ShardTask, on_progress: Callable[[int], None] | None = None) -> ShardRecord:
    """Runs the teacher on the shard's images and writes the outputs, unless they are there.

    Args:
        task: the shard.
        on_progress: receives how many images are done, batch by batch.

    Raises:
        InputError: an image cannot be read and the build is strict, a model cannot be loaded, or
            this process finds other inputs than the builder did.
    """
    inputs = get_build_inputs(task.inputs_config)
    _check_inputs(task, inputs)
    # Whoever made this shard may have been stopped before telling so.
    record = read_shard_record(task.path, task.fingerprint)
    if record is not None:
        if on_progress is not None:
            on_progress(len(task))
        return record
    models, vocabulary = inputs.models, inputs.data.vocabulary
    text = read_teacher_file(task.folder / TEACHER, task.fingerprint)
    teacher = TeacherModels(models.detector, models.clip, text, vocabulary)
    image_tasks = inputs.data.image_tasks[task.first : task.end]
    outputs, failed = extract(
        image_tasks, teacher, task.inputs_config.extraction, on_progress or (lambda count: None)
    )
    write_shard(
        task.path,
        task.fingerprint,
        list(outputs),
        list(outputs.values()),
        failed,
        vocabulary.num_verbs,
    )
    record = read_shard_record(task.path, task.fingerprint)
    assert record is not None
    return record


def _check_inputs(task: ShardTask, inputs: BuildInputs) -> None:
    """Makes sure that this process has the same inputs as the builder.

    Another machine may see another file under the same name, and files may change meanwhile.
    """
    if inputs.fingerprint != task.fingerprint:
        changes = describe_changes(read_plan(task.folder)["parts"], inputs.parts)
        raise InputError(f"{task.folder}: a worker finds other inputs than the builder ({changes})")
