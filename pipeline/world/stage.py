"""A place being painted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pipeline.world.dice import Dice
from pipeline.world.sketch import SIZE, Colour, Sketch

WHITE: Colour = (255, 255, 255)
SHADOW: Colour = (24, 18, 52)


@dataclass(frozen=True)
class Stage:
    """A place being painted.

    Attributes:
        canvas: the enlarged picture.
        solid, translucent: draw on it.
        horizon: row where the ground begins, in pixels of the final picture.
        dice: the picture's randomness.
        scale: how much the picture is enlarged.
        sky: colour of sky or wall at the horizon.
        ground: colour of the ground at the horizon.
        front: colour of the ground in front.
    """

    canvas: Image.Image
    solid: ImageDraw.ImageDraw
    translucent: ImageDraw.ImageDraw
    horizon: int
    dice: Dice
    scale: int
    sky: Colour
    ground: Colour
    front: Colour

    def paint(self, sketch: Sketch) -> None:
        """Draws a sketch in picture pixels, without outlines."""
        sketch.paint(self.solid, self.scale, outline=0.0)

    def veil(self, box: tuple[float, float, float, float], colour: Colour, alpha: int) -> None:
        """Draws a translucent ellipse."""
        self.translucent.ellipse([number * self.scale for number in box], fill=(*colour, alpha))

    def shadow(self, middle: complex, across: float, down: float) -> None:
        """Darkens the ground softly around a point."""
        for grow, alpha in ((1.15, 26), (0.85, 34)):
            half = complex(across, down) * grow
            low, high = middle - half, middle + half
            self.veil((low.real, low.imag, high.real, high.imag), SHADOW, alpha)

    def on_ground(self) -> complex:
        """A random point of the ground, rather in front."""
        depth = math.sqrt(self.dice.uniform())
        row = self.horizon + 4 + (SIZE - 6 - self.horizon) * depth
        return complex(self.dice.between(0, SIZE), row)

    def nearness(self, point: complex) -> float:
        """0 at the horizon, 1 at the picture's lower edge."""
        return (point.imag - self.horizon) / (SIZE - self.horizon)
