"""Phase one: asks the teacher about every image of a dataset part and writes a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.datasets import Dataset, missing_images, open_dataset
from pipeline.devices import resolve_device
from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.progress import Progress
from teacher_cache.answering import AskingConfig
from teacher_cache.clip_teacher import ClipConfig, ClipTeacher
from teacher_cache.cluster import run_tasks
from teacher_cache.decoding import Question
from teacher_cache.detectors import DEFAULT, DetectorConfig, recognise
from teacher_cache.format import FORMAT_VERSION, MANIFEST, SHARDS, TEACHER, shard_name
from teacher_cache.pairing import annotated_pairs
from teacher_cache.plan import Plan, claim_folder, fingerprint_parts
from teacher_cache.prompts import TEMPLATE, Prompts, embed_prompts, interaction_prompts
from teacher_cache.reader import TeacherText, read_teacher
from teacher_cache.shards import Setup, ShardTask, load_models
from teacher_cache.writer import ShardRecord, finished_record, write_teacher

CLIP_MODEL, CLIP_WEIGHTS = "RN50x16", "openai"


@dataclass(frozen=True)
class BuildConfig:
    """Everything that a build is told.

    Attributes:
        dataset: the dataset folder.
        out: the cache folder, new or of an interrupted build of the same settings.
        part: "train" or "test".
        detector, detector_weights: name and weights; None takes the dataset's own detector, or
            torchvision's usual one.
        clip_model, clip_weights: see `ClipConfig`; None takes the dataset's own teacher, or the
            published one.
        templates: sentences to ask with.
        asking: pairs, regions and batch sizes.
        images_per_shard: images of one shard and task.
        workers: processes; 0 builds in this one.
        device: where the models run.
    """

    dataset: Path
    out: Path
    part: str = "train"
    detector: str | None = None
    detector_weights: str | None = None
    clip_model: str | None = None
    clip_weights: str | None = None
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
    questions, annotations_digest = _questions(dataset, config, say)
    setup = Setup(
        folder=config.out,
        fingerprint="",
        vocabulary=dataset.vocabulary,
        detector=_detector(dataset, config),
        clip=_clip(dataset, config),
        asking=config.asking,
        device=str(resolve_device(config.device)),
    )
    prompts = interaction_prompts(dataset.vocabulary, config.templates)
    models = load_models(setup)
    plan = Plan(
        parts=fingerprint_parts(
            models, dataset.vocabulary, prompts, config.asking, config.part, annotations_digest
        ),
        layout={
            "images_per_shard": config.images_per_shard,
            "embeddings": config.asking.embeddings,
        },
        settings=_plain(asdict(config)),
    )
    # Before the folder is claimed: words that the teacher does not know leave nothing behind.
    text = _text(config.out / TEACHER, plan, prompts, models.clip)
    if claim_folder(config.out, plan):
        say(f"{config.out}: was finished before; nothing to do")
        return
    setup = replace(setup, fingerprint=plan.fingerprint)
    if text is not None:
        write_teacher(config.out / TEACHER, plan.fingerprint, text)
    tasks = _tasks(questions, setup, config.images_per_shard)
    records = {task.path.name: finished_record(task.path, plan.fingerprint) for task in tasks}
    if config.asking.strict:
        _refuse_failures(config.out, [record for record in records.values() if record])
    pending = [task for task in tasks if records[task.path.name] is None]
    done = len(questions) - sum(len(task.questions) for task in pending)
    if done:
        say(f"{config.out}: going on after {done} of {len(questions)} images")
    with Progress(len(questions), "Asking the teacher", "images", done=done) as progress:
        for record in run_tasks(pending, config.workers, progress):
            records[record.name] = record
    _finish(config.out, plan, [record for record in records.values() if record], say)


def _questions(
    dataset: Dataset, config: BuildConfig, say: Callable[[str], None]
) -> tuple[list[Question], str]:
    annotations = dataset.load(config.part, strict=config.asking.strict)
    if annotations.blemish_line():
        say(annotations.blemish_line())
    images = dataset.part(config.part).images
    questions = [
        Question(annotation.image_id, images / annotation.image_id, annotated_pairs(annotation))
        for annotation in annotations.annotations
    ]
    missing = missing_images(images, annotations)
    if len(missing) == len(questions):
        raise InputError(f"{images}: expected {missing[0]} and others, found none of the images")
    if missing:
        say(f"{images}: {len(missing)} of {len(questions)} images are missing, first {missing[0]}")
    return questions, annotations.digest


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
    lowest = min(pairing.person_threshold, pairing.object_threshold)
    return DetectorConfig(name or DEFAULT, weights, lowest)


def _clip(dataset: Dataset, config: BuildConfig) -> ClipConfig:
    if config.clip_model is not None:
        return ClipConfig(config.clip_model, config.clip_weights)
    if dataset.teacher is None:
        return ClipConfig(CLIP_MODEL, config.clip_weights or CLIP_WEIGHTS)
    if not dataset.teacher.is_dir():
        raise InputError(f"{dataset.teacher}: no such CLIP folder, named by {dataset.root}")
    return ClipConfig(str(dataset.teacher))


def _tasks(questions: Sequence[Question], setup: Setup, size: int) -> list[ShardTask]:
    return [
        ShardTask(
            path=setup.folder / SHARDS / shard_name(number),
            questions=tuple(questions[start : start + size]),
            setup=setup,
        )
        for number, start in enumerate(range(0, len(questions), size))
    ]


def _refuse_failures(folder: Path, records: Sequence[ShardRecord]) -> None:
    """A strict build does not go on from shards that a lenient one made without some image."""
    for record in records:
        for image, reason in record.failed.items():
            raise InputError(f"{folder / SHARDS / record.name}: lacks {image}: {reason}")


def _finish(
    folder: Path, plan: Plan, records: Sequence[ShardRecord], say: Callable[[str], None]
) -> None:
    for left in (folder / SHARDS).glob(".*.tmp"):
        left.unlink(missing_ok=True)
    failed = {image: reason for record in records for image, reason in record.failed.items()}
    counts = {
        "images": sum(len(record.images) for record in records),
        "pairs": sum(record.pairs for record in records),
        "regions": sum(record.regions for record in records),
        "shards": len(records),
        "failed": len(failed),
    }
    write_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": plan.fingerprint,
            "parts": plan.parts,
            "layout": plan.layout,
            "counts": counts,
            "failed": failed,
            "shards": [record.to_dict() for record in records],
        },
    )
    say(
        f"{folder}: {counts['images']} images, {counts['pairs']} pairs,"
        f" {counts['regions']} regions, {counts['shards']} shards"
    )
    for image, reason in list(failed.items())[:1]:
        say(f"{folder}: {len(failed)} images could not be read, first {image}: {reason}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
