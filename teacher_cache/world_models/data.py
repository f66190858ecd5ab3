"""Pictures for the world's own models: other ones than any dataset part shows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from pipeline.cores import usable_cores
from pipeline.progress import Progress
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from pipeline.world.scene import draw_scene, world_vocabulary
from teacher_cache.interrupts import interrupts_waiting
from teacher_cache.prompts import TEMPLATE, interaction_prompts
from teacher_cache.regions import RegionMode, crop_regions

CHUNK = 50


@dataclass(frozen=True, eq=False)
class ModelPictures:
    """What the world's models learn from.

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


def draw_model_pictures(
    seed: int, count: int, crop_size: int, templates: Sequence[str] = (TEMPLATE,)
) -> ModelPictures:
    """Draws `count` pictures of the world's part "models" on all cores.

    Args:
        seed: of the world.
        count: number of pictures.
        crop_size: S, side of the teacher's input.
        templates: of the captions.
    """
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    done: list[ModelPictures] = []
    with (
        Progress(count, "pictures for teacher and detector", "images") as progress,
        ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool,
    ):
        try:
            with interrupts_waiting():
                parts = pool.map(partial(_draw_chunk, seed, crop_size, templates), chunks)
            for part in parts:
                done.append(part)
                progress.advance(len(part.images))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return ModelPictures(
        images=np.concatenate([part.images for part in done]),
        annotations=[annotation for part in done for annotation in part.annotations],
        crops=np.concatenate([part.crops for part in done]),
        captions=[caption for part in done for caption in part.captions],
    )


def _draw_chunk(
    seed: int, crop_size: int, templates: Sequence[str], indices: Sequence[int]
) -> ModelPictures:
    vocabulary = world_vocabulary()
    images, annotations, crops, captions = [], [], [], []
    for index in indices:
        image, annotation = draw_scene(seed, "models", index)
        images.append(np.asarray(image))
        annotations.append(annotation)
        generator = np.random.default_rng([seed, index])
        boxes, sentences = captioned_regions(annotation, vocabulary, generator, templates)
        crops += crop_regions(image, boxes, crop_size, RegionMode())
        captions += sentences
    return ModelPictures(np.stack(images), annotations, np.stack(crops), captions)


JITTER = (0.0, 0.06)


def captioned_regions(
    annotation: Annotation,
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    templates: Sequence[str] = (TEMPLATE,),
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
        for amount in JITTER:
            boxes.append(union + size * generator.uniform(-amount, amount, 4))
            interaction = vocabulary.interaction_ids[verb, annotation.labels[thing]]
            choice = generator.integers(len(templates)) if len(templates) > 1 else 0
            sentences.append(prompts[interaction][choice])
    return np.array(boxes).reshape(-1, 4), sentences
