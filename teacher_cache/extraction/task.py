"""`ShardTask` and `make_shard`: the work on one shard, which any process can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cluster.activity import announce
from pipeline.cluster.tasks import Postponed
from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes
from teacher_cache.extraction.extract import TeacherModels, UnreadableNowError, extract
from teacher_cache.extraction.inputs import BuildInputs, InputsConfig, get_build_inputs
from teacher_cache.reader.cache import read_teacher_file
from teacher_cache.reader.format import SHARDS, TEACHER, shard_name
from teacher_cache.writer.plan import read_plan
from teacher_cache.writer.shard import (
    ShardRecord,
    is_finished_shard,
    read_shard_record,
    write_shard,
)


@dataclass(frozen=True)
class ShardTask:
    """Shard `number` of a cache folder, with images `first` to `end` - 1 of the annotation file.

    On the `last_try`, images that cannot be read are left out of the shard.

    It contains no images and models, so that thousands of tasks stay small; the process that makes
    the shard loads them from `inputs_config`.
    """

    folder: Path
    fingerprint: str
    number: int
    first: int
    end: int
    inputs_config: InputsConfig
    last_try: bool = False

    @property
    def path(self) -> Path:
        return self.folder / SHARDS / shard_name(self.number)

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return self.end - self.first

    def absolute(self) -> ShardTask:
        """See `pipeline.cluster.tasks.Task`."""
        inputs_config = self.inputs_config.absolute()
        return replace(self, folder=self.folder.absolute(), inputs_config=inputs_config)


def make_shard(
    task: ShardTask, on_progress: Callable[[int], None] | None = None
) -> ShardRecord | Postponed:
    """Runs the teacher on the shard's images and writes the outputs, unless the shard exists.

    A shard is never written again, so one with an image that may be readable later is `Postponed`.
    It is made as a whole then, because the outputs of an image depend, by rounding, on its batch.

    Raises:
        InputError: an image cannot be read and the build is strict, a model cannot be loaded, or
            this process has other inputs than the builder.
    """
    inputs = get_build_inputs(task.inputs_config)
    _check_inputs(task, inputs)
    # A lost worker may have written the shard without reporting it.
    if is_finished_shard(task.path, task.fingerprint):
        if on_progress is not None:
            on_progress(len(task))
        return read_shard_record(task.path, task.fingerprint)
    vocabulary = inputs.data.vocabulary
    # Those of the builder: embeddings of different devices differ slightly.
    inputs.teacher.text = read_teacher_file(task.folder / TEACHER, task.fingerprint)
    models = TeacherModels(inputs.detector, inputs.teacher, vocabulary)
    image_tasks = inputs.data.image_tasks[task.first : task.end]
    with announce(task.folder, f"{SHARDS}/{task.path.name}", len(task)) as count:
        done = 0

        def report(images: int) -> None:
            nonlocal done
            done += images
            count(images)
            if on_progress is not None:
                on_progress(images)

        extraction = task.inputs_config.extraction
        try:
            outputs, failed = extract(image_tasks, models, extraction, report, task.last_try)
        except UnreadableNowError as error:
            report(-done)
            return Postponed(replace(task, last_try=True), str(error))
    # Another job may have finished the shard meanwhile, and finished shards never change.
    repeated = is_finished_shard(task.path, task.fingerprint)
    if not repeated:
        write_shard(
            task.path,
            task.fingerprint,
            list(outputs),
            list(outputs.values()),
            failed,
            vocabulary.num_verbs,
        )
    return replace(read_shard_record(task.path, task.fingerprint), repeated=repeated)


def _check_inputs(task: ShardTask, inputs: BuildInputs) -> None:
    """Refuses other inputs than the builder's.

    A path may lead to another file on another machine, and files may have changed since.
    """
    if inputs.fingerprint != task.fingerprint:
        changes = describe_changes(read_plan(task.folder)["parts"], inputs.parts)
        raise InputError(f"{task.folder}: a worker has other inputs than the builder ({changes})")
