"""Predicts many images into shards of JSON lines, by any number of processes and jobs.

`plan.json` in the folder holds the settings and the list of images, which is fixed when the first
command claims the folder. A shard has a line for every image of its part of the list. It appears
under its name when it is complete, so that an existing shard is finished, and commands and jobs
that find the folder make the missing ones. `index.json` ends a prediction of which no shard is
missing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct

from pipeline.cluster.lock import FolderLock, lock_folder
from pipeline.cluster.modes import (
    ExecutionMode,
    InProcess,
    LocalWorkers,
    WorkerSettings,
    run_tasks,
    threads_per_worker,
)
from pipeline.cluster.tasks import ArrayShare, TaskQueue
from pipeline.types import Detections
from pipeline.utils.devices import default_num_workers
from pipeline.utils.errors import InputError
from pipeline.utils.files import (
    atomic_write,
    differing_keys,
    encode_utf8,
    read_json,
    refuse_existing,
    sha256_of_json,
    write_json,
    write_text,
)
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from pipeline.utils.schema import convert
from pipeline.utils.text import count_noun
from student.inference.batch_predictor import UnreadableImage
from student.inference.detector import BATCH_SIZE, Detector, DetectorSource
from student.inference.input_files import find_images
from student.inference.postprocess import SelectionConfig
from student.inference.predict_images import prediction_settings

logger = get_logger(__name__)

PLAN, INDEX, SHARDS = "plan.json", "index.json", "shards"
IMAGES_PER_SHARD = 256
# Those that killed commands leave. The folder may contain other files of the user.
TEMPORARY_FILES = (f".{PLAN}.*.tmp", f".{INDEX}.*.tmp", f"{SHARDS}/.*.tmp")
JOB_NAME = "eoid-predict"
# Start of the line of an image that could not be read.
FAILED_LINE = b'{"failed": '


@dataclass(frozen=True)
class ShardConfig:
    """How shards are made.

    Attributes:
        source: what processes open the detector from; None for a prediction in this process.
        selection: which detections are written.
        batch_size: maximum number of images per batch.
        workers: number of threads that read images, in every process; None for its spare cores.
        images_per_shard: number of images per shard.
        mode: where shards are made.
        share: this job's share of the shards, in a job array; None for all of them.
        threads: number of torch CPU threads per process; None for the mode's default.
        exact: write the detections as the model gives them, for a predictions file, instead of the
            entries of `eoid-predict`'s JSON files.
    """

    selection: SelectionConfig
    source: DetectorSource | None = None
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    images_per_shard: int = IMAGES_PER_SHARD
    mode: ExecutionMode = field(default_factory=InProcess)
    share: ArrayShare | None = None
    threads: int | None = None
    exact: bool = False


@dataclass(frozen=True)
class ShardTask:
    """Shard `number` of a folder: the predictions of some images.

    Attributes:
        images: the images' paths, in the form in which the shard names them.
        directory: absolute path of the folder that they are relative to.
        digest: SHA-256 of the settings that the results depend on.
    """

    folder: Path
    number: int
    images: tuple[str, ...]
    directory: str
    digest: str
    config: ShardConfig

    @property
    def path(self) -> Path:
        return self.folder / SHARDS / f"{self.number:05}.jsonl"

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self.images)

    def absolute(self) -> ShardTask:
        """See `pipeline.cluster.tasks.Task`."""
        source = self.config.source and self.config.source.absolute()
        config = replace(self.config, source=source)
        return replace(self, folder=self.folder.absolute(), config=config)


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard.

    `failed` has the reasons of the images that could not be read. It is `repeated` if another job
    finished it while this one made it too.
    """

    path: Path
    num_images: int
    failed: dict[str, str]
    repeated: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {count_noun(self.num_images, 'images')}, {len(self.failed)} failed"


# The detector of this process by its settings' digest, at most one.
_detectors: dict[str, Detector] = {}


def make_shard(task: ShardTask, on_progress: Callable[[int], None]) -> ShardRecord:
    """Predicts the shard's images and writes the results, unless the shard exists.

    Raises:
        InputError: the detector cannot be opened, or is another one than the command's.
    """
    detector = _get_detector(task)
    # A lost worker may have written the shard without reporting it.
    if (record := read_shard_record(task)) is not None:
        on_progress(len(task))
        return record
    config, names = task.config, task.images
    paths = [os.path.join(task.directory, name) for name in names]
    processes = config.mode.count if isinstance(config.mode, LocalWorkers) else 1
    threads = default_num_workers(config.workers, processes=processes)
    lines = [b""] * len(names)
    for prediction in detector.predictor.stream(paths, config.batch_size, threads):
        name, path = names[prediction.index], paths[prediction.index]
        row: dict[str, Any]
        if isinstance(prediction, UnreadableImage):
            # The reason begins with the path.
            row = {"failed": name + prediction.reason.removeprefix(path), "image": name}
        elif config.exact:
            row = _to_json(config.selection.select(prediction.detections, detector.vocabulary)) | {
                "image_id": name
            }
        else:
            row = detector.result(prediction, config.selection, path).to_dict() | {"image": name}
        lines[prediction.index] = _to_line(row)
        on_progress(1)
    # Finished shards never change.
    repeated = read_shard_record(task) is not None
    if not repeated:
        with atomic_write(task.path) as temporary, open(temporary, "wb") as file:
            file.writelines(lines)
    return ShardRecord(task.path, len(lines), _find_failed(lines), repeated)


def _get_detector(task: ShardTask) -> Detector:
    """The detector of this process; opened the first time, and checked against the command's."""
    if task.digest not in _detectors:
        assert task.config.source is not None
        _detectors.clear()
        detector = task.config.source.open()
        settings = _compared(prediction_settings(detector, task.config.selection))
        if sha256_of_json(settings) != task.digest:
            different = differing_keys(read_json(task.folder / PLAN), settings)
            raise InputError(
                f"{task.folder}: a worker has other inputs than the command"
                f" ({', '.join(different)})"
            )
        _detectors[task.digest] = detector
    return _detectors[task.digest]


def read_shard_record(task: ShardTask) -> ShardRecord | None:
    """The record of a finished shard; None if it is missing, or damaged, e.g. by a power failure.

    Only the lines of unreadable images are parsed.
    """
    if not task.path.is_file():
        return None
    lines, count, last = [], 0, b""
    with open(task.path, "rb") as file:
        for last in file:
            count += 1
            if last.startswith(FAILED_LINE):
                lines.append(last)
    try:
        if count == len(task) and last.endswith(b"\n"):
            return ShardRecord(task.path, count, _find_failed(lines))
    except (ValueError, TypeError, KeyError):
        pass
    return None


def _find_failed(lines: Iterable[bytes]) -> dict[str, str]:
    """The reasons of the images that could not be read, from the lines of a shard."""
    rows = (json.loads(line) for line in lines if line.startswith(FAILED_LINE))
    return {row["image"]: row["failed"] for row in rows}


def read_detections(path: Path) -> Iterator[Detections]:
    """The detections in a shard that was made with `ShardConfig.exact`.

    Raises:
        InputError: the file is damaged.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith(FAILED_LINE):
                continue
            try:
                yield _from_json(json.loads(line))
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"{path}: line {number}: expected the detections of an image, found a damaged"
                    " line; remove the file and run the same command again"
                ) from None


def predict_shards(
    detector: Detector,
    patterns: Sequence[str],
    out: Path,
    config: ShardConfig,
    overwrite: bool = False,
) -> None:
    """Predicts images into shards, resuming where a stopped command left off, and prints a summary.

    Args:
        detector: the detector.
        patterns: files, folders and glob patterns, see `find_images`.
        out: the folder.
        config: how the shards are made.
        overwrite: replace results that are finished or of other settings.

    Raises:
        InputError: see `find_images`; or the folder contains results of other settings; or none of
            the images could be read.
    """
    settings = prediction_settings(detector, config.selection)
    # Relative paths may be given in another working folder later.
    arguments = {"arguments": [os.path.abspath(pattern) for pattern in patterns]}
    folder = ShardFolder(out, settings, arguments, config, overwrite)
    found: list[str] = []
    # The jobs of an array need not all search the folders.
    if not (folder.is_claimed() and config.share):
        found = list(map(str, find_images(patterns, out, "--shards takes images only").images))
    with folder.claim(found, os.getcwd()) as claimed:
        if new := set(found).difference(claimed.images):
            logger.warning(
                f"{out}: left out {count_noun(len(new), 'images')} that were not there when this"
                f" prediction began, first {min(new)}; --overwrite or a new --out includes them"
            )
        records = claimed.make(detector)
        if records is None:
            return
        failed = {image: reason for record in records for image, reason in record.failed.items()}
        value = {
            **settings,
            "images": len(claimed.images),
            "shards": len(records),
            "failed": [{"image": image, "reason": reason} for image, reason in failed.items()],
        }
        write_json(out / INDEX, value)
    first = next(iter(failed.values()), "")
    if len(failed) == len(claimed.images):
        raise InputError(f"none of {len(failed)} images could be read; the first: {first}")
    print(
        f"{count_noun(len(claimed.images), 'images')} in {count_noun(len(records), 'shards')};"
        f" results in {out}"
    )
    if failed:
        logger.warning(
            f"{count_noun(len(failed), 'images')} could not be read, see {out / INDEX}; the first:"
            f" {first}"
        )


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards.

    Attributes:
        folder: its path.
        settings: settings of detector and selection, see `prediction_settings`.
        list_settings: settings that the list of images depends on, as JSON.
        config: how the shards are made.
        overwrite: replace results that are finished or of other settings.
    """

    folder: Path
    settings: dict[str, Any]
    list_settings: dict[str, Any]
    config: ShardConfig
    overwrite: bool

    def is_claimed(self) -> bool:
        """Whether the folder contains a prediction with these settings, which can be continued.

        Raises:
            InputError: the folder contains other results, which may not be overwritten.
        """
        file = self.folder / PLAN
        # Looked for first: another job may write the plan, and then shards, at the same time.
        others = [name for name in (INDEX, SHARDS) if (self.folder / name).exists()]
        if not file.is_file():
            for name in others:
                refuse_existing(self.folder / name, self.overwrite)
            return False
        try:
            found = read_json(file)
            convert(found, _Plan, file)
        except InputError as error:
            if not self.overwrite:
                raise InputError(f"{error}; choose a new folder or give --overwrite") from None
            return False
        if different := differing_keys(found, _compared(self._plan_settings())):
            if not self.overwrite:
                raise InputError(
                    f"{file}: expected results with the same settings, found others"
                    f" ({', '.join(different)}); choose a new folder or give --overwrite"
                )
            return False
        # An unfinished prediction is resumed, not overwritten.
        return not (self.overwrite and (self.folder / INDEX).is_file())

    @contextmanager
    def claim(self, images: Sequence[str], directory: str) -> Iterator[ClaimedFolder]:
        """Locks the folder, and writes its plan or reads that of an earlier command.

        Args:
            images: the images, for the case that there is no plan.
            directory: the folder that they are relative to.

        Raises:
            InputError: the folder contains other results, or another command is at work there.
        """
        file = self.folder / PLAN
        self.is_claimed()
        with lock_folder(self.folder, shared=self.config.share is not None) as lock:
            if not self.is_claimed():
                if self.overwrite:
                    # In this order: without a plan, shards are never taken for finished ones.
                    for path in (file, self.folder / INDEX, self.folder / SHARDS):
                        if path.is_dir() and not path.is_symlink():
                            shutil.rmtree(path)
                        else:
                            path.unlink(missing_ok=True)
                value = {**self._plan_settings(), "directory": directory, "images": list(images)}
                # Of jobs that start at the same time, the first one decides.
                write_text(file, json.dumps(value, ensure_ascii=False) + "\n", keep_existing=True)
                self.is_claimed()
            plan = convert(read_json(file), _Plan, file)
            try:
                yield ClaimedFolder(self, lock, plan.images, plan.directory)
            finally:
                # After the results are written: a shared lock may be lost here, and then another
                # job may remove temporary files.
                lock.remove_temporary_files(TEMPORARY_FILES)

    def _plan_settings(self) -> dict[str, Any]:
        return {
            **self.settings,
            **self.list_settings,
            "images_per_shard": self.config.images_per_shard,
        }


class _Plan(Struct):
    """The fields of `plan.json` beside the settings."""

    images: list[str]
    directory: str


@dataclass(frozen=True)
class ClaimedFolder:
    """A locked folder of shards, with the images of its plan, which are relative to `directory`."""

    claim: ShardFolder
    lock: FolderLock
    images: list[str]
    directory: str

    def make(self, detector: Detector) -> list[ShardRecord] | None:
        """Makes the missing shards of this job; returns the records of all shards, in their order,
        or None while shards of other jobs are missing.

        Raises:
            InputError: an input of a worker is bad, or no worker can be expected any more.
        """
        config, folder = self.claim.config, self.claim.folder
        digest = sha256_of_json(_compared(self.claim.settings))
        size = config.images_per_shard
        shards = [
            ShardTask(folder, number, tuple(names), self.directory, digest, config)
            for number, names in enumerate(
                self.images[first : first + size] for first in range(0, len(self.images), size)
            )
        ]
        if config.share is None:
            # With a share, temporary files may belong to other jobs that are running.
            self.lock.remove_temporary_files(TEMPORARY_FILES)
        queue = TaskQueue(shards, lambda task: read_shard_record(task) is not None, config.share)
        for task in queue.pending:
            if task.path.is_file():
                logger.warning(
                    f"{task.path}: expected {count_noun(len(task), 'lines')}, found a damaged file;"
                    " predicting its images again"
                )
        if not queue.total:
            logger.info(f"{folder}: this job has no shards, because there are fewer than jobs")
        elif not queue.pending:
            logger.info(f"{folder}: the shards were finished before")
        elif queue.done:
            logger.info(f"{folder}: resuming after {queue.done} of {queue.total} images")
        _detectors.clear()
        threads = config.threads or threads_per_worker(config.mode)
        if isinstance(config.mode, InProcess):
            _detectors[digest] = detector
            if threads is not None:
                torch.set_num_threads(threads)
        device = config.source.device if config.source else "auto"
        settings = WorkerSettings(folder, JOB_NAME, threads, device)
        try:
            with Progress(queue.total, "predicting", "images", queue.done) as progress:
                run_tasks(queue, make_shard, config.mode, settings, progress)
            queue.report(folder)
            known = {record.path: record for record in queue.records}
            finished = [known.get(task.path) or read_shard_record(task) for task in shards]
            missing = [task for task, one in zip(shards, finished, strict=True) if one is None]
            if not missing:
                return [record for record in finished if record is not None]
            logger.info(
                f"{folder}: missing: {count_noun(len(missing), 'shards')} of other jobs, first"
                f" {missing[0].path.name}; the last job completes the results"
            )
            return None
        finally:
            _detectors.clear()


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a resumed prediction has to share: the model's file may have been moved."""
    return {key: value for key, value in settings.items() if key != "model"}


def _to_line(value: Any) -> bytes:
    return encode_utf8(json.dumps(value, ensure_ascii=False) + "\n")


def _to_json(found: Detections) -> dict[str, Any]:
    # JSON numbers are doubles, which hold float32 values exactly.
    return {
        "image_id": found.image_id,
        "boxes": found.boxes.tolist(),
        "labels": found.labels.tolist(),
        "hois": found.hois.tolist(),
        "scores": found.scores.tolist(),
    }


def _from_json(row: dict[str, Any]) -> Detections:
    return Detections(
        image_id=row["image_id"],
        boxes=np.array(row["boxes"], dtype=np.float32).reshape(-1, 4),
        labels=np.array(row["labels"], dtype=np.int64),
        hois=np.array(row["hois"], dtype=np.int64).reshape(-1, 3),
        scores=np.array(row["scores"], dtype=np.float32),
    )
