"""Backgrounds of toy images: sky or wall, ground, and scenery behind and in front of people."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.toy.canvas import IMAGE_SIZE, WHITE, Canvas, Colour, Sketch
from pipeline.toy.palette import OklchColour, blend, oklch_to_rgb
from pipeline.toy.rng import ScalarRNG


def sun(canvas: Canvas) -> None:
    """A low sun or moon with its glow, in half of the images."""
    if canvas.rng.bernoulli(0.5):
        return
    row = canvas.horizon * canvas.rng.uniform(0.15, 0.7)
    middle = complex(canvas.rng.uniform(8, IMAGE_SIZE - 8), row)
    colour = oklch_to_rgb(0.96, 0.07, canvas.rng.uniform(70, 105))
    for radius, alpha in ((17, 28), (12, 45), (8, 90), (6, 255)):
        canvas.ellipse(middle, radius, radius, colour, alpha)


def clouds(canvas: Canvas) -> None:
    """Translucent clouds."""
    for _ in range(canvas.rng.randrange(4)):
        row = canvas.horizon * canvas.rng.uniform(0.08, 0.6)
        middle, width = complex(canvas.rng.uniform(-5, IMAGE_SIZE), row), canvas.rng.uniform(7, 13)
        for shift, size in ((-1.0, 0.55), (-0.35, 0.85), (0.4, 0.7), (1.0, 0.45)):
            canvas.ellipse(middle + shift * width, width * size, width * size * 0.3, WHITE, 105)


def hills(canvas: Canvas) -> None:
    """Two chains of hills, the farther one paler."""
    for paleness, height in ((0.62, 17.0), (0.32, 9.0)):
        colour = blend(blend(canvas.ground, (40, 60, 70), 0.3), canvas.sky, paleness)
        phase, length = canvas.rng.uniform(0, 7), canvas.rng.uniform(14, 30)
        crest = [
            complex(x, canvas.horizon - height * (0.6 + 0.4 * math.sin(x / length + phase)))
            for x in range(0, IMAGE_SIZE + 4, 4)
        ]
        base = [complex(IMAGE_SIZE + 4, canvas.horizon), complex(0, canvas.horizon)]
        canvas.paint(Sketch().polygon([*crest, *base], colour))


def trees(canvas: Canvas) -> None:
    """Round trees and bushes in the ground's hues."""
    for foot in _random_horizon_points(canvas, 7):
        size = canvas.rng.uniform(4, 9)
        leaves = blend(canvas.ground, (36, 96, 62), canvas.rng.uniform(0.15, 0.5))
        crown = foot - 1j * size * canvas.rng.choice((0.6, 1.9))
        tree = Sketch().line(foot, crown, size * 0.14, (110, 84, 66))
        tree.disc(crown, size * 0.8, leaves).disc(crown - size * (0.55 - 0.3j), size * 0.55, leaves)
        tree.disc(crown + size * (0.55 + 0.25j), size * 0.55, leaves)
        light = crown - size * (0.2 + 0.25j)
        canvas.paint(tree.disc(light, size * 0.4, blend(leaves, WHITE, 0.18)))


def pines(canvas: Canvas) -> None:
    """Fir trees of three tiers."""
    for foot in _random_horizon_points(canvas, 9):
        size = canvas.rng.uniform(6, 13)
        needles = blend(oklch_to_rgb(0.48, 0.05, 175), canvas.sky, canvas.rng.uniform(0.15, 0.5))
        tree = Sketch().line(foot, foot - 0.2j * size, size * 0.07, (96, 74, 70))
        for tier, half in ((0.15, 0.36), (0.42, 0.28), (0.68, 0.2)):
            base = foot - 1j * size * tier
            tree.polygon((base - half * size, base - 0.5j * size, base + half * size), needles)
        canvas.paint(tree)


def _random_horizon_points(canvas: Canvas, max_count: int) -> list[complex]:
    count = canvas.rng.randrange(max_count + 1)
    return [complex(canvas.rng.uniform(0, IMAGE_SIZE), canvas.horizon) for _ in range(count)]


def sea(canvas: Canvas) -> None:
    """Water with glints, and foam on the beach."""
    far = canvas.horizon - canvas.rng.uniform(9, 18)
    water = oklch_to_rgb(0.66, 0.09, canvas.rng.uniform(205, 240))
    canvas.rectangle(0, far, IMAGE_SIZE, canvas.horizon, water)
    for _ in range(9):
        row = canvas.rng.uniform(far + 1, canvas.horizon - 2)
        start = complex(canvas.rng.uniform(0, IMAGE_SIZE), row)
        end = start + canvas.rng.uniform(3, 9)
        canvas.paint(Sketch().line(start, end, 0.4, blend(water, WHITE, 0.4)))
    foam = [complex(x, canvas.horizon + math.sin(x / 5) * 0.8) for x in range(0, IMAGE_SIZE + 6, 6)]
    canvas.paint(Sketch().path(foam, 1.0, blend(canvas.ground, WHITE, 0.6)))


def houses(canvas: Canvas) -> None:
    """A row of pastel houses with windows."""
    x = canvas.rng.uniform(-12, 0)
    while x < IMAGE_SIZE:
        width, height = canvas.rng.uniform(14, 26), canvas.rng.uniform(16, canvas.horizon * 0.8)
        wall = blend(oklch_to_rgb(0.8, 0.06, canvas.rng.uniform(0, 360)), canvas.sky, 0.35)
        pane, top = blend(wall, (70, 84, 120), 0.35), canvas.horizon - height
        canvas.rectangle(x, top, x + width, canvas.horizon, wall)
        columns = max(int(width / 6.5), 1)
        for column in range(columns):
            left = x + width * (column + 0.28) / columns
            for row in range(max(int((height - 5) / 8), 1)):
                upper = top + 3.5 + 8 * row
                canvas.rectangle(left, upper, left + width * 0.44 / columns, upper + 4.2, pane)
        x += width + canvas.rng.choice((0.0, 0.0, 5.0))


def windows(canvas: Canvas) -> None:
    """Windows on the wall."""
    x = canvas.rng.uniform(2, 14)
    while x < IMAGE_SIZE - 16:
        width, height = canvas.rng.uniform(12, 24), canvas.rng.uniform(12, canvas.horizon * 0.55)
        top = canvas.rng.uniform(3, max(4.0, canvas.horizon * 0.8 - height))
        inside = oklch_to_rgb(0.88, 0.06, canvas.rng.choice((230, 230, 200, 60, 20)))
        canvas.rectangle(x - 1, top - 1, x + width + 1, top + height + 1, WHITE)
        canvas.rectangle(x, top, x + width, top + height, inside)
        middle = complex(x + width / 2, top)
        canvas.paint(Sketch().line(middle, middle + 1j * height, 0.5, WHITE))
        x += width + canvas.rng.uniform(10, 34)


def seams(canvas: Canvas) -> None:
    """Seams of floorboards or slabs, which become wider towards the viewer."""
    seam = blend(canvas.front, (60, 46, 50), 0.2)
    for number in range(7):
        row = complex(0, canvas.horizon + (IMAGE_SIZE - canvas.horizon) * (number / 7) ** 1.5)
        canvas.paint(Sketch().line(row, row + IMAGE_SIZE, 0.35, seam))


def flowers(canvas: Canvas) -> None:
    """Small tufts of grass and flowers."""
    petal = oklch_to_rgb(0.88, 0.11, canvas.rng.choice((95, 10, 320, 60)))
    for _ in range(10 + canvas.rng.randrange(14)):
        point = canvas.random_ground_point()
        size = 1.2 + 1.6 * canvas.nearness(point)
        canvas.paint(_grass(point, size, blend(canvas.front, (30, 96, 50), 0.3)))
        if canvas.rng.bernoulli(0.35):
            canvas.paint(Sketch().disc(point - 1.2j * size, 0.35 * size, petal))


def pebbles(canvas: Canvas) -> None:
    """Small stones with a light side."""
    for _ in range(5 + canvas.rng.randrange(9)):
        point = canvas.random_ground_point()
        size = 0.6 + 1.1 * canvas.nearness(point)
        stone = blend(canvas.front, (90, 84, 100), canvas.rng.uniform(0.15, 0.4))
        light = point - 0.3j * size
        sketch = Sketch().line(point - size, point + size, size * 0.6, stone)
        canvas.paint(sketch.line(light - size * 0.6, light, size * 0.3, blend(stone, WHITE, 0.3)))


def tufts(canvas: Canvas) -> None:
    """Tall grass in front of people and objects."""
    for _ in range(canvas.rng.randrange(4)):
        point = canvas.random_ground_point()
        size = 3.5 + 4 * canvas.nearness(point)
        canvas.paint(_grass(point, size, blend(canvas.front, (48, 92, 58), 0.42)))


def _grass(point: complex, size: float, colour: Colour) -> Sketch:
    grass = Sketch()
    for tilt in (-0.55, -0.3, -0.1, 0.15, 0.35, 0.6):
        tip = point + size * (tilt - 1j + 0.4j * abs(tilt))
        grass.line(point + size * tilt * 0.4, tip, 0.2 + 0.1 * size, colour, 0.4)
    return grass


def flakes(canvas: Canvas) -> None:
    """Falling snow in front of people and objects."""
    for _ in range(canvas.rng.randrange(36)):
        middle = complex(canvas.rng.uniform(0, IMAGE_SIZE), canvas.rng.uniform(0, IMAGE_SIZE))
        size = canvas.rng.uniform(0.4, 0.8)
        canvas.ellipse(middle, size, size, WHITE, 210)


@dataclass(frozen=True)
class Background:
    """A kind of background; colours are OKLCH.

    Attributes:
        upper: colours of the sky or wall, at the top and at the horizon.
        lower: colours of the ground, at the horizon and in front.
        features: functions that draw scenery behind people and objects, from back to front.
        foreground: functions that draw scenery in front of people and objects.
        texture: contrast of the noise on sky and ground, in grey levels.
    """

    upper: tuple[OklchColour, OklchColour]
    lower: tuple[OklchColour, OklchColour]
    features: tuple[Callable[[Canvas], None], ...]
    foreground: tuple[Callable[[Canvas], None], ...] = ()
    texture: tuple[float, float] = (6.0, 8.0)


BACKGROUNDS = {
    "park": Background(
        ((0.78, 0.09, 235), (0.95, 0.03, 215)),
        ((0.82, 0.11, 128), (0.70, 0.12, 138)),
        (sun, clouds, hills, trees, flowers),
        (tufts,),
    ),
    "beach": Background(
        ((0.76, 0.10, 228), (0.95, 0.03, 200)),
        ((0.91, 0.05, 85), (0.84, 0.07, 78)),
        (sun, clouds, sea, pebbles),
        (tufts,),
    ),
    "street": Background(
        ((0.82, 0.06, 250), (0.95, 0.03, 80)),
        ((0.78, 0.015, 80), (0.68, 0.02, 260)),
        (clouds, houses, seams),
    ),
    "room": Background(
        ((0.84, 0.06, 175), (0.80, 0.07, 180)),
        ((0.74, 0.07, 65), (0.66, 0.08, 60)),
        (windows, seams),
        texture=(3.0, 4.0),
    ),
    "snow": Background(
        ((0.80, 0.06, 250), (0.94, 0.02, 250)),
        ((0.97, 0.01, 240), (0.90, 0.03, 250)),
        (hills, pines),
        (flakes,),
    ),
    "dusk": Background(
        ((0.46, 0.11, 292), (0.82, 0.12, 50)),
        ((0.66, 0.08, 330), (0.55, 0.08, 300)),
        (sun, hills, pines, pebbles),
        (tufts,),
    ),
    "autumn": Background(
        ((0.85, 0.05, 220), (0.95, 0.03, 90)),
        ((0.83, 0.10, 78), (0.76, 0.11, 62)),
        (sun, hills, trees, pebbles),
        (tufts,),
    ),
}


def draw_background(background: Background, horizon: int, rng: ScalarRNG, scale: int) -> Canvas:
    """A canvas with a background, for people and objects to be drawn on.

    Args:
        background: kind of the background.
        horizon: row where the ground begins, in pixels of the final image.
        rng: random numbers of the image.
        scale: size of the canvas in multiples of `IMAGE_SIZE`.
    """
    above = [_vary_colour(rng, colour) for colour in background.upper]
    below = [_vary_colour(rng, colour) for colour in background.lower]
    rows = np.concatenate(
        [
            np.linspace(above[0], above[1], horizon),
            np.linspace(below[0], below[1], IMAGE_SIZE - horizon),
        ]
    )
    texture = smooth_noise(rng, 6) * background.texture[0]
    texture[horizon:] = smooth_noise(rng, 24)[horizon:] * background.texture[1]
    values = np.clip(rows[:, None] + texture[:, :, None], 0, 255).astype(np.uint8)
    # With nearest-neighbour resampling, the final averaging restores exactly these pixels.
    size = (IMAGE_SIZE * scale, IMAGE_SIZE * scale)
    image = Image.fromarray(values).resize(size, Image.Resampling.NEAREST)
    canvas = Canvas(image, scale, horizon, rng, sky=above[1], ground=below[0], front=below[1])
    for feature in background.features:
        feature(canvas)
    return canvas


def _vary_colour(rng: ScalarRNG, colour: OklchColour) -> Colour:
    lightness, chroma, hue = colour
    return oklch_to_rgb(
        lightness + rng.uniform(-0.03, 0.03),
        chroma * rng.uniform(0.8, 1.15),
        hue + rng.uniform(-14, 14),
    )


def smooth_noise(rng: ScalarRNG, cells: int) -> np.ndarray:
    """(IMAGE_SIZE, IMAGE_SIZE) float32 noise in [-1, 1], interpolated from a grid of cells."""
    grid = rng.generator.random((cells, cells), dtype=np.float32) * 2 - 1
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return np.array(Image.fromarray(grid).resize(size, Image.Resampling.BILINEAR))
