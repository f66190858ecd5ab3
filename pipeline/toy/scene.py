"""Draws one image of the toy dataset with its annotation: background, groups, grain."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.toy.actions import DECORATION
from pipeline.toy.canvas import IMAGE_SIZE, OUTLINE_WIDTH, Box, Canvas
from pipeline.toy.palette import PALETTES, Palette
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import (
    PARTS,
    PlacedGroup,
    place_groups,
    sample_scene_spec,
    toy_vocabulary,
)
from pipeline.toy.scenery import BACKGROUNDS, draw_background
from pipeline.types import Annotation

# Images are drawn this many times larger and then averaged, which smooths all edges.
SUPERSAMPLING = 3
NOISE_LEVELS = 4


def draw_scene(seed: int, part: str, index: int) -> tuple[Image.Image, Annotation]:
    """Draws one image of the toy dataset. The same arguments always give the same bytes.

    Args:
        seed: seed of the toy dataset, at least 0.
        part: `train`, `test` or `models` (images for training the toy teacher and detector, in
            which no interactions are rare).
        index: index of the image in its part, from 0.

    Returns:
        An RGB image of 128x128 pixels, and its annotation. Boxes are tight around all that was
        drawn of a person or an object, even if it is covered; distractors are not annotated.
    """
    rng = ScalarRNG(np.random.default_rng([seed, PARTS.index(part), index]))
    background = BACKGROUNDS[rng.choice(list(BACKGROUNDS))]
    palette = Palette(rng.choice(PALETTES))
    horizon = int(rng.uniform(0.36, 0.56) * IMAGE_SIZE)
    groups = place_groups(sample_scene_spec(seed, part, index, rng), palette, horizon, rng)
    canvas = draw_background(background, horizon, rng, SUPERSAMPLING)
    for group in groups:
        _draw_shadows(canvas, group)
    for group in groups:
        for _, sketch in group.parts:
            canvas.paint(sketch, group.position, OUTLINE_WIDTH)
    for feature in background.foreground:
        feature(canvas)
    return _finish_image(canvas.image, rng), annotate_scene(groups, image_file_name(part, index))


def image_file_name(part: str, index: int) -> str:
    """File name of an image."""
    return f"toy_{part}_{index + 1:08d}.jpg"


def _finish_image(image: Image.Image, rng: ScalarRNG) -> Image.Image:
    """The image in its final size, with uniform noise."""
    pixels = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.int16)
    grain = rng.generator.integers(
        -NOISE_LEVELS, NOISE_LEVELS + 1, (IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.int16
    )
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def _draw_shadows(canvas: Canvas, group: PlacedGroup) -> None:
    """Draws shadows under people and objects that are at most 30 pixels above the ground."""
    for owner, (left, _, right, bottom) in group.boxes.items():
        height = group.position.imag - bottom
        if owner == DECORATION or height > 30:
            continue
        half = (right - left) * (0.46 if height < 3 else 0.36)
        middle = complex((left + right) / 2, group.position.imag)
        canvas.draw_shadow(middle, half, max(1.5, 0.16 * half))


def annotate_scene(groups: list[PlacedGroup], image_id: str) -> Annotation:
    """The annotation of an image: the person of every group, then its objects."""
    vocabulary = toy_vocabulary()
    boxes: list[Box] = []
    labels: list[int] = []
    hois: list[tuple[int, int, int]] = []
    for group in groups:
        if group.spec is None:
            continue
        person = len(boxes)
        boxes.append(group.boxes[0])
        labels.append(vocabulary.person)
        for owner, interaction in ((1, group.spec.interaction), (2, group.spec.in_hand)):
            if interaction is None:
                continue
            verb, label = vocabulary.interactions[interaction]
            hois.append((person, len(boxes), verb))
            boxes.append(group.boxes[owner])
            labels.append(label)
    return Annotation(
        image_id=image_id,
        boxes=np.clip(np.round(np.array(boxes), 2), 0, IMAGE_SIZE)
        .astype(np.float32)
        .reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        hois=np.array(hois, dtype=np.int64).reshape(-1, 3),
    )
