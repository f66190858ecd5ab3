"""Phase one: asks the teacher about every image of a dataset part and writes a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.datasets import Dataset, missing_images, open_dataset
from pipeline.errors import InputError
from pipeline.progress import Progress
from teacher_cache.answering import AskingConfig
from teacher_cache.clip_teacher import ClipConfig, ClipTeacher
from teacher_cache.cluster import run_tasks
from teacher_cache.detectors import DEFAULT, DetectorConfig, recognise
from teacher_cache.finish import Completion, finish
from teacher_cache.format import SHARDS, TEACHER, plain_vocabulary
from teacher_cache.pairing import ALL_PAIRS
from teacher_cache.plan import Plan, claim_folder
from teacher_cache.prompts import TEMPLATE, Prompts, embed_prompts
from teacher_cache.proposal_index import ProposalsConfig, drop_proposals, keep_proposals
from teacher_cache.reader import TeacherText, read_teacher
from teacher_cache.settings import to_settings
from teacher_cache.shards import ShardTask
from teacher_cache.sources import Opened, Sources, Subject, open_sources, read_subject
from teacher_cache.writer import finished_record, is_finished_shard, write_teacher

CLIP_MODEL, CLIP_WEIGHTS = "RN50x16", "openai"


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
        clip_model, clip_weights: see `ClipConfig`; None takes the dataset's own teacher, or the
            published one.
        precision: of CLIP's image tower, see `ClipConfig`.
        templates: sentences to ask with.
        asking: pairs, regions and batch sizes.
        images_per_shard: images of one shard and task.
        workers: processes; 0 builds in this one.
        device: where the models run.
    """

    dataset: Path
    out: Path
    part: str = "train"
    candidates: str = "detector"
    proposals: Path | None = None
    detector: str | None = None
    detector_weights: str | None = None
    clip_model: str | None = None
    clip_weights: str | None = None
    precision: str = "auto"
    templates: tuple[str, ...] = (TEMPLATE,)
    asking: AskingConfig = field(default_factory=AskingConfig)
    images_per_shard: int = 256
    workers: int = 0
    device: str = "auto"


def build(config: BuildConfig, say: Callable[[str], None] = print) -> None:
    """Builds a cache, or goes on with one that was interrupted.

    Args:
        config: what to do.
        say: told what people should know.

    Raises:
        InputError: bad input, or the folder holds a cache of other settings.
    """
    dataset = open_dataset(config.dataset)
    if config.candidates == "annotated":
        config = replace(config, asking=replace(config.asking, pairing=ALL_PAIRS))
    sources = Sources(
        dataset=config.dataset,
        part=config.part,
        detector=_detector(dataset, config) if _detects(config) else None,
        clip=_clip(dataset, config),
        templates=config.templates,
        asking=config.asking,
        device=config.device,
        proposals=None
        if config.proposals is None
        else ProposalsConfig(config.proposals, config.out),
    )
    subject = read_subject(sources)
    _tell_blemishes(dataset, subject, say)
    if config.proposals is not None and subject.proposals is not None:
        say(subject.proposals.line(config.proposals, len(subject.questions)))
    opened = open_sources(sources, subject)
    _tell_unknown(opened, say)
    questions = subject.questions
    plan = Plan(
        parts=opened.parts,
        layout={
            "images_per_shard": config.images_per_shard,
            "embeddings": config.asking.embeddings,
        },
        num_images=len(questions),
        settings=to_settings("build", _resolved(config, sources, opened)),
        vocabulary=plain_vocabulary(subject.vocabulary),
    )
    # Before the folder is claimed: words that the teacher does not know leave nothing behind.
    text = _text(config.out / TEACHER, plan, opened.prompts, opened.models.clip)
    if claim_folder(config.out, plan):
        say(f"{config.out}: was finished before; nothing to do")
        return
    if subject.proposals is not None:
        keep_proposals(subject.proposals)
    if text is not None:
        write_teacher(config.out / TEACHER, plan.fingerprint, text)
    tasks = _tasks(config, plan, sources)
    pending = [task for task in tasks if not is_finished_shard(task.path, plan.fingerprint)]
    if config.asking.strict:
        _refuse_failures(set(tasks) - set(pending))
    done = len(questions) - sum(map(len, pending))
    if done:
        say(f"{config.out}: going on after {done} of {len(questions)} images")
    with Progress(len(questions), "Asking the teacher", "images", done=done) as progress:
        records = run_tasks(pending, config.workers, progress)
    for left in (config.out / SHARDS).glob(".*.tmp"):
        left.unlink(missing_ok=True)
    completion = finish(config.out, records)
    if subject.proposals is not None and completion.counts is not None:
        drop_proposals(subject.proposals)
    _tell_completion(config.out, completion, say)


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
    }
    if config.candidates == "annotated":
        options["--proposals"] = config.proposals
    for option, value in options.items():
        if instead is not None and value is not None:
            raise InputError(f"{option}: expected none with {instead}, found {value}")
    return instead is None


def _tell_blemishes(dataset: Dataset, subject: Subject, say: Callable[[str], None]) -> None:
    """Tells what is wrong with annotations and images.

    Raises:
        InputError: none of the images is there.
    """
    annotations = subject.annotations
    if annotations.blemish_line():
        say(annotations.blemish_line())
    images = dataset.part(annotations.part).images
    missing = missing_images(images, annotations)
    if missing and len(missing) == len(subject.questions):
        raise InputError(f"{images}: expected {missing[0]} and others, found none of the images")
    if missing:
        count = len(subject.questions)
        say(f"{images}: {len(missing)} of {count} images are missing, first {missing[0]}")


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


def _detector(dataset: Dataset, config: BuildConfig) -> DetectorConfig:
    name, weights = config.detector, config.detector_weights
    if weights is None and dataset.detector is not None:
        weights = str(dataset.detector)
        if not dataset.detector.is_file():
            raise InputError(f"{weights}: no such weights file, named by {dataset.root}")
    if name is None and weights is not None and Path(weights).is_file():
        name = recognise(Path(weights), dataset.vocabulary)
    pairing = config.asking.pairing
    # Detectors keep what is above their threshold; pairs take what is at it, too.
    lowest = min(pairing.person_threshold, pairing.object_threshold) - 1e-6
    return DetectorConfig(name or DEFAULT, weights, lowest)


def _clip(dataset: Dataset, config: BuildConfig) -> ClipConfig:
    if config.clip_model is not None:
        return ClipConfig(config.clip_model, config.clip_weights, config.precision)
    if dataset.teacher is None:
        return ClipConfig(CLIP_MODEL, config.clip_weights or CLIP_WEIGHTS, config.precision)
    if not dataset.teacher.is_dir():
        raise InputError(f"{dataset.teacher}: no such CLIP folder, named by {dataset.root}")
    return ClipConfig(str(dataset.teacher), config.clip_weights, config.precision)


def _resolved(config: BuildConfig, sources: Sources, opened: Opened) -> BuildConfig:
    """The configuration with its models named, whatever the defaults are later or elsewhere."""
    config = replace(
        config,
        clip_model=sources.clip.model,
        clip_weights=sources.clip.weights,
        precision=opened.models.clip.precision,
    )
    detector = sources.detector
    if detector is None:
        return config
    return replace(config, detector=detector.name, detector_weights=detector.weights)


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
    assert counts is not None
    say(
        f"{folder}: {counts['images']} images, {counts['pairs']} pairs,"
        f" {counts['regions']} regions, {counts['shards']} shards"
    )
    for image, reason in list(failed.items())[:1]:
        say(f"{folder}: {len(failed)} images could not be read, first {image}: {reason}")
