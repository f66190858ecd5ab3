"""Builds a teacher cache: connects dataset, models, cluster and manifest.

This is phase one of the method: the detector and CLIP are run once on all images of a dataset part
(EoID section 3.3), so that training the student needs neither of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from pipeline.annotations.load import AnnotationFile
from pipeline.cluster.activity import announce
from pipeline.cluster.lock import FolderLock, lock_folder
from pipeline.cluster.modes import (
    ExecutionMode,
    InProcess,
    SlurmJobs,
    WorkerSettings,
    is_remote,
    resolve_mode,
    resolve_remote_device,
    run_tasks,
    threads_per_worker,
)
from pipeline.cluster.tasks import ArrayShare, TaskQueue
from pipeline.datasets.dataset import Dataset, missing_images, open_dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.plugins import format_settings
from pipeline.utils.progress import Progress
from pipeline.utils.text import count_noun
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import resolve_detector_settings, resolve_model
from teacher_cache.detectors.pairing import UNRESTRICTED_PAIRING
from teacher_cache.extraction.extract import ExtractionConfig
from teacher_cache.extraction.inputs import (
    BuildData,
    BuildInputs,
    InputsConfig,
    clear_build_inputs,
    load_build_inputs,
    read_build_data,
)
from teacher_cache.extraction.task import ShardTask, make_shard
from teacher_cache.reader.cache import PromptEmbeddings, read_teacher_file
from teacher_cache.reader.format import MANIFEST, TEACHER, vocabulary_to_dict
from teacher_cache.teachers.load import DEFAULT_TEACHER, TeacherConfig
from teacher_cache.teachers.prompts import (
    DEFAULT_TEMPLATE,
    classes_without_sentences,
    indistinguishable_actions,
    prompt_classes,
)
from teacher_cache.teachers.text_image import TextImageTeacher
from teacher_cache.writer.manifest import write_manifest
from teacher_cache.writer.plan import BuildPlan, check_folder, claim_folder
from teacher_cache.writer.reuse import check_reusable, reuse_shards
from teacher_cache.writer.settings import absolute_if_exists, to_settings
from teacher_cache.writer.shard import is_finished_shard, read_shard_record, write_teacher_file

logger = get_logger(__name__)

JOB_NAME = "eoid-cache"

# The published teacher.
DEFAULT_CLIP_MODEL, DEFAULT_CLIP_WEIGHTS = "RN50x16", "openai"


@dataclass(frozen=True)
class BuildConfig:
    """Settings of a build, which `eoid-cache config` explains.

    Attributes:
        out: the cache folder: new, or of an interrupted build with the same settings.
        limit: see `AnnotationFile.limited`.
        candidates: "detector" pairs detected boxes, or those of `proposals`, a COCO-results file;
            "annotated" pairs annotated boxes (the published protocol).
        detector, detector_weights, detector_classes, detector_settings: see `DetectorConfig`; None
            for the dataset's own detector, or torchvision's default one.
        teacher, teacher_settings: see `TeacherConfig`; settings are texts KEY=VALUE.
        clip_model, clip_weights, precision: settings of the default teacher, see `ClipConfig`; None
            for the dataset's own teacher, or the published one.
        templates, sentences: see `class_prompts`.
        mode: where shards are made; None for one process per GPU if there are several, and for
            this process otherwise.
        share: this job's share of the shards, in a job array; None for all of them.
        threads: number of torch CPU threads per process; None for the mode's default.
        retry_failed: a finished cache of the same settings, of which the shards without failed
            images are taken.
    """

    dataset: Path
    out: Path
    part: str = "train"
    limit: int | None = None
    candidates: str = "detector"
    proposals: Path | None = None
    detector: str | None = None
    detector_weights: str | None = None
    detector_classes: tuple[str, ...] | None = None
    detector_settings: tuple[str, ...] = ()
    clip_model: str | None = None
    clip_weights: str | None = None
    precision: str = "auto"
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    images_per_shard: int = 256
    mode: ExecutionMode | None = None
    share: ArrayShare | None = None
    threads: int | None = None
    device: str = "auto"
    teacher: str = DEFAULT_TEACHER
    teacher_settings: tuple[str, ...] = ()
    sentences: Path | None = None
    retry_failed: Path | None = None


def build_cache(config: BuildConfig) -> None:
    """Builds a cache, or resumes an interrupted build.

    Raises:
        InputError: the input is bad, or the folder contains a cache of other settings.
    """
    mode = resolve_mode(config.mode, config.device)
    if isinstance(mode, SlurmJobs):
        from pipeline.cluster.slurm import check_slurm

        check_slurm()
    dataset = open_dataset(config.dataset)
    config, inputs_config, data = read_inputs(config, mode, dataset)
    if data.annotations.limit is not None:
        logger.info(
            f"{config.out}: --limit: {count_noun(len(data.image_tasks), 'images')}, not the whole"
            " part"
        )
    if not (config.out / MANIFEST).is_file():
        _check_image_sizes(config, dataset, data.annotations)
    plan, text = make_plan(config, mode, inputs_config, data)
    if not isinstance(mode, InProcess):
        # The worker processes load the models themselves and need the GPU's memory.
        clear_build_inputs()
    if line := classes_without_sentences(prompt_classes(data.vocabulary), config.sentences):
        logger.warning(line)
    if line := indistinguishable_actions(data.vocabulary.interaction_names, text):
        logger.warning(line)
    if config.retry_failed is not None:
        check_reusable(config.retry_failed, config.out, plan)
    if check_folder(config.out, plan):
        logger.info(f"{config.out}: was finished before; nothing to do")
        return
    size, end = config.images_per_shard, plan.num_images
    tasks = [
        ShardTask(
            config.out, plan.fingerprint, number, first, min(first + size, end), inputs_config
        )
        for number, first in enumerate(range(0, end, size))
    ]
    shared = config.share is not None
    with lock_folder(config.out, shared) as lock:
        # Another build may have finished the cache before this one got the lock.
        if claim_folder(config.out, plan, shared):
            logger.info(f"{config.out}: was finished before; nothing to do")
            return
        if config.retry_failed is not None:
            reuse_shards(config.retry_failed, config.out, plan)
        if not _has_prompts(config.out, plan):
            write_teacher_file(config.out / TEACHER, plan.fingerprint, text)
        settings = WorkerSettings(config.out, JOB_NAME, inputs_config.threads, inputs_config.device)
        if not shared:
            # With a share, temporary files may belong to other jobs that are running.
            lock.remove_temporary_files()
        with announce(config.out, ", ".join(map(str, filter(None, (config.share, mode))))):
            _build_shards(tasks, config, mode, settings, lock)


def read_inputs(
    config: BuildConfig, mode: ExecutionMode, dataset: Dataset
) -> tuple[BuildConfig, InputsConfig, BuildData]:
    """Reads the annotations of a build, and its detections if they are in a file; logs issues.

    Returns:
        The configuration with the pairing of its candidates, the settings from which any process
        loads the inputs, and what was read.

    Raises:
        InputError: options contradict each other, or a file is missing or wrong.
    """
    if config.candidates == "annotated":
        config = replace(
            config, extraction=replace(config.extraction, pairing=UNRESTRICTED_PAIRING)
        )
    inputs_config = resolve_inputs_config(dataset, config, mode)
    data = read_build_data(inputs_config, dataset)
    _report_annotation_issues(dataset, data)
    if config.proposals is not None and data.proposals is not None:
        logger.info(data.proposals.summary(config.proposals))
    return config, inputs_config, data


def make_plan(
    config: BuildConfig, mode: ExecutionMode, inputs_config: InputsConfig, data: BuildData
) -> tuple[BuildPlan, PromptEmbeddings | None]:
    """The build's plan, and the text embeddings of a teacher that has a text encoder.

    This loads the models in this process, even if other processes make the shards. The prompts are
    encoded before the folder is created, because a tokenizer may reject them.
    """
    local_config = replace(inputs_config, device="auto") if is_remote(mode) else inputs_config
    inputs = load_build_inputs(local_config, data)
    _report_detector_classes(inputs)
    plan = BuildPlan(
        parts=inputs.parts,
        layout={
            "images_per_shard": config.images_per_shard,
            "embeddings": config.extraction.embeddings,
        },
        num_images=len(data.image_tasks),
        settings=to_settings("build", resolve_config(config, inputs_config, inputs)),
        vocabulary=vocabulary_to_dict(data.vocabulary),
    )
    if inputs.prompts is None:
        return plan, None
    assert isinstance(inputs.teacher, TextImageTeacher)
    return plan, inputs.teacher.embed_prompts(inputs.prompts)


def _build_shards(
    tasks: Sequence[ShardTask],
    config: BuildConfig,
    mode: ExecutionMode,
    settings: WorkerSettings,
    lock: FolderLock,
) -> None:
    """Makes missing shards, and writes the manifest when none is missing."""
    queue = TaskQueue(
        tasks, lambda task: is_finished_shard(task.path, task.fingerprint), config.share
    )
    if config.extraction.strict:
        _check_no_failures(queue.finished)
    if queue.done:
        logger.info(f"{config.out}: resuming after {queue.done} of {queue.total} images")
    try:
        with Progress(queue.total, "Running the teacher", "images", queue.done) as progress:
            records = run_tasks(queue, make_shard, mode, settings, progress)
        queue.report(config.out)
        # Checksums of all shards take time, and jobs of an array end one after the other.
        if config.share is not None and (config.out / MANIFEST).is_file():
            logger.info(f"{config.out}: was finished by another job")
        else:
            write_manifest(config.out, records).report(config.out)
    finally:
        lock.remove_temporary_files()


def _report_annotation_issues(dataset: Dataset, data: BuildData) -> None:
    """Logs problems of annotations, and images that are missing.

    Raises:
        InputError: all images are missing.
    """
    annotations = data.annotations
    if annotations.format_issues():
        logger.warning(annotations.format_issues())
    images = dataset.part(annotations.part).images
    missing = missing_images(images, annotations)
    if missing and len(missing) == len(data.image_tasks):
        raise InputError(f"{images}: expected {missing[0]} and others, found none of the images")
    if missing:
        count = len(data.image_tasks)
        logger.warning(
            f"{images}: {len(missing)} of {count} images are missing, first {missing[0]}"
        )


def _check_image_sizes(config: BuildConfig, dataset: Dataset, annotations: AnnotationFile) -> None:
    """Compares the annotated sizes of this job's images with those of the image files.

    Raises:
        InputError: sizes differ.
    """
    entries, size = annotations.annotations, config.images_per_shard
    shards = [entries[start : start + size] for start in range(0, len(entries), size)]
    if config.share is not None:
        shards = list(config.share.select(shards))
    sizes = check_image_sizes(dataset, replace(annotations, annotations=tuple(chain(*shards))))
    sizes.raise_errors(config.extraction.strict)
    for line in sizes.warnings():
        logger.warning(line)


def _report_detector_classes(inputs: BuildInputs) -> None:
    """Logs classes of the detector that are spelled differently than the vocabulary's objects, and
    the objects that it has no class for."""
    detector, vocabulary = inputs.detector, inputs.data.vocabulary
    if detector is None:
        return
    if detector.spellings:
        names = ", ".join(f"{name} as {object}" for name, object in detector.spellings.items())
        logger.info(f"{detector.name}: takes its classes {names}")
    if detector.missing_objects:
        line = (
            f"{detector.name}: has no class for {len(detector.missing_objects)} of the"
            f" {vocabulary.num_objects} objects of {vocabulary.name}:"
            f" {_first_names(detector.missing_objects)}"
        )
        if detector.other_classes:
            line += f"; its classes {_first_names(detector.other_classes)} are left out"
        logger.warning(line)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _has_prompts(folder: Path, plan: BuildPlan) -> bool:
    """Whether a finished text-embedding file of this build exists, which may not change."""
    try:
        read_teacher_file(folder / TEACHER, plan.fingerprint)
    except InputError:
        return False
    return True


def _check_no_failures(finished: Iterable[ShardTask]) -> None:
    """Checks, for a strict build, that the finished shards contain all their images.

    Raises:
        InputError: an earlier build, which was not strict, made a shard without an image.
    """
    for task in sorted(finished, key=lambda task: task.number):
        record = read_shard_record(task.path, task.fingerprint)
        for image, reason in record.failed.items():
            raise InputError(f"{task.path}: lacks {image}: {reason}")


def resolve_inputs_config(
    dataset: Dataset, config: BuildConfig, mode: ExecutionMode
) -> InputsConfig:
    """Settings of the models and data of a build, with all defaults filled in.

    Raises:
        InputError: options contradict each other, or a file of the dataset is missing.
    """
    device = resolve_remote_device(mode, config.device) if is_remote(mode) else config.device
    return InputsConfig(
        dataset=config.dataset,
        part=config.part,
        limit=config.limit,
        detector=resolve_detector(dataset, config) if _uses_detector(config) else None,
        teacher=resolve_teacher(dataset, config, device if is_remote(mode) else None),
        templates=config.templates,
        extraction=config.extraction,
        device=device,
        threads=config.threads or threads_per_worker(mode),
        proposals=config.proposals,
        sentences=config.sentences,
    )


def resolve_config(
    config: BuildConfig, inputs_config: InputsConfig, inputs: BuildInputs
) -> BuildConfig:
    """The settings to store in the cache, with the models that defaults stood for.

    A repair can then repeat the build, even if the defaults have changed.
    """
    # A repair makes only what is missing, also without the older cache.
    config = replace(config, threads=inputs_config.threads, retry_failed=None)
    if config.teacher == DEFAULT_TEACHER:
        settings = dict(inputs_config.teacher.settings)
        config = replace(
            config,
            clip_model=settings["model"],
            clip_weights=settings.get("weights"),
            precision=inputs.parts["clip.precision"],
        )
    else:
        teacher = inputs_config.teacher
        config = replace(
            config, teacher=teacher.name, teacher_settings=format_settings(teacher.settings)
        )
    detector = inputs_config.detector
    if detector is None:
        return config
    detector = detector.absolute()
    return replace(
        config,
        detector=detector.name,
        detector_weights=detector.weights,
        detector_settings=format_settings(detector.settings),
    )


def _uses_detector(config: BuildConfig) -> bool:
    """Whether the build runs a detector; not with annotated candidates or a proposals file.

    Raises:
        InputError: options contradict each other.
    """
    instead = None
    if config.candidates == "annotated":
        instead = "--candidates annotated"
    elif config.proposals is not None:
        instead = "--proposals"
    options: dict[str, object] = {
        "--detector": config.detector,
        "--detector-weights": config.detector_weights,
        "--detector-classes": config.detector_classes and f"{len(config.detector_classes)} names",
        "--detector-set": next(iter(config.detector_settings), None),
    }
    if config.candidates == "annotated":
        options["--proposals"] = config.proposals
    for option, value in options.items():
        if instead is not None and value is not None:
            raise InputError(f"{option}: expected none with {instead}, found {value}")
    return instead is None


def resolve_detector(dataset: Dataset, config: BuildConfig) -> DetectorConfig:
    """The configured detector, otherwise the dataset's own, otherwise torchvision's default.

    Raises:
        InputError: the dataset's weights file is missing.
    """
    pairing = config.extraction.pairing
    # torchvision keeps scores above its threshold; pairing also accepts scores equal to it.
    threshold = min(pairing.person_threshold, pairing.object_threshold) - 1e-6
    name, weights = resolve_model(config.detector, config.detector_weights, dataset)
    return DetectorConfig(
        name,
        weights,
        threshold,
        config.detector_classes,
        resolve_detector_settings(name, config.detector_settings),
    )


def resolve_teacher(
    dataset: Dataset, config: BuildConfig, remote_device: str | None = None
) -> TeacherConfig:
    """The configured teacher; by default a model of open_clip, as `_resolve_clip` says.

    Args:
        dataset, config: of the build.
        remote_device: device of workers on other machines, which this one may not have.

    Raises:
        InputError: options contradict each other, or the dataset's teacher is missing.
    """
    if config.teacher != DEFAULT_TEACHER:
        precision = None if config.precision == "auto" else config.precision
        options = {
            "--clip-model": config.clip_model,
            "--clip-weights": config.clip_weights,
            "--precision": precision,
        }
        for option, value in options.items():
            if value is not None:
                raise InputError(
                    f"{option}: expected none with --teacher {config.teacher}, found {value}"
                )
        return TeacherConfig.resolve(config.teacher, config.teacher_settings)
    if config.teacher_settings:
        raise InputError(
            f"--teacher-set: expected --teacher as well, as {DEFAULT_TEACHER} has options of its"
            f" own, found {config.teacher_settings[0]}"
        )
    from teacher_cache.teachers.clip import resolve_precision

    model, weights = _resolve_clip(dataset, config)
    precision = config.precision
    if remote_device is not None:
        precision = resolve_precision(precision, remote_device)
    values = {"model": absolute_if_exists(model), "precision": precision}
    if weights is not None:
        values["weights"] = absolute_if_exists(weights)
    return TeacherConfig(settings=tuple(values.items()))


def _resolve_clip(dataset: Dataset, config: BuildConfig) -> tuple[str, str | None]:
    """The configured CLIP model and weights, otherwise the dataset's own, otherwise the published
    ones.

    Raises:
        InputError: the dataset's folder is missing.
    """
    if config.clip_model is not None:
        return config.clip_model, config.clip_weights
    if dataset.teacher is None:
        return DEFAULT_CLIP_MODEL, config.clip_weights or DEFAULT_CLIP_WEIGHTS
    if not dataset.teacher.is_dir():
        raise InputError(f"{dataset.teacher}: no such CLIP folder, named by {dataset.root}")
    return str(dataset.teacher), config.clip_weights
