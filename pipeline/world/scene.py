"""Pictures of the world, and what is annotated in them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.types import Annotation
from pipeline.world.actions import DECORATION
from pipeline.world.background import PLACES, paint_background
from pipeline.world.dice import Dice
from pipeline.world.palette import PALETTES, Palette, oklch
from pipeline.world.placement import Standing, place_all
from pipeline.world.sketch import SIZE, Box
from pipeline.world.stage import Stage
from pipeline.world.wishes import PARTS, choose_wishes, world_vocabulary

# Pictures are painted this much larger and averaged down, which smooths all edges.
SCALE = 3
GRAIN = 4


def draw_scene(seed: int, part: str, index: int) -> tuple[Image.Image, Annotation]:
    """One picture of the world; the same arguments always give the same bytes.

    Args:
        seed: of the whole world, from 0 on.
        part: `train`, `test` or `models` (pictures for the world's teacher and detector, where all
            interactions are equally common).
        index: number of the picture in its part, from 0.

    Returns:
        An RGB image of 128x128 pixels, and its annotation: boxes are tight to what was drawn of a
        person or thing, whether or not others cover it; loose things are not annotated.
    """
    dice = Dice(np.random.default_rng([seed, PARTS.index(part), index]))
    place = PLACES[dice.pick(list(PLACES))]
    light, tint = place.light
    palette = Palette(dice.pick(PALETTES), oklch(*light), tint)
    horizon = int(dice.between(0.36, 0.56) * SIZE)
    standing = place_all(choose_wishes(seed, part, index, dice), palette, horizon, dice)
    stage = paint_background(place, horizon, dice, SCALE)
    for group in standing:
        _paint_shadows(stage, group)
    for group in standing:
        for _, sketch in group.parts:
            sketch.paint(stage.solid, SCALE, group.spot)
    for feature in place.front:
        feature(stage)
    return _finished(stage.canvas, dice), annotate(standing, picture_name(part, index))


def picture_name(part: str, index: int) -> str:
    """File name of a picture, which is its id."""
    return f"world_{part}_{index + 1:08d}.jpg"


def _finished(canvas: Image.Image, dice: Dice) -> Image.Image:
    """The picture in its final size, with a little grain."""
    pixels = np.asarray(canvas.reduce(SCALE), dtype=np.int16)
    grain = dice.generator.integers(-GRAIN, GRAIN + 1, (SIZE, SIZE, 1), dtype=np.int16)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def _paint_shadows(stage: Stage, group: Standing) -> None:
    """Shadows under what is on the ground or not far above."""
    for owner, (left, _, right, bottom) in group.boxes.items():
        height = group.spot.imag - bottom
        if owner == DECORATION or height > 30:
            continue
        half = (right - left) * (0.46 if height < 3 else 0.36)
        middle = complex((left + right) / 2, group.spot.imag)
        stage.shadow(middle, half, max(1.5, 0.16 * half))


def annotate(standing: list[Standing], image_id: str) -> Annotation:
    """The annotation of a picture: of every group its person, then its things."""
    vocabulary = world_vocabulary()
    boxes: list[Box] = []
    labels: list[int] = []
    hois: list[tuple[int, int, int]] = []
    for group in standing:
        if group.wish is None:
            continue
        person = len(boxes)
        boxes.append(group.boxes[0])
        labels.append(vocabulary.person)
        for owner, interaction in ((1, group.wish.interaction), (2, group.wish.in_hand)):
            if interaction is None:
                continue
            verb, label = vocabulary.interactions[interaction]
            hois.append((person, len(boxes), verb))
            boxes.append(group.boxes[owner])
            labels.append(label)
    return Annotation(
        image_id=image_id,
        boxes=np.clip(np.round(np.array(boxes), 2), 0, SIZE).astype(np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        hois=np.array(hois, dtype=np.int64).reshape(-1, 3),
    )
