"""Vector drawings that can be transformed, measured and painted, and the canvas of an image.

Points are complex numbers: the real part points right, the imaginary part down. Rotation and
scaling are multiplications by complex numbers.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageDraw

from pipeline.toy.rng import ScalarRNG

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
IMAGE_SIZE = 128
OUTLINE_WIDTH = 0.55


class Shape(NamedTuple):
    """A disc, a line with round ends, or a filled polygon.

    Attributes:
        points: one point (a disc), two (a line) or more (a polygon).
        radii: radius around the first and the last point, which differ for tapered lines only.
        colour: fill colour.
        ring_width: width of a disc that is only a ring; 0 for a filled one.
    """

    points: tuple[complex, ...]
    radii: tuple[float, float]
    colour: Colour
    ring_width: float = 0.0


class Layer(NamedTuple):
    """Shapes with or without one dark outline around their union."""

    shapes: list[Shape]
    outlined: bool = True


class Sketch:
    """Layers of shapes."""

    def __init__(self) -> None:
        self.layers = [Layer([])]

    def new_layer(self, outlined: bool = True) -> Sketch:
        """Starts a new layer above the others."""
        self.layers.append(Layer([], outlined))
        return self

    def disc(self, centre: complex, radius: float, colour: Colour) -> Sketch:
        return self._add((centre,), (radius, radius), colour)

    def ring(self, centre: complex, radius: float, width: float, colour: Colour) -> Sketch:
        """A ring whose outer edge has this radius."""
        return self._add((centre,), (radius, radius), colour, width)

    def line(
        self, start: complex, end: complex, radius: float, colour: Colour, taper: float = 1.0
    ) -> Sketch:
        """A line with round ends, whose radius changes by the factor `taper`."""
        return self._add((start, end), (radius, radius * taper), colour)

    def path(self, points: Sequence[complex], radius: float, colour: Colour) -> Sketch:
        """Lines from point to point."""
        for start, end in pairwise(points):
            self.line(start, end, radius, colour)
        return self

    def polygon(self, points: Iterable[complex], colour: Colour, radius: float = 0.0) -> Sketch:
        """A filled polygon, widened by a radius with round corners."""
        return self._add(tuple(points), (radius, radius), colour)

    def add(self, other: Sketch) -> Sketch:
        """Puts another sketch's layers on top."""
        self.layers += other.layers
        return self

    def transformed(
        self, origin: complex = 0, scale: float = 1.0, turn: float = 0.0, mirrored: bool = False
    ) -> Sketch:
        """A copy that is mirrored, turned clockwise by degrees, scaled and shifted, in order."""
        factor = scale * (cmath.exp(1j * math.radians(turn)) if turn else 1.0)

        def transform(points: tuple[complex, ...]) -> tuple[complex, ...]:
            if mirrored:
                return tuple([origin - factor * point.conjugate() for point in points])
            return tuple([origin + factor * point for point in points])

        copy = Sketch()
        copy.layers = [
            Layer(
                [
                    Shape(transform(points), (first * scale, last * scale), colour, ring * scale)
                    for points, (first, last), colour, ring in layer.shapes
                ],
                layer.outlined,
            )
            for layer in self.layers
        ]
        return copy

    def bounds(self, margin: float = 0.0) -> Box:
        """Tight box around all shapes without outlines, widened by a margin."""
        left, top, right, bottom = enclosing_box(
            _circle_box(point, shape.radii[index > 0])
            for layer in self.layers
            for shape in layer.shapes
            for index, point in enumerate(shape.points)
        )
        return left - margin, top - margin, right + margin, bottom + margin

    def paint(
        self,
        draw: ImageDraw.ImageDraw,
        scale: float,
        origin: complex = 0,
        outline: float = OUTLINE_WIDTH,
    ) -> None:
        """Draws the sketch, whose coordinates are image pixels, on a canvas enlarged by `scale`.

        The outline around every layer has the width `outline`, in image pixels.
        """
        for layer in self.layers:
            if outline and layer.outlined:
                for shape in layer.shapes:
                    _draw_shape(draw, shape, scale, origin, outline, _darken(shape.colour))
            for shape in layer.shapes:
                _draw_shape(draw, shape, scale, origin, 0.0, shape.colour)

    def _add(
        self,
        points: tuple[complex, ...],
        radii: tuple[float, float],
        colour: Colour,
        ring_width: float = 0.0,
    ) -> Sketch:
        self.layers[-1].shapes.append(Shape(points, radii, colour, ring_width))
        return self


def arc(
    centre: complex, across: float, down: float, start: float, end: float, steps: int = 16
) -> list[complex]:
    """Points on an ellipse with these half axes from `start` to `end` degrees, clockwise from the
    right."""
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [centre + complex(across * math.cos(angle), down * math.sin(angle)) for angle in angles]


def enclosing_box(boxes: Iterable[Box]) -> Box:
    """The smallest box around all boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _darken(colour: Colour) -> Colour:
    red, green, blue = colour
    return int(red * 0.45), int(green * 0.42), int(blue * 0.48)


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: Shape,
    scale: float,
    origin: complex,
    grow: float,
    colour: Colour,
) -> None:
    points = [(point + origin) * scale for point in shape.points]
    first, last = (radius * scale + grow * scale for radius in shape.radii)
    if shape.ring_width:
        width = round((shape.ring_width + 2 * grow) * scale)
        draw.ellipse(_circle_box(points[0], first), outline=colour, width=width)
    elif len(points) == 1:
        draw.ellipse(_circle_box(points[0], first), colour)
    elif len(points) == 2:
        _draw_line(draw, points[0], points[1], first, last, colour)
    else:
        draw.polygon([(point.real, point.imag) for point in points], colour)
        if first > 0:
            for start, end in pairwise([*points, points[0]]):
                _draw_line(draw, start, end, first, first, colour)


def _circle_box(centre: complex, radius: float) -> Box:
    x, y = centre.real, centre.imag
    return x - radius, y - radius, x + radius, y + radius


def _draw_line(
    draw: ImageDraw.ImageDraw,
    start: complex,
    end: complex,
    first: float,
    last: float,
    colour: Colour,
) -> None:
    direction = end - start
    if direction:
        normal = direction * 1j / abs(direction)
        corners = (start + normal * first, end + normal * last, end - normal * last,
                   start - normal * first)  # fmt: skip
        draw.polygon([(corner.real, corner.imag) for corner in corners], colour)
    # Smaller round ends are hardly visible after the final averaging.
    if first > 1.2:
        draw.ellipse(_circle_box(start, first), colour)
    if last > 1.2:
        draw.ellipse(_circle_box(end, last), colour)


WHITE: Colour = (255, 255, 255)
SHADOW_COLOUR: Colour = (24, 18, 52)


class Canvas:
    """The enlarged image that is being drawn. Coordinates are pixels of the final image.

    Args:
        image: the enlarged image.
        scale: size of `image` relative to the final image.
        horizon: row where the ground begins.
        rng: random numbers of the image.
        sky: colour of sky or wall at the horizon.
        ground: colour of the ground at the horizon.
        front: colour of the ground in front.
    """

    def __init__(
        self,
        image: Image.Image,
        scale: int,
        horizon: int,
        rng: ScalarRNG,
        sky: Colour,
        ground: Colour,
        front: Colour,
    ) -> None:
        self.image, self.scale, self.horizon, self.rng = image, scale, horizon, rng
        self.sky, self.ground, self.front = sky, ground, front
        # In this mode, colours may have an opacity.
        self._draw = ImageDraw.Draw(image, "RGBA")

    def paint(self, sketch: Sketch, origin: complex = 0, outline: float = 0.0) -> None:
        """Draws a sketch, by default without outlines."""
        sketch.paint(self._draw, self.scale, origin, outline)

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, colour: Colour
    ) -> None:
        """Draws a rectangle."""
        corners = (complex(left, top), complex(right, top), complex(right, bottom),
                   complex(left, bottom))  # fmt: skip
        self.paint(Sketch().polygon(corners, colour))

    def ellipse(
        self, middle: complex, across: float, down: float, colour: Colour, alpha: int
    ) -> None:
        """Draws an ellipse with these half axes; `alpha` is its opacity from 0 to 255."""
        half = complex(across, down)
        box = (middle - half, middle + half)
        corners = [(point.real * self.scale, point.imag * self.scale) for point in box]
        self._draw.ellipse(corners, fill=(*colour, alpha))

    def draw_shadow(self, middle: complex, across: float, down: float) -> None:
        """Draws a soft elliptical shadow with the given half axes."""
        for factor, alpha in ((1.15, 26), (0.85, 34)):
            self.ellipse(middle, across * factor, down * factor, SHADOW_COLOUR, alpha)

    def random_ground_point(self) -> complex:
        """A random point of the ground, more often in front than near the horizon."""
        depth = math.sqrt(self.rng.random())
        row = self.horizon + 4 + (IMAGE_SIZE - 6 - self.horizon) * depth
        return complex(self.rng.uniform(0, IMAGE_SIZE), row)

    def nearness(self, point: complex) -> float:
        """Nearness of a point to the viewer: 0 at the horizon, 1 at the lower edge of the image."""
        return (point.imag - self.horizon) / (IMAGE_SIZE - self.horizon)
