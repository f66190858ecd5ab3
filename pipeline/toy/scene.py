"""Draws one image of the toy dataset with its annotation: background, groups, grain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipeline.toy import scenery
from pipeline.toy.actions import DECORATION
from pipeline.toy.canvas import IMAGE_SIZE, Box, Canvas, Colour
from pipeline.toy.palette import PALETTES, OklchColour, Palette, oklch_to_rgb
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import (
    PARTS,
    PlacedGroup,
    place_groups,
    sample_scene_spec,
    toy_vocabulary,
)
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
    light, tint = background.light
    palette = Palette(rng.choice(PALETTES), oklch_to_rgb(*light), tint)
    horizon = int(rng.uniform(0.36, 0.56) * IMAGE_SIZE)
    groups = place_groups(sample_scene_spec(seed, part, index, rng), palette, horizon, rng)
    canvas = draw_background(background, horizon, rng, SUPERSAMPLING)
    for group in groups:
        _draw_shadows(canvas, group)
    for group in groups:
        for _, sketch in group.parts:
            sketch.paint(canvas.solid, SUPERSAMPLING, group.position)
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


@dataclass(frozen=True)
class Background:
    """A kind of background; colours are OKLCH.

    Attributes:
        upper: colours of the sky or wall, at the top and at the horizon.
        lower: colours of the ground, at the horizon and in front.
        features: functions that draw scenery behind people and objects, from back to front.
        foreground: functions that draw scenery in front of people and objects.
        light: colour that is mixed into people and objects, and its share.
        upper_texture, lower_texture: contrast of the noise on sky and ground, in grey levels.
    """

    upper: tuple[OklchColour, OklchColour]
    lower: tuple[OklchColour, OklchColour]
    features: tuple[Callable[[Canvas], None], ...]
    foreground: tuple[Callable[[Canvas], None], ...] = ()
    light: tuple[OklchColour, float] = ((1.0, 0.0, 0.0), 0.0)
    upper_texture: float = 6.0
    lower_texture: float = 8.0


BACKGROUNDS = {
    "park": Background(
        ((0.78, 0.09, 235), (0.95, 0.03, 215)),
        ((0.82, 0.11, 128), (0.70, 0.12, 138)),
        (scenery.sun, scenery.clouds, scenery.hills, scenery.trees, scenery.flowers),
        (scenery.tufts,),
    ),
    "beach": Background(
        ((0.76, 0.10, 228), (0.95, 0.03, 200)),
        ((0.91, 0.05, 85), (0.84, 0.07, 78)),
        (scenery.sun, scenery.clouds, scenery.sea, scenery.pebbles),
        (scenery.tufts, scenery.stones),
    ),
    "street": Background(
        ((0.82, 0.06, 250), (0.95, 0.03, 80)),
        ((0.78, 0.015, 80), (0.68, 0.02, 260)),
        (scenery.clouds, scenery.houses, scenery.paving),
        (scenery.posts,),
        lower_texture=6.0,
    ),
    "room": Background(
        ((0.89, 0.05, 70), (0.85, 0.06, 65)),
        ((0.74, 0.07, 65), (0.66, 0.08, 60)),
        (scenery.wallpaper, scenery.windows, scenery.planks, scenery.rug),
        upper_texture=3.0,
        lower_texture=4.0,
    ),
    "parlour": Background(
        ((0.84, 0.06, 175), (0.80, 0.07, 180)),
        ((0.70, 0.06, 55), (0.62, 0.07, 50)),
        (scenery.wallpaper, scenery.windows, scenery.planks, scenery.rug),
        upper_texture=3.0,
        lower_texture=4.0,
    ),
    "snow": Background(
        ((0.80, 0.06, 250), (0.94, 0.02, 250)),
        ((0.97, 0.01, 240), (0.90, 0.03, 250)),
        (scenery.mountains, scenery.pines, scenery.drifts),
        (scenery.flakes,),
        lower_texture=5.0,
    ),
    "dusk": Background(
        ((0.46, 0.11, 292), (0.82, 0.12, 50)),
        ((0.66, 0.08, 330), (0.55, 0.08, 300)),
        (scenery.stars, scenery.sun, scenery.hills, scenery.pines, scenery.pebbles),
        (scenery.tufts,),
        ((0.66, 0.12, 330), 0.1),
    ),
    "desert": Background(
        ((0.84, 0.07, 55), (0.94, 0.05, 85)),
        ((0.84, 0.09, 72), (0.76, 0.11, 60)),
        (scenery.sun, scenery.mountains, scenery.hills, scenery.cacti, scenery.pebbles),
        (scenery.stones,),
        ((0.88, 0.1, 70), 0.05),
    ),
    "autumn": Background(
        ((0.85, 0.05, 220), (0.95, 0.03, 90)),
        ((0.83, 0.10, 88), (0.76, 0.11, 66)),
        (scenery.clouds, scenery.hills, scenery.autumn_trees, scenery.leaves),
        (scenery.tufts,),
    ),
    "gym": Background(
        ((0.84, 0.05, 190), (0.89, 0.03, 190)),
        ((0.79, 0.09, 75), (0.72, 0.10, 68)),
        (scenery.wallbars, scenery.court),
        upper_texture=3.0,
        lower_texture=4.0,
    ),
}


def vary_colour(rng: ScalarRNG, colour: OklchColour) -> Colour:
    """An OKLCH colour with small random changes, as RGB."""
    lightness, chroma, hue = colour
    return oklch_to_rgb(
        lightness + rng.uniform(-0.03, 0.03),
        chroma * rng.uniform(0.8, 1.15),
        hue + rng.uniform(-14, 14),
    )


def draw_background(background: Background, horizon: int, rng: ScalarRNG, scale: int) -> Canvas:
    """A canvas with a background, for people and objects to be drawn on.

    Args:
        background: kind of the background.
        horizon: row where the ground begins, in pixels of the final image.
        rng: random numbers of the image.
        scale: size of the canvas in multiples of `IMAGE_SIZE`.
    """
    above = [vary_colour(rng, colour) for colour in background.upper]
    below = [vary_colour(rng, colour) for colour in background.lower]
    rows = np.empty((IMAGE_SIZE, 3), dtype=np.float32)
    for ends, part in ((above, rows[:horizon]), (below, rows[horizon:])):
        first, last = np.array(ends, dtype=np.float32)
        part[:] = first + (last - first) * np.linspace(0, 1, len(part), dtype=np.float32)[:, None]
    texture = smooth_noise(rng, 6) * background.upper_texture
    texture[horizon:] = smooth_noise(rng, 24)[horizon:] * background.lower_texture
    values = np.clip(rows[:, None] + texture[:, :, None], 0, 255).astype(np.uint8)
    # With nearest-neighbour resampling, the final averaging restores exactly these pixels.
    size = (IMAGE_SIZE * scale, IMAGE_SIZE * scale)
    image = Image.fromarray(values).resize(size, Image.Resampling.NEAREST)
    canvas = Canvas(
        image=image,
        solid=ImageDraw.Draw(image),
        translucent=ImageDraw.Draw(image, "RGBA"),
        horizon=horizon,
        rng=rng,
        scale=scale,
        sky=above[1],
        ground=below[0],
        front=below[1],
    )
    for feature in background.features:
        feature(canvas)
    return canvas


def smooth_noise(rng: ScalarRNG, cells: int) -> np.ndarray:
    """(IMAGE_SIZE, IMAGE_SIZE) float32 noise in [-1, 1], interpolated from a grid of cells."""
    grid = rng.generator.random((cells, cells), dtype=np.float32) * 2 - 1
    return np.array(
        Image.fromarray(grid).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    )
