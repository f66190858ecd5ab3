"""Draws training images for the toy teacher and detector, and trains both in two processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.toy.generate import DRAWING_VERSION, map_chunks
from pipeline.toy.scene import draw_scene
from pipeline.toy.scene_spec import toy_vocabulary
from pipeline.types import Annotation
from pipeline.utils.devices import configure_device, num_usable_cores, resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.files import differing_keys, read_json, write_json
from pipeline.utils.logging import get_logger
from pipeline.utils.weights import save_half
from pipeline.vocabulary import Vocabulary
from teacher_cache.teachers.clip import WEIGHTS_FILE, save_clip
from teacher_cache.teachers.prompts import DEFAULT_TEMPLATE, interaction_prompts
from teacher_cache.teachers.regions import RegionMode, crop_regions_pil
from teacher_cache.teachers.word_tokenizer import WordTokenizer
from teacher_cache.toy.models import (
    CONTEXT_LENGTH,
    DETECTOR_BATCH,
    IMAGE_SIZE,
    MEAN,
    STD,
    TEACHER_BATCH,
    clip_config,
    train_detector,
    train_teacher,
)
from teacher_cache.toy.processes import Report, run_in_processes

logger = get_logger(__name__)

RECIPE_FILE, DETECTOR_FILE, TEACHER_FOLDER = "toy_models.json", "detector.safetensors", "teacher"
MODEL_NAMES = ("teacher", "detector")


@dataclass(frozen=True)
class ToyModelsConfig:
    """Which models are trained, on which images, and how long.

    Attributes:
        num_images: number of training images, drawn as part "models" of the toy dataset.
        seed: seed of the images and of the training.
        teacher_steps: number of optimizer steps of the teacher.
        detector_epochs: number of epochs of the detector.
        templates: prompt templates of the captions; each region gets one of them.
        models: names of the models to train, from `MODEL_NAMES`.
    """

    num_images: int = 3000
    seed: int = 0
    teacher_steps: int = 500
    detector_epochs: int = 4
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    models: tuple[str, ...] = MODEL_NAMES

    def recipe(self) -> dict[str, Any]:
        """JSON values of everything that the trained weights depend on."""
        recipe = {"drawing": DRAWING_VERSION, **asdict(self), "templates": list(self.templates)}
        del recipe["models"]
        return recipe


def train_toy_models(folder: Path, config: ToyModelsConfig, device: str) -> None:
    """Trains the models of `config` and writes `detector.safetensors` and `teacher/` to `folder`.

    Each model is trained in its own process with half of the cores, because models this small do
    not keep all cores busy. A model that the folder already contains is not trained again.

    Args:
        folder: a new folder, or one of an earlier run of the same recipe.
        config: models and recipes.
        device: name of a torch device, or "auto".

    Raises:
        InputError: the folder contains other files or models of another recipe, or the device or
            a template is invalid.
    """
    resolve_device(device)
    interaction_prompts(toy_vocabulary(), config.templates)
    folder.mkdir(parents=True, exist_ok=True)
    _claim_folder(folder, config.recipe())
    trainings: dict[str, tuple[Callable[..., None], int]] = {}
    if "teacher" in config.models and not (folder / TEACHER_FOLDER / WEIGHTS_FILE).is_file():
        trainings["teacher"] = (run_teacher_training, config.teacher_steps * TEACHER_BATCH)
    if "detector" in config.models and not (folder / DETECTOR_FILE).is_file():
        epoch_size = config.num_images - config.num_images % DETECTOR_BATCH
        trainings["detector"] = (run_detector_training, config.detector_epochs * epoch_size)
    if not trainings:
        verb = "are" if len(config.models) > 1 else "is"
        logger.info(f"{folder}: {' and '.join(config.models)} {verb} trained already")
        return
    data = draw_training_data(config.seed, config.num_images, IMAGE_SIZE, config.templates)
    threads = max(1, num_usable_cores() // len(trainings))
    run_in_processes(
        {
            name: (partial(train, data, folder, config, device, threads), total)
            for name, (train, total) in trainings.items()
        }
    )
    logger.info(
        f"{folder}: trained; build a cache of a toy dataset with --detector toy"
        f" --detector-weights {folder / DETECTOR_FILE} --clip-model {folder / TEACHER_FOLDER}"
    )


def _claim_folder(folder: Path, recipe: dict[str, Any]) -> None:
    """Writes the recipe to a new folder, or checks that the folder's models have this recipe.

    Raises:
        InputError: the folder contains models of another recipe, or other files.
    """
    if (folder / RECIPE_FILE).is_file():
        found = read_json(folder / RECIPE_FILE)
        if found != recipe:
            changed = " and ".join(differing_keys(found, recipe))
            raise InputError(f"{folder}: contains models with another {changed}; name a new folder")
    elif any(folder.iterdir()):
        raise InputError(f"{folder}: expected a new folder or toy models, found other files")
    write_json(folder / RECIPE_FILE, recipe)


def run_teacher_training(
    data: ToyTrainingData,
    folder: Path,
    config: ToyModelsConfig,
    device: str,
    threads: int,
    report: Report,
) -> None:
    """Trains the teacher in this process with `threads` threads and writes it."""
    torch.set_num_threads(threads)
    prompts = interaction_prompts(toy_vocabulary(), config.templates)
    words = sorted({word for group in prompts for prompt in group for word in prompt.split()})
    tokenizer = WordTokenizer(words, CONTEXT_LENGTH)
    model = train_teacher(
        torch.from_numpy(data.crops).permute(0, 3, 1, 2).contiguous(),
        data.captions,
        tokenizer,
        config.teacher_steps,
        torch.Generator().manual_seed(config.seed),
        configure_device(resolve_device(device), "auto"),
        report,
    )
    preprocessing = {"mean": list(MEAN), "std": list(STD)}
    save_clip(folder / TEACHER_FOLDER, model, clip_config(tokenizer), preprocessing, tokenizer)


def run_detector_training(
    data: ToyTrainingData,
    folder: Path,
    config: ToyModelsConfig,
    device: str,
    threads: int,
    report: Report,
) -> None:
    """Trains the detector in this process with `threads` threads and writes it."""
    torch.set_num_threads(threads)
    model = train_detector(
        torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous(),
        data.annotations,
        toy_vocabulary(),
        config.detector_epochs,
        torch.Generator().manual_seed(config.seed),
        configure_device(resolve_device(device), "auto"),
        report,
    )
    save_half(folder / DETECTOR_FILE, model.state_dict())


@dataclass(frozen=True, eq=False)
class ToyTrainingData:
    """Training data of the toy models.

    Attributes:
        images: (N, 128, 128, 3) uint8.
        annotations: annotations of the N images.
        crops: (K, S, S, 3) uint8 union regions, two for each annotated interaction.
        captions: captions of the K regions.
    """

    images: np.ndarray
    annotations: list[Annotation]
    crops: np.ndarray
    captions: list[str]


def draw_training_data(
    seed: int, count: int, crop_size: int, templates: Sequence[str] = (DEFAULT_TEMPLATE,)
) -> ToyTrainingData:
    """Draws `count` images of the toy dataset's part "models" on all cores.

    Args:
        seed: seed of the toy dataset.
        count: number of images.
        crop_size: S, side length of the teacher's input.
        templates: prompt templates of the captions.
    """
    draw = partial(_draw_chunk, seed, crop_size, templates)
    chunks = list(map_chunks(draw, count, "Drawing training images"))
    return ToyTrainingData(
        images=np.concatenate([chunk.images for chunk in chunks]),
        annotations=[annotation for chunk in chunks for annotation in chunk.annotations],
        crops=np.concatenate([chunk.crops for chunk in chunks]),
        captions=[caption for chunk in chunks for caption in chunk.captions],
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
        boxes, box_captions = captioned_regions(annotation, vocabulary, generator, templates)
        crops += crop_regions_pil(image, boxes, crop_size, RegionMode())
        captions += box_captions
    return ToyTrainingData(np.stack(images), annotations, np.stack(crops), captions)


# Maximum offset of each side as a fraction of the box size, for the two regions of a label.
BOX_JITTER = (0.0, 0.06)


def captioned_regions(
    annotation: Annotation,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
) -> tuple[np.ndarray, list[str]]:
    """Union boxes of the annotated interactions, with captions.

    Each interaction gives two boxes: the annotated union box, and one whose sides are displaced
    at random by up to 6 % of its size, similar to those of detected boxes.

    Args:
        annotation: annotation of an image, with K interactions.
        vocabulary: the annotation's vocabulary.
        generator: source of the jitter, and of the choice if there are several templates.
        templates: prompt templates of the captions.

    Returns:
        (2K, 4) xyxy boxes in pixels and 2K captions.
    """
    prompts = interaction_prompts(vocabulary, templates)
    boxes, captions = [], []
    for human, target, verb in annotation.hois:
        pair = annotation.boxes[[human, target]]
        union = np.concatenate([pair[:, :2].min(0), pair[:, 2:].max(0)])
        size = np.tile(union[2:] - union[:2], 2)
        for amount in BOX_JITTER:
            boxes.append(union + size * generator.uniform(-amount, amount, 4))
            interaction = vocabulary.interaction_ids[verb, annotation.labels[target]]
            choice = generator.integers(len(templates)) if len(templates) > 1 else 0
            captions.append(prompts[interaction][choice])
    return np.array(boxes).reshape(-1, 4), captions
