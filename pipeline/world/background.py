"""Places: sky or wall, ground, and what stands far away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipeline.world.dice import Dice
from pipeline.world.palette import oklch
from pipeline.world.sketch import Colour

SIZE = 128
Lch = tuple[float, float, float]


@dataclass(frozen=True)
class Place:
    """Colours of a kind of place, as OKLCH.

    Attributes:
        above: of the sky or wall at the top and at the horizon.
        below: of the ground at the horizon and in front.
        light: mixed into everything.
        tint: how much of it.
        rough: contrast of the ground's texture.
    """

    name: str
    above: tuple[Lch, Lch]
    below: tuple[Lch, Lch]
    light: Lch = (1.0, 0.0, 0.0)
    tint: float = 0.0
    rough: float = 9.0


PLACES = (
    Place("park", ((0.80, 0.09, 235), (0.94, 0.03, 215)), ((0.80, 0.11, 130), (0.68, 0.12, 138))),
    Place("beach", ((0.78, 0.10, 225), (0.95, 0.03, 200)), ((0.90, 0.05, 85), (0.84, 0.07, 78))),
    Place("street", ((0.84, 0.05, 250), (0.93, 0.03, 80)), ((0.76, 0.01, 260), (0.66, 0.01, 265))),
    Place("room", ((0.90, 0.04, 70), (0.86, 0.05, 65)), ((0.74, 0.07, 65), (0.64, 0.08, 60))),
    Place("snow", ((0.82, 0.05, 250), (0.94, 0.02, 260)), ((0.96, 0.01, 240), (0.90, 0.03, 250)),
          rough=5.0),
    Place("dusk", ((0.50, 0.11, 295), (0.80, 0.12, 45)), ((0.52, 0.07, 300), (0.42, 0.07, 290)),
          (0.65, 0.12, 320), 0.1),
    Place("desert", ((0.85, 0.07, 60), (0.93, 0.05, 80)), ((0.82, 0.09, 70), (0.74, 0.11, 58))),
    Place("gym", ((0.82, 0.05, 190), (0.88, 0.03, 190)), ((0.78, 0.10, 75), (0.70, 0.11, 68)),
          rough=4.0),
)  # fmt: skip


def _rgb(dice: Dice, colour: Lch) -> np.ndarray:
    lightness, chroma, hue = colour
    varied = (
        lightness + dice.between(-0.03, 0.03),
        chroma * dice.between(0.8, 1.15),
        hue + dice.between(-14, 14),
    )
    return np.array(oklch(*varied), dtype=np.float32)


def light_of(place: Place) -> Colour:
    """The colour of the place's light."""
    return oklch(*place.light)


def paint_background(place: Place, horizon: int, dice: Dice, scale: int) -> Image.Image:
    """An RGB picture of an empty place.

    Args:
        horizon: row where the ground begins, in pixels of the final picture.
        scale: the picture comes out this many times larger than `SIZE`.
    """
    rows = np.empty((SIZE, 3), dtype=np.float32)
    for colours, part in ((place.above, rows[:horizon]), (place.below, rows[horizon:])):
        first, last = (_rgb(dice, colour) for colour in colours)
        share = np.linspace(0, 1, len(part), dtype=np.float32)[:, None]
        part[:] = first + (last - first) * share
    cloudy = _noise(dice, 5) * 7
    rough = _noise(dice, 14) * place.rough + _noise(dice, 48) * place.rough * 0.5
    texture = np.where(np.arange(SIZE)[:, None] < horizon, cloudy, rough)
    values = np.clip(rows[:, None] + texture[:, :, None], 0, 255).astype(np.uint8)
    return Image.fromarray(values).resize((SIZE * scale, SIZE * scale), Image.Resampling.BILINEAR)


def _noise(dice: Dice, cells: int) -> np.ndarray:
    """(SIZE, SIZE) float32 smooth noise, mostly between -1 and 1."""
    grid = dice.generator.random((cells, cells), dtype=np.float32) * 2 - 1
    image = Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def paint_far(canvas: ImageDraw.ImageDraw, place: Place, horizon: int, dice: Dice, scale: int):
    """Draws what stands at the horizon of a place."""
