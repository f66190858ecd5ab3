"""Phase one: asks the teacher about every image of a dataset part and writes a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, missing_images, open_dataset
from pipeline.datasets.image_sizes import compare_sizes
from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress
from teacher_cache.cluster.modes import (
    InProcess,
    LocalWorkers,
    Mode,
    Share,
    is_elsewhere,
    threads_per_worker,
)
from teacher_cache.cluster.run import check_mode, device_elsewhere, run_tasks
from teacher_cache.detectors.pairing import ALL_PAIRS
from teacher_cache.detectors.proposals import ProposalsConfig, drop_proposals, keep_proposals
from teacher_cache.detectors.torchvision import DEFAULT, DetectorConfig, recognise
from teacher_cache.extraction.extract import AskingConfig
from teacher_cache.extraction.inputs import (
    Opened,
    Sources,
    Subject,
    forget_sources,
    open_sources,
    read_subject,
)
from teacher_cache.extraction.task import ShardTask
from teacher_cache.reader.cache import TeacherText, read_teacher
from teacher_cache.reader.format import MANIFEST, TEACHER, plain_vocabulary
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher, resolve_precision
from teacher_cache.teachers.prompts import TEMPLATE, Prompts, alike_line, embed_prompts
from teacher_cache.writer.lock import Hold, hold
from teacher_cache.writer.manifest import Completion, finish
from teacher_cache.writer.plan import Plan, check_folder, claim_folder, to_settings
from teacher_cache.writer.shard import finished_record, is_finished_shard, write_teacher


def build(config: BuildConfig, say: Callable[[str], None] = print) -> None:
    """Builds a cache, or goes on with one that was interrupted.

    Args:
        config: what to do.
        say: told what people should know.

    Raises:
        InputError: bad input, or the folder holds a cache of other settings.
    """
    mode = choose_mode(config)
    check_mode(mode)
    dataset = open_dataset(config.dataset)
    if config.candidates == "annotated":
        config = replace(config, asking=replace(config.asking, pairing=ALL_PAIRS))
    sources = choose_sources(dataset, config, mode, say)
    subject = read_subject(sources, dataset)
    _tell_blemishes(dataset, subject, say)
    if not (config.out / MANIFEST).is_file():
        _check_pictures(config, dataset, subject.annotations, say)
    if config.proposals is not None and subject.proposals is not None:
        say(subject.proposals.line(config.proposals, len(subject.questions)))
    here = replace(sources, device="auto") if is_elsewhere(mode) else sources
    opened = open_sources(here, subject)
    _tell_unknown(opened, say)
    plan = Plan(
        parts=opened.parts,
        layout={
            "images_per_shard": config.images_per_shard,
            "embeddings": config.asking.embeddings,
        },
        num_images=len(subject.questions),
        settings=to_settings("build", resolved(config, sources, opened)),
        vocabulary=plain_vocabulary(subject.vocabulary),
    )
    # Before the folder is claimed: words that the teacher does not know leave nothing behind.
    text = _text(config.out / TEACHER, plan, opened.prompts, opened.models.clip)
    if not isinstance(mode, InProcess):
        # The models of the processes that do the work need the place on the GPU.
        del opened
        forget_sources()
    if text is not None and (line := alike_line(subject.vocabulary.names, text)):
        say(line)
    is_finished = check_folder(config.out, plan)
    if not is_finished:
        shared = config.share is not None
        with hold(config.out, shared, say) as held:
            is_finished = claim_folder(config.out, plan, shared)
            if not is_finished:
                if subject.proposals is not None:
                    keep_proposals(subject.proposals)
                if text is not None:
                    write_teacher(config.out / TEACHER, plan.fingerprint, text)
                completion = _make(_tasks(config, plan, sources), config, mode, held, say)
                if subject.proposals is not None and completion.counts is not None:
                    drop_proposals(subject.proposals)
    if is_finished:
        say(f"{config.out}: was finished before; nothing to do")


def _make(
    tasks: Sequence[ShardTask],
    config: BuildConfig,
    mode: Mode,
    held: Hold,
    say: Callable[[str], None],
) -> Completion:
    """Makes the shards that are not there, and completes the cache with the last one."""
    if config.share is None:
        held.remove_leftovers()
    else:
        tasks = config.share.of(tasks)
    pending = [task for task in tasks if not is_finished_shard(task.path, task.fingerprint)]
    if config.asking.strict:
        _refuse_failures(set(tasks) - set(pending))
    total = sum(map(len, tasks))
    done = total - sum(map(len, pending))
    if done:
        say(f"{config.out}: going on after {done} of {total} images")
    try:
        with Progress(total, "Asking the teacher", "images", done=done) as progress:
            records = run_tasks(pending, mode, progress)
        completion = finish(config.out, records)
        _tell_completion(config.out, completion, say)
    finally:
        held.remove_leftovers()
    return completion


def _tell_blemishes(dataset: Dataset, subject: Subject, say: Callable[[str], None]) -> None:
    """Tells what is wrong with annotations and images.

    Raises:
        InputError: no label is left, or none of the images is there.
    """
    annotations = subject.annotations
    if annotations.blemish_line():
        say(annotations.blemish_line())
    if not annotations.boxes_only:
        annotations.require_labels()
    images = dataset.part(annotations.part).images
    missing = missing_images(images, annotations)
    if missing and len(missing) == len(subject.questions):
        raise InputError(f"{images}: expected {missing[0]} and others, found none of the images")
    if missing:
        count = len(subject.questions)
        say(f"{images}: {len(missing)} of {count} images are missing, first {missing[0]}")


def _check_pictures(
    config: BuildConfig, dataset: Dataset, annotations: AnnotationFile, say: Callable[[str], None]
) -> None:
    """Holds the declared sizes of the images that this process answers for against the files'.

    Raises:
        InputError: they are others.
    """
    entries, size = annotations.annotations, config.images_per_shard
    shards = [entries[start : start + size] for start in range(0, len(entries), size)]
    own = shards if config.share is None else config.share.of(shards)
    sizes = compare_sizes(dataset, replace(annotations, annotations=tuple(chain(*own))))
    sizes.refuse(config.asking.strict)
    for line in sizes.lines():
        say(line)


def _tell_unknown(opened: Opened, say: Callable[[str], None]) -> None:
    """Tells which objects the detector cannot find."""
    detector, vocabulary = opened.models.detector, opened.subject.vocabulary
    if detector is not None and detector.unknown:
        count = f"{len(detector.unknown)} of the {vocabulary.num_objects} objects"
        names = ", ".join(detector.unknown[:5]) + (", ..." if len(detector.unknown) > 5 else "")
        say(f"{detector.name}: finds none of {count} of {vocabulary.name}: {names}")


def _text(file: Path, plan: Plan, prompts: Prompts, clip: ClipTeacher) -> TeacherText | None:
    """The teacher's texts, None where they are written already; encoding them can take a while."""
    if file.is_file():
        try:
            read_teacher(file, plan.fingerprint)
            return None
        except InputError:
            pass
    return TeacherText(prompts, embed_prompts(prompts, clip.encode_texts), clip.logit_scale)


def _tasks(config: BuildConfig, plan: Plan, sources: Sources) -> list[ShardTask]:
    size, end = config.images_per_shard, plan.num_images
    return [
        ShardTask(config.out, plan.fingerprint, number, first, min(first + size, end), sources)
        for number, first in enumerate(range(0, end, size))
    ]


def _refuse_failures(finished: Iterable[ShardTask]) -> None:
    """A strict build does not go on from shards that a lenient one made without some image."""
    for task in sorted(finished, key=lambda task: task.number):
        record = finished_record(task.path, task.fingerprint)
        for image, reason in (record.failed if record else {}).items():
            raise InputError(f"{task.path}: lacks {image}: {reason}")


def _tell_completion(folder: Path, completion: Completion, say: Callable[[str], None]) -> None:
    counts, failed = completion.counts, completion.failed
    if counts is None:
        say(
            f"{folder}: {len(completion.missing)} shards of other jobs are not there yet; the last"
            f" job completes the cache, or: eoid-cache verify {folder}"
        )
        return
    say(
        f"{folder}: {counts['images']} images, {counts['pairs']} pairs,"
        f" {counts['regions']} regions, {counts['shards']} shards"
    )
    for image, reason in list(failed.items())[:1]:
        say(f"{folder}: {len(failed)} images could not be read, first {image}: {reason}")


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
        asking: pairs, regions and batch sizes.
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
    templates: tuple[str, ...] = (TEMPLATE,)
    asking: AskingConfig = field(default_factory=AskingConfig)
    images_per_shard: int = 256
    mode: Mode | None = None
    share: Share | None = None
    threads: int | None = None
    device: str = "auto"


CLIP_MODEL, CLIP_WEIGHTS = "RN50x16", "openai"


def choose_mode(config: BuildConfig) -> Mode:
    """Where shards are made: as told, or on all GPUs where there are several."""
    if config.mode is not None:
        return config.mode
    gpus = torch.cuda.device_count() if config.device == "auto" else 0
    return LocalWorkers(gpus) if gpus > 1 else InProcess()


def choose_sources(
    dataset: Dataset, config: BuildConfig, mode: Mode, say: Callable[[str], None]
) -> Sources:
    """What the answers will come from.

    Args:
        dataset: to ask about.
        config: what the user said.
        mode: where shards are made.
        say: told what is waited for.

    Raises:
        InputError: options that contradict each other, or files that are not there.
    """
    clip, device = _clip(dataset, config), config.device
    if is_elsewhere(mode):
        device = device_elsewhere(mode, device, say)
        clip = replace(clip, precision=resolve_precision(clip.precision, device))
    proposals = None
    if config.proposals is not None:
        proposals = ProposalsConfig(config.proposals, config.out)
    return Sources(
        dataset=config.dataset,
        part=config.part,
        detector=choose_detector(dataset, config) if _detects(config) else None,
        clip=clip,
        templates=config.templates,
        asking=config.asking,
        device=device,
        threads=config.threads or threads_per_worker(mode),
        proposals=proposals,
    )


def resolved(config: BuildConfig, sources: Sources, opened: Opened) -> BuildConfig:
    """The configuration with its models named, whatever the defaults are later or elsewhere."""
    config = replace(
        config,
        clip_model=sources.clip.model,
        clip_weights=sources.clip.weights,
        precision=opened.models.clip.precision,
        threads=sources.threads,
    )
    detector = sources.detector
    if detector is None:
        return config
    return replace(config, detector=detector.name, detector_weights=detector.weights)


def _detects(config: BuildConfig) -> bool:
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


def choose_detector(dataset: Dataset, config: BuildConfig) -> DetectorConfig:
    """The detector that is asked for, else the dataset's own, else torchvision's usual one.

    Raises:
        InputError: the dataset names a weights file that is not there, or none.
    """
    name, weights, own = config.detector, config.detector_weights, dataset.detector
    if weights is None and own is not None:
        if not own.is_file():
            raise InputError(f"{own}: no such weights file, named by {dataset.root}")
        # Another detector than the dataset's takes its own weights.
        if name in (None, recognise(own, dataset.vocabulary)):
            weights = str(own)
    if name is None and weights is not None and Path(weights).is_file():
        name = recognise(Path(weights), dataset.vocabulary)
    pairing = config.asking.pairing
    # Detectors keep what is above their threshold; pairs take what is at it, too.
    lowest = min(pairing.person_threshold, pairing.object_threshold) - 1e-6
    return DetectorConfig(name or DEFAULT, weights, lowest, config.detector_classes)


def _clip(dataset: Dataset, config: BuildConfig) -> ClipConfig:
    if config.clip_model is not None:
        return ClipConfig(config.clip_model, config.clip_weights, config.precision)
    if dataset.teacher is None:
        return ClipConfig(CLIP_MODEL, config.clip_weights or CLIP_WEIGHTS, config.precision)
    if not dataset.teacher.is_dir():
        raise InputError(f"{dataset.teacher}: no such CLIP folder, named by {dataset.root}")
    return ClipConfig(str(dataset.teacher), config.clip_weights, config.precision)
