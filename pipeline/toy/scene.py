"""Pictures of the world, and what is annotated in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipeline.toy import scenery as ground
from pipeline.toy import scenery as horizon
from pipeline.toy import scenery as interior
from pipeline.toy.actions import DECORATION
from pipeline.toy.canvas import SIZE, Box, Colour, Stage
from pipeline.toy.palette import PALETTES, Palette, oklch
from pipeline.toy.rng import Dice
from pipeline.toy.scene_spec import PARTS, Standing, choose_wishes, place_all, world_vocabulary
from pipeline.types import Annotation

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


Lch = tuple[float, float, float]


@dataclass(frozen=True)
class Place:
    """A kind of place; colours are OKLCH.

    Attributes:
        above: of the sky or wall at the top and at the horizon.
        below: of the ground at the horizon and in front.
        scenery: what is drawn onto the empty place, from back to front.
        front: what is drawn last, over people and things.
        light: a colour mixed into people and things, and how much of it.
        cloudy, rough: contrast of the sky's and the ground's texture, in grey levels.
    """

    above: tuple[Lch, Lch]
    below: tuple[Lch, Lch]
    scenery: tuple[Callable[[Stage], None], ...]
    front: tuple[Callable[[Stage], None], ...] = ()
    light: tuple[Lch, float] = ((1.0, 0.0, 0.0), 0.0)
    cloudy: float = 6.0
    rough: float = 8.0


PLACES = {
    "park": Place(
        ((0.78, 0.09, 235), (0.95, 0.03, 215)),
        ((0.82, 0.11, 128), (0.70, 0.12, 138)),
        (horizon.sun, horizon.clouds, horizon.hills, horizon.trees, ground.flowers),
        (ground.tufts,),
    ),
    "beach": Place(
        ((0.76, 0.10, 228), (0.95, 0.03, 200)),
        ((0.91, 0.05, 85), (0.84, 0.07, 78)),
        (horizon.sun, horizon.clouds, horizon.sea, ground.pebbles),
        (ground.tufts, ground.stones),
    ),
    "street": Place(
        ((0.82, 0.06, 250), (0.95, 0.03, 80)),
        ((0.78, 0.015, 80), (0.68, 0.02, 260)),
        (horizon.clouds, horizon.houses, ground.paving),
        (ground.posts,),
        rough=6.0,
    ),
    "room": Place(
        ((0.89, 0.05, 70), (0.85, 0.06, 65)),
        ((0.74, 0.07, 65), (0.66, 0.08, 60)),
        (interior.wallpaper, interior.windows, interior.planks, interior.rug),
        cloudy=3.0,
        rough=4.0,
    ),
    "parlour": Place(
        ((0.84, 0.06, 175), (0.80, 0.07, 180)),
        ((0.70, 0.06, 55), (0.62, 0.07, 50)),
        (interior.wallpaper, interior.windows, interior.planks, interior.rug),
        cloudy=3.0,
        rough=4.0,
    ),
    "snow": Place(
        ((0.80, 0.06, 250), (0.94, 0.02, 250)),
        ((0.97, 0.01, 240), (0.90, 0.03, 250)),
        (horizon.mountains, horizon.pines, ground.drifts),
        (ground.flakes,),
        rough=5.0,
    ),
    "dusk": Place(
        ((0.46, 0.11, 292), (0.82, 0.12, 50)),
        ((0.66, 0.08, 330), (0.55, 0.08, 300)),
        (horizon.stars, horizon.sun, horizon.hills, horizon.pines, ground.pebbles),
        (ground.tufts,),
        ((0.66, 0.12, 330), 0.1),
    ),
    "desert": Place(
        ((0.84, 0.07, 55), (0.94, 0.05, 85)),
        ((0.84, 0.09, 72), (0.76, 0.11, 60)),
        (horizon.sun, horizon.mountains, horizon.hills, horizon.cacti, ground.pebbles),
        (ground.stones,),
        ((0.88, 0.1, 70), 0.05),
    ),
    "autumn": Place(
        ((0.85, 0.05, 220), (0.95, 0.03, 90)),
        ((0.83, 0.10, 88), (0.76, 0.11, 66)),
        (horizon.clouds, horizon.hills, horizon.autumn_trees, ground.leaves),
        (ground.tufts,),
    ),
    "gym": Place(
        ((0.84, 0.05, 190), (0.89, 0.03, 190)),
        ((0.79, 0.09, 75), (0.72, 0.10, 68)),
        (interior.wallbars, interior.court),
        cloudy=3.0,
        rough=4.0,
    ),
}


def varied(dice: Dice, colour: Lch) -> Colour:
    """An OKLCH colour, a little changed, as RGB."""
    lightness, chroma, hue = colour
    return oklch(
        lightness + dice.between(-0.03, 0.03),
        chroma * dice.between(0.8, 1.15),
        hue + dice.between(-14, 14),
    )


def paint_background(place: Place, edge: int, dice: Dice, scale: int) -> Stage:
    """A place without people, on which more can be painted.

    Args:
        place: which kind.
        edge: row of the horizon, where the ground begins, in pixels of the final picture.
        dice: the picture's randomness.
        scale: the picture comes out this many times larger than `SIZE`.
    """
    above = [varied(dice, colour) for colour in place.above]
    below = [varied(dice, colour) for colour in place.below]
    rows = np.empty((SIZE, 3), dtype=np.float32)
    for ends, part in ((above, rows[:edge]), (below, rows[edge:])):
        first, last = np.array(ends, dtype=np.float32)
        part[:] = first + (last - first) * np.linspace(0, 1, len(part), dtype=np.float32)[:, None]
    texture = smooth_noise(dice, 6) * place.cloudy
    texture[edge:] = smooth_noise(dice, 24)[edge:] * place.rough
    values = np.clip(rows[:, None] + texture[:, :, None], 0, 255).astype(np.uint8)
    # Nearest neighbours: averaging down later gives exactly these pixels back.
    size = (SIZE * scale, SIZE * scale)
    canvas = Image.fromarray(values).resize(size, Image.Resampling.NEAREST)
    stage = Stage(
        canvas=canvas,
        solid=ImageDraw.Draw(canvas),
        translucent=ImageDraw.Draw(canvas, "RGBA"),
        horizon=edge,
        dice=dice,
        scale=scale,
        sky=above[1],
        ground=below[0],
        front=below[1],
    )
    for feature in place.scenery:
        feature(stage)
    return stage


def smooth_noise(dice: Dice, cells: int) -> np.ndarray:
    """(SIZE, SIZE) float32 smooth noise, mostly between -1 and 1, from a grid of cells."""
    grid = dice.generator.random((cells, cells), dtype=np.float32) * 2 - 1
    return np.array(Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
