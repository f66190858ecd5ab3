"""Trains the toy teacher and detector side by side."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.toy.scene import draw_scene
from pipeline.toy.scene_spec import toy_vocabulary
from pipeline.types import Annotation
from pipeline.utils.devices import autocast, configure_device, num_usable_cores, resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, differing_keys, read_json, write_json
from pipeline.utils.progress import Progress
from pipeline.utils.signals import defer_interrupts
from pipeline.vocabulary import Vocabulary
from teacher_cache.teachers.clip import WEIGHTS_FILE, save_clip
from teacher_cache.teachers.prompts import DEFAULT_TEMPLATE, interaction_prompts
from teacher_cache.teachers.regions import RegionMode, crop_regions_pil
from teacher_cache.teachers.word_tokenizer import WordTokenizer
from teacher_cache.toy.models import (
    CONTEXT_LENGTH,
    IMAGE_SIZE,
    MEAN,
    STD,
    ToyModelsConfig,
    clip_config,
    train_detector,
    train_teacher,
)

RECIPE_FILE, DETECTOR_FILE, TEACHER_FOLDER = "toy_models.json", "detector.safetensors", "teacher"


def train_toy_models(folder: Path, config: ToyModelsConfig, device: str) -> None:
    """Trains both models into `folder`: `detector.safetensors` and `teacher/`.

    Each trains in a process of its own with half of the cores, which uses them better than one
    small model after the other could. A model that is already there is not trained again.

    Raises:
        InputError: the folder holds models of another seed or recipe.
    """
    resolve_device(device)
    interaction_prompts(toy_vocabulary(), config.templates)
    folder.mkdir(parents=True, exist_ok=True)
    _claim_folder(folder, config.recipe())
    wanted: dict[str, tuple[Callable[..., None], int]] = {}
    if "teacher" in config.models and not (folder / TEACHER_FOLDER / WEIGHTS_FILE).is_file():
        wanted["teacher"] = (
            _run_teacher_training,
            config.teacher.steps * config.teacher.batch_size,
        )
    if "detector" in config.models and not (folder / DETECTOR_FILE).is_file():
        used = config.pictures - config.pictures % config.detector.batch_size
        wanted["detector"] = (_run_detector_training, config.detector.epochs * used)
    if not wanted:
        verb = "are" if len(config.models) > 1 else "is"
        print(f"{folder}: {' and '.join(config.models)} {verb} there already")
        return
    pictures = draw_training_data(config.seed, config.pictures, IMAGE_SIZE, config.templates)
    threads = max(1, num_usable_cores() // len(wanted))
    run_in_processes(
        {
            name: (partial(work, pictures, folder, config, device, threads), total)
            for name, (work, total) in wanted.items()
        }
    )


def _claim_folder(folder: Path, recipe: dict[str, Any]) -> None:
    """Makes the folder this recipe's.

    Raises:
        InputError: it is another's.
    """
    if (folder / RECIPE_FILE).is_file():
        found = read_json(folder / RECIPE_FILE)
        if found != recipe:
            held = found if isinstance(found, dict) else {}
            changed = differing_keys(found, {**dict.fromkeys(held), **recipe})
            raise InputError(
                f"{folder}: holds models with another {' and '.join(changed)}; name a new folder"
            )
    elif any(folder.iterdir()):
        raise InputError(f"{folder}: expected a new folder or the toy models, found other files")
    write_json(folder / RECIPE_FILE, recipe)


def _run_teacher_training(
    data: ToyTrainingData,
    folder: Path,
    config: ToyModelsConfig,
    device: str,
    threads: int,
    report: ReportProgress,
) -> None:
    torch.set_num_threads(threads)
    place = configure_device(resolve_device(device), config.precision)
    vocabulary = toy_vocabulary()
    prompts = interaction_prompts(vocabulary, config.templates)
    words = sorted({word for group in prompts for prompt in group for word in prompt.split()})
    tokenizer = WordTokenizer(words, CONTEXT_LENGTH)
    model = train_teacher(
        torch.from_numpy(data.crops).permute(0, 3, 1, 2).contiguous(),
        data.captions,
        tokenizer,
        config.teacher,
        torch.Generator().manual_seed(config.seed),
        place,
        partial(autocast, place, config.precision),
        partial(report, config.teacher.batch_size),
    )
    save_clip(
        folder / TEACHER_FOLDER,
        model,
        clip_config(tokenizer),
        {"mean": list(MEAN), "std": list(STD)},
        tokenizer,
    )


def _run_detector_training(
    data: ToyTrainingData,
    folder: Path,
    config: ToyModelsConfig,
    device: str,
    threads: int,
    report: ReportProgress,
) -> None:
    torch.set_num_threads(threads)
    place = configure_device(resolve_device(device), config.precision)
    model = train_detector(
        torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous(),
        data.annotations,
        toy_vocabulary(),
        config.detector,
        torch.Generator().manual_seed(config.seed),
        place,
        partial(autocast, place, config.precision),
        report,
    )
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(folder / DETECTOR_FILE) as temporary:
        save_file(state, temporary)


ReportProgress = Callable[[int, str], None]
Job = Callable[[ReportProgress], None]
# Seconds without a report after which somebody looks whether the processes still live.
POLL_TIMEOUT = 1.0


def run_in_processes(jobs: Mapping[str, tuple[Job, int]]) -> None:
    """Runs every job in a process of its own, with one progress bar each.

    Args:
        jobs: by name, a function that is given `report(images, note)`, and its total of images.

    Raises:
        RuntimeError: a process failed, its traceback is in the message; or it was killed.
    """
    context = get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_run_job, name=name, args=(name, work, queue), daemon=True)
        for name, (work, _) in jobs.items()
    ]
    bars = {name: Progress(total, name, "images") for name, (_, total) in jobs.items()}
    try:
        with defer_interrupts():
            for process in processes:
                process.start()
        running = len(processes)
        while running:
            name, count, note = _next_report(queue, processes)
            if count is None:
                if note:
                    raise RuntimeError(f"{name} failed:\n{note}")
                bars[name].close()
                running -= 1
            else:
                bars[name].update(count, note)
    finally:
        for process in processes:
            # One that never started cannot be ended.
            if process.is_alive():
                process.terminate()
                process.join()


def _next_report(queue: Any, processes: Sequence[Any]) -> tuple[str, int | None, str]:
    """The next report.

    Raises:
        RuntimeError: a process was killed, for want of memory for instance.
    """
    while True:
        try:
            return queue.get(timeout=POLL_TIMEOUT)
        except Empty:
            for process in processes:
                if process.exitcode:
                    message = f"{process.name} died with exit code {process.exitcode}"
                    raise RuntimeError(message) from None


def _run_job(name: str, job: Job, queue: Any) -> None:
    def report(count: int, note: str) -> None:
        parent = parent_process()
        if parent is not None and not parent.is_alive():
            # Killed, so that it could not end this process.
            sys.exit(1)
        queue.put((name, count, note))

    try:
        job(report)
    except Exception:
        queue.put((name, None, traceback.format_exc()))
    else:
        queue.put((name, None, ""))


CHUNK_SIZE = 50


@dataclass(frozen=True, eq=False)
class ToyTrainingData:
    """What the toy models learn from.

    Attributes:
        images: (N, 128, 128, 3) uint8.
        annotations: all boxes, and what people do with them.
        crops: (K, S, S, 3) uint8 union regions, two for every annotated pair.
        captions: K sentences.
    """

    images: np.ndarray
    annotations: list[Annotation]
    crops: np.ndarray
    captions: list[str]


def draw_training_data(
    seed: int, count: int, crop_size: int, templates: Sequence[str] = (DEFAULT_TEMPLATE,)
) -> ToyTrainingData:
    """Draws `count` pictures of the toy dataset's part "models" on all cores.

    Args:
        seed: of the toy dataset.
        count: number of pictures.
        crop_size: S, side of the teacher's input.
        templates: of the captions.
    """
    chunks = [range(start, min(start + CHUNK_SIZE, count)) for start in range(0, count, CHUNK_SIZE)]
    done: list[ToyTrainingData] = []
    with (
        Progress(count, "pictures for teacher and detector", "images") as progress,
        ProcessPoolExecutor(num_usable_cores(), get_context("spawn")) as pool,
    ):
        try:
            with defer_interrupts():
                parts = pool.map(partial(_draw_chunk, seed, crop_size, templates), chunks)
            for part in parts:
                done.append(part)
                progress.update(len(part.images))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return ToyTrainingData(
        images=np.concatenate([part.images for part in done]),
        annotations=[annotation for part in done for annotation in part.annotations],
        crops=np.concatenate([part.crops for part in done]),
        captions=[caption for part in done for caption in part.captions],
    )


def _draw_chunk(
    seed: int, crop_size: int, templates: Sequence[str], indices: Sequence[int]
) -> ToyTrainingData:
    vocabulary = toy_vocabulary()
    images, annotations, crops, captions = [], [], [], []
    for index in indices:
        image, annotation = draw_scene(seed, "models", index)
        images.append(np.asarray(image))
        annotations.append(annotation)
        generator = np.random.default_rng([seed, index])
        boxes, sentences = captioned_regions(annotation, vocabulary, generator, templates)
        crops += crop_regions_pil(image, boxes, crop_size, RegionMode())
        captions += sentences
    return ToyTrainingData(np.stack(images), annotations, np.stack(crops), captions)


BOX_JITTER = (0.0, 0.06)


def captioned_regions(
    annotation: Annotation,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
) -> tuple[np.ndarray, list[str]]:
    """Union boxes of the labelled pairs with their captions.

    Every pair comes once as it is and once moved as a detector would find it, by up to 6 % of
    its size at every side.

    Args:
        annotation: of one picture.
        vocabulary: its names.
        generator: of the jitter, and of the choice among several templates.
        templates: of the captions.

    Returns:
        (2K, 4) boxes xyxy and 2K sentences.
    """
    prompts = interaction_prompts(vocabulary, templates)
    boxes, sentences = [], []
    for human, thing, verb in annotation.hois:
        pair = annotation.boxes[[human, thing]]
        union = np.concatenate([pair[:, :2].min(0), pair[:, 2:].max(0)])
        size = np.tile(union[2:] - union[:2], 2)
        for amount in BOX_JITTER:
            boxes.append(union + size * generator.uniform(-amount, amount, 4))
            interaction = vocabulary.interaction_ids[verb, annotation.labels[thing]]
            choice = generator.integers(len(templates)) if len(templates) > 1 else 0
            sentences.append(prompts[interaction][choice])
    return np.array(boxes).reshape(-1, 4), sentences
