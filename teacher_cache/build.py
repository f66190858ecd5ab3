"""Phase one: asks the teacher about every image of a dataset part and writes a cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, missing_images, open_dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from teacher_cache.cluster.modes import (
    ArrayShare,
    ExecutionMode,
    InProcess,
    LocalWorkers,
    is_remote,
    threads_per_worker,
)
from teacher_cache.cluster.run import check_mode, resolve_remote_device, run_tasks
from teacher_cache.detectors.pairing import UNRESTRICTED_PAIRING
from teacher_cache.detectors.proposals import (
    ProposalsConfig,
    remove_stored_proposals,
    store_proposals,
)
from teacher_cache.detectors.torchvision import (
    DEFAULT_DETECTOR,
    TOY,
    TOY_IN_CACHES,
    DetectorConfig,
    recognise_architecture,
)
from teacher_cache.extraction.extract import ExtractionConfig
from teacher_cache.extraction.inputs import (
    BuildData,
    BuildInputs,
    InputsConfig,
    clear_build_inputs,
    load_build_inputs,
    read_build_data,
)
from teacher_cache.extraction.task import ShardTask
from teacher_cache.reader.cache import PromptEmbeddings, read_teacher_file
from teacher_cache.reader.format import MANIFEST, TEACHER, vocabulary_to_dict
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher, resolve_precision
from teacher_cache.teachers.prompts import (
    DEFAULT_TEMPLATE,
    Prompts,
    embed_prompts,
    indistinguishable_actions,
)
from teacher_cache.writer.lock import FolderLock, lock_folder
from teacher_cache.writer.manifest import CacheStatus, write_manifest
from teacher_cache.writer.plan import BuildPlan, check_folder, claim_folder
from teacher_cache.writer.settings import to_settings
from teacher_cache.writer.shard import is_finished_shard, read_shard_record, write_teacher_file

logger = get_logger(__name__)


def build_cache(config: BuildConfig) -> None:
    """Builds a cache, or goes on with one that was interrupted.

    Args:
        config: what to do.

    Raises:
        InputError: bad input, or the folder holds a cache of other settings.
    """
    mode = resolve_mode(config)
    check_mode(mode)
    dataset = open_dataset(config.dataset)
    if config.candidates == "annotated":
        config = replace(
            config, extraction=replace(config.extraction, pairing=UNRESTRICTED_PAIRING)
        )
    inputs_config = resolve_inputs_config(dataset, config, mode)
    data = read_build_data(inputs_config, dataset)
    _report_annotation_issues(dataset, data)
    if not (config.out / MANIFEST).is_file():
        _check_image_sizes(config, dataset, data.annotations)
    if config.proposals is not None and data.proposals is not None:
        logger.info(data.proposals.summary(config.proposals, len(data.image_tasks)))
    here = replace(inputs_config, device="auto") if is_remote(mode) else inputs_config
    inputs = load_build_inputs(here, data)
    _report_undetectable_objects(inputs)
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
    # Before the folder is claimed: words that the teacher does not know leave nothing behind.
    text = _encode_prompts(config.out / TEACHER, plan, inputs.prompts, inputs.clip)
    if not isinstance(mode, InProcess):
        # The models of the processes that do the work need the place on the GPU.
        del inputs
        clear_build_inputs()
    if text is not None and (
        line := indistinguishable_actions(data.vocabulary.interaction_names, text)
    ):
        logger.warning(line)
    is_finished = check_folder(config.out, plan)
    if not is_finished:
        shared = config.share is not None
        with lock_folder(config.out, shared) as held:
            is_finished = claim_folder(config.out, plan, shared)
            if not is_finished:
                if data.proposals is not None:
                    store_proposals(data.proposals)
                if text is not None:
                    write_teacher_file(config.out / TEACHER, plan.fingerprint, text)
                completion = _build_shards(
                    _make_tasks(config, plan, inputs_config), config, mode, held
                )
                if data.proposals is not None and completion.counts is not None:
                    remove_stored_proposals(data.proposals)
    if is_finished:
        logger.info(f"{config.out}: was finished before; nothing to do")


def _build_shards(
    tasks: Sequence[ShardTask],
    config: BuildConfig,
    mode: ExecutionMode,
    held: FolderLock,
) -> CacheStatus:
    """Makes the shards that are not there, and completes the cache with the last one."""
    if config.share is None:
        held.remove_temporary_files()
    else:
        tasks = config.share.select(tasks)
    pending = [task for task in tasks if not is_finished_shard(task.path, task.fingerprint)]
    if config.extraction.strict:
        _check_no_failures(set(tasks) - set(pending))
    total = sum(map(len, tasks))
    done = total - sum(map(len, pending))
    if done:
        logger.info(f"{config.out}: going on after {done} of {total} images")
    try:
        with Progress(total, "Asking the teacher", "images", initial=done) as progress:
            records = run_tasks(pending, mode, progress)
        completion = write_manifest(config.out, records)
        _report_completion(config.out, completion)
    finally:
        held.remove_temporary_files()
    return completion


def _report_annotation_issues(dataset: Dataset, data: BuildData) -> None:
    """Tells what is wrong with annotations and images.

    Raises:
        InputError: no label is left, or none of the images is there.
    """
    annotations = data.annotations
    if annotations.format_issues():
        logger.warning(annotations.format_issues())
    if not annotations.boxes_only:
        annotations.require_labels()
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
    """Compares the declared sizes of this process's images with the files'.

    Raises:
        InputError: they are others.
    """
    entries, size = annotations.annotations, config.images_per_shard
    shards = [entries[start : start + size] for start in range(0, len(entries), size)]
    own = shards if config.share is None else config.share.select(shards)
    sizes = check_image_sizes(dataset, replace(annotations, annotations=tuple(chain(*own))))
    sizes.raise_errors(config.extraction.strict)
    for line in sizes.warnings():
        logger.warning(line)


def _report_undetectable_objects(inputs: BuildInputs) -> None:
    """Tells which objects the detector cannot find."""
    detector, vocabulary = inputs.detector, inputs.data.vocabulary
    if detector is not None and detector.missing_objects:
        count = f"{len(detector.missing_objects)} of the {vocabulary.num_objects} objects"
        names = ", ".join(detector.missing_objects[:5]) + (
            ", ..." if len(detector.missing_objects) > 5 else ""
        )
        logger.warning(f"{detector.name}: finds none of {count} of {vocabulary.name}: {names}")


def _encode_prompts(
    file: Path, plan: BuildPlan, prompts: Prompts, clip: ClipTeacher
) -> PromptEmbeddings | None:
    """The teacher's texts, None where they are written already; encoding them can take a while."""
    if file.is_file():
        try:
            read_teacher_file(file, plan.fingerprint)
            return None
        except InputError:
            pass
    return PromptEmbeddings(prompts, embed_prompts(prompts, clip.encode_texts), clip.logit_scale)


def _make_tasks(
    config: BuildConfig, plan: BuildPlan, inputs_config: InputsConfig
) -> list[ShardTask]:
    size, end = config.images_per_shard, plan.num_images
    return [
        ShardTask(
            config.out, plan.fingerprint, number, first, min(first + size, end), inputs_config
        )
        for number, first in enumerate(range(0, end, size))
    ]


def _check_no_failures(finished: Iterable[ShardTask]) -> None:
    """A strict build does not go on from shards that a lenient one made without some image."""
    for task in sorted(finished, key=lambda task: task.number):
        record = read_shard_record(task.path, task.fingerprint)
        for image, reason in (record.failed if record else {}).items():
            raise InputError(f"{task.path}: lacks {image}: {reason}")


def _report_completion(folder: Path, completion: CacheStatus) -> None:
    counts, failed = completion.counts, completion.failed
    if counts is None:
        logger.info(
            f"{folder}: {len(completion.missing)} shards of other jobs are not there yet; the last"
            f" job completes the cache, or: eoid-cache verify {folder}"
        )
        return
    print(
        f"{folder}: {counts['images']} images, {counts['pairs']} pairs,"
        f" {counts['regions']} regions, {counts['shards']} shards"
    )
    for image, reason in list(failed.items())[:1]:
        logger.warning(f"{folder}: {len(failed)} images could not be read, first {image}: {reason}")


@dataclass(frozen=True)
class BuildConfig:
    """Everything that a build is told.

    Attributes:
        dataset: the dataset folder.
        out: the cache folder, new or of an interrupted build of the same settings.
        part: "train" or "test".
        candidates: "detector" pairs what a detector finds, "annotated" whatever people annotated
            (the published protocol).
        proposals: a file of detections, in the place of a detector.
        detector, detector_weights: name and weights; None takes the dataset's own detector, or
            torchvision's usual one.
        detector_classes: see `DetectorConfig.classes`.
        clip_model, clip_weights: see `ClipConfig`; None takes the dataset's own teacher, or the
            published one.
        precision: of CLIP's image tower, see `ClipConfig`.
        templates: sentences to ask with.
        extraction: pairs, regions and batch sizes.
        images_per_shard: images of one shard and task.
        mode: where shards are made; None takes one process for each GPU if there are several, and
            otherwise this one.
        share: of a job that builds beside others; None builds everything.
        threads: of torch in every process, on a CPU; None takes what suits the mode.
        device: where the models run.
    """

    dataset: Path
    out: Path
    part: str = "train"
    candidates: str = "detector"
    proposals: Path | None = None
    detector: str | None = None
    detector_weights: str | None = None
    detector_classes: tuple[str, ...] | None = None
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


DEFAULT_CLIP_MODEL, DEFAULT_CLIP_WEIGHTS = "RN50x16", "openai"


def resolve_mode(config: BuildConfig) -> ExecutionMode:
    """Where shards are made: as told, or on all GPUs where there are several."""
    if config.mode is not None:
        return config.mode
    gpus = torch.cuda.device_count() if config.device == "auto" else 0
    return LocalWorkers(gpus) if gpus > 1 else InProcess()


def resolve_inputs_config(
    dataset: Dataset, config: BuildConfig, mode: ExecutionMode
) -> InputsConfig:
    """What the outputs will come from.

    Args:
        dataset: to ask about.
        config: what the user said.
        mode: where shards are made.

    Raises:
        InputError: options that contradict each other, or files that are not there.
    """
    clip, device = _resolve_clip(dataset, config), config.device
    if is_remote(mode):
        device = resolve_remote_device(mode, device)
        clip = replace(clip, precision=resolve_precision(clip.precision, device))
    proposals = None
    if config.proposals is not None:
        proposals = ProposalsConfig(config.proposals, config.out)
    return InputsConfig(
        dataset=config.dataset,
        part=config.part,
        detector=resolve_detector(dataset, config) if _uses_detector(config) else None,
        clip=clip,
        templates=config.templates,
        extraction=config.extraction,
        device=device,
        threads=config.threads or threads_per_worker(mode),
        proposals=proposals,
    )


def resolve_config(
    config: BuildConfig, inputs_config: InputsConfig, inputs: BuildInputs
) -> BuildConfig:
    """The configuration with its models named, whatever the defaults are later or elsewhere."""
    config = replace(
        config,
        clip_model=inputs_config.clip.model,
        clip_weights=inputs_config.clip.weights,
        precision=inputs.clip.precision,
        threads=inputs_config.threads,
    )
    detector = inputs_config.detector
    if detector is None:
        return config
    name = TOY_IN_CACHES if detector.name == TOY else detector.name
    return replace(config, detector=name, detector_weights=detector.weights)


def _uses_detector(config: BuildConfig) -> bool:
    """Whether a detector is wanted; it is not where boxes are known beforehand.

    Raises:
        InputError: options that contradict each other.
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
    }
    if config.candidates == "annotated":
        options["--proposals"] = config.proposals
    for option, value in options.items():
        if instead is not None and value is not None:
            raise InputError(f"{option}: expected none with {instead}, found {value}")
    return instead is None


def resolve_detector(dataset: Dataset, config: BuildConfig) -> DetectorConfig:
    """The detector that is asked for, else the dataset's own, else torchvision's usual one.

    Raises:
        InputError: the dataset names a weights file that is not there, or none.
    """
    name, weights, own = config.detector, config.detector_weights, dataset.detector
    if weights is None and own is not None:
        if not own.is_file():
            raise InputError(f"{own}: no such weights file, named by {dataset.root}")
        # Another detector than the dataset's takes its own weights.
        if name in (None, recognise_architecture(own, dataset.vocabulary)):
            weights = str(own)
    if name is None and weights is not None and Path(weights).is_file():
        name = recognise_architecture(Path(weights), dataset.vocabulary)
    pairing = config.extraction.pairing
    # Detectors keep what is above their threshold; pairs take what is at it, too.
    lowest = min(pairing.person_threshold, pairing.object_threshold) - 1e-6
    return DetectorConfig(name or DEFAULT_DETECTOR, weights, lowest, config.detector_classes)


def _resolve_clip(dataset: Dataset, config: BuildConfig) -> ClipConfig:
    if config.clip_model is not None:
        return ClipConfig(config.clip_model, config.clip_weights, config.precision)
    if dataset.teacher is None:
        return ClipConfig(
            DEFAULT_CLIP_MODEL, config.clip_weights or DEFAULT_CLIP_WEIGHTS, config.precision
        )
    if not dataset.teacher.is_dir():
        raise InputError(f"{dataset.teacher}: no such CLIP folder, named by {dataset.root}")
    return ClipConfig(str(dataset.teacher), config.clip_weights, config.precision)
