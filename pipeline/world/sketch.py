"""Drawings made of a few kinds of shapes, which can be moved, measured and painted.

Points are complex numbers: real part to the right, imaginary part downwards.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
OUTLINE = 0.55


@dataclass(frozen=True)
class Shape:
    """The area within some distance of a polygon, a path or a point.

    Attributes:
        points: one point (a disc), two (a limb) or more (a filled polygon).
        radii: distance around the first and the last point; equal ones but for limbs.
        colour: fill.
        hollow: a disc that is only a ring of this width, 0 where filled.
    """

    points: tuple[complex, ...]
    radii: tuple[float, float]
    colour: Colour
    hollow: float = 0.0


class Sketch:
    """Layers of shapes; every layer has one dark outline around all its shapes together."""

    def __init__(self) -> None:
        self.layers: list[list[Shape]] = [[]]

    def layer(self) -> Sketch:
        """Starts a new layer above the others."""
        self.layers.append([])
        return self

    def disc(self, centre: complex, radius: float, colour: Colour) -> Sketch:
        return self._add(Shape((centre,), (radius, radius), colour))

    def ring(self, centre: complex, radius: float, width: float, colour: Colour) -> Sketch:
        """A ring whose outer edge has this radius."""
        return self._add(Shape((centre,), (radius, radius), colour, width))

    def limb(
        self, start: complex, end: complex, radius: float, colour: Colour, taper: float = 1.0
    ) -> Sketch:
        """A line with round ends; its end's radius is `taper` times the start's."""
        return self._add(Shape((start, end), (radius, radius * taper), colour))

    def path(self, points: Sequence[complex], radius: float, colour: Colour) -> Sketch:
        """Limbs from point to point."""
        for start, end in zip(points[:-1], points[1:], strict=True):
            self.limb(start, end, radius, colour)
        return self

    def polygon(self, points: Iterable[complex], colour: Colour, radius: float = 0.0) -> Sketch:
        """A filled polygon; a radius rounds and widens it."""
        return self._add(Shape(tuple(points), (radius, radius), colour))

    def ellipse(self, centre: complex, across: float, down: float, colour: Colour) -> Sketch:
        """An upright ellipse with these half axes."""
        return self.polygon(arc(centre, across, down, 0, 360), colour)

    def add(self, other: Sketch) -> Sketch:
        """Puts another sketch's layers on top."""
        self.layers += other.layers
        return self

    def moved(
        self, origin: complex = 0, scale: float = 1.0, turn: float = 0.0, mirrored: bool = False
    ) -> Sketch:
        """A copy, first mirrored left to right, then turned (degrees, clockwise), scaled, shifted.

        Args:
            origin: where the sketch's own origin comes to lie.
        """
        factor = scale * cmath.exp(1j * math.radians(turn))
        copy = Sketch()
        copy.layers = [
            [
                Shape(
                    tuple(
                        origin + factor * (-point.conjugate() if mirrored else point)
                        for point in shape.points
                    ),
                    (shape.radii[0] * scale, shape.radii[1] * scale),
                    shape.colour,
                    shape.hollow * scale,
                )
                for shape in layer
            ]
            for layer in self.layers
        ]
        return copy

    def bounds(self, margin: float = 0.0) -> Box:
        """Tight box (left, top, right, bottom) around all shapes, outlines not counted."""
        left = top = math.inf
        right = bottom = -math.inf
        for layer in self.layers:
            for shape in layer:
                last = len(shape.points) - 1
                for index, point in enumerate(shape.points):
                    radius = shape.radii[1] if last and index == last else shape.radii[0]
                    left, right = min(left, point.real - radius), max(right, point.real + radius)
                    top, bottom = min(top, point.imag - radius), max(bottom, point.imag + radius)
        return left - margin, top - margin, right + margin, bottom + margin

    def paint(self, canvas: ImageDraw.ImageDraw, scale: float) -> None:
        """Draws the sketch, whose points are in picture pixels, on a `scale` times larger canvas."""
        for layer in self.layers:
            for shape in layer:
                _paint(canvas, shape, scale, OUTLINE, _dark(shape.colour))
            for shape in layer:
                _paint(canvas, shape, scale, 0.0, shape.colour)

    def _add(self, shape: Shape) -> Sketch:
        self.layers[-1].append(shape)
        return self


def arc(
    centre: complex, across: float, down: float, start: float, end: float, steps: int = 16
) -> list[complex]:
    """Points of an ellipse's arc from `start` to `end` degrees, clockwise from the right."""
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [centre + complex(across * math.cos(angle), down * math.sin(angle)) for angle in angles]


def bounds_of(boxes: Iterable[Box]) -> Box:
    """The smallest box around all boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _dark(colour: Colour) -> Colour:
    red, green, blue = colour
    return int(red * 0.45), int(green * 0.42), int(blue * 0.48)


def _paint(
    canvas: ImageDraw.ImageDraw, shape: Shape, scale: float, grow: float, colour: Colour
) -> None:
    radii = [(radius + grow) * scale for radius in shape.radii]
    points = [(point.real * scale, point.imag * scale) for point in shape.points]
    if shape.hollow:
        _disc(canvas, points[0], radii[0], None, colour, (shape.hollow + 2 * grow) * scale)
    elif len(points) == 1:
        _disc(canvas, points[0], radii[0], colour)
    elif len(points) == 2:
        _limb(canvas, points[0], points[1], radii[0], radii[1], colour)
    else:
        canvas.polygon(points, fill=colour)
        if radii[0] > 0:
            for start, end in zip(points, [*points[1:], points[0]], strict=True):
                _limb(canvas, start, end, radii[0], radii[0], colour)


def _disc(
    canvas: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radius: float,
    fill: Colour | None,
    outline: Colour | None = None,
    width: float = 0.0,
) -> None:
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    canvas.ellipse(box, fill=fill, outline=outline, width=round(width))


def _limb(
    canvas: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    first: float,
    last: float,
    colour: Colour,
) -> None:
    across, down = end[0] - start[0], end[1] - start[1]
    length = math.hypot(across, down)
    if length > 0:
        x, y = -down / length, across / length
        canvas.polygon(
            [
                (start[0] + x * first, start[1] + y * first),
                (end[0] + x * last, end[1] + y * last),
                (end[0] - x * last, end[1] - y * last),
                (start[0] - x * first, start[1] - y * first),
            ],
            fill=colour,
        )
    for centre, radius in ((start, first), (end, last)):
        if radius > 1:
            _disc(canvas, centre, radius, colour)
