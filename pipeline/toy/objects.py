"""The eight kinds of objects of toy images: their drawings, sizes and anchor points.

Every kind is drawn in a unit of its own and scaled to units of the body height. Objects face right;
the origin is the middle of the base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from pipeline.toy.canvas import Box, Colour, Sketch, arc
from pipeline.toy.palette import CARDBOARD, COATS, WOODS, Palette, blend
from pipeline.toy.rng import ScalarRNG

WHITE: Colour = (250, 248, 242)
INK: Colour = (52, 48, 58)


@dataclass(frozen=True)
class ToyObject:
    """A drawn object; lengths are in units of the body height.

    Attributes:
        name: the kind of object.
        sketch: the drawing.
        seat: point where a person sits.
        grip: point where a hand holds the object.
        handle: point where two hands push the object, at its left side.
        tie: point where a rope is tied, at its right side.
    """

    name: str
    sketch: Sketch
    seat: complex = 0j
    grip: complex = 0j
    handle: complex = 0j
    tie: complex = 0j

    @property
    def box(self) -> Box:
        return self.sketch.bounds()


def make_object(
    name: str, palette: Palette, rng: ScalarRNG, smallest: float, size_factor: float = 1.0
) -> ToyObject:
    """Draws an object of random size and colours.

    Args:
        name: the kind of object.
        palette: colours of the image.
        rng: random numbers of the image.
        smallest: minimum length of the longer side, in units of the body height.
        size_factor: factor on the usual size.
    """
    draw, size, anchors = OBJECT_KINDS[name]
    drawn = draw(palette, rng)
    left, top, right, bottom = drawn.bounds()
    scale = max(size_factor * rng.uniform(*size), smallest / max(right - left, bottom - top))
    scaled = {anchor: point * scale for anchor, point in anchors.items()}
    return ToyObject(name, drawn.transformed(0, scale), **scaled)


def _horse(palette: Palette, rng: ScalarRNG) -> Sketch:
    coat = palette.natural(rng, COATS)
    dark, far = blend(coat, INK, 0.65), blend(coat, INK, 0.25)
    horse = Sketch()
    for start, end in ((-0.2, -0.18), (0.26, 0.3)):
        horse.line(start - 0.4j, end - 0.04j, 0.055, far, 0.6).disc(end - 0.035j, 0.035, dark)
    horse.new_layer().line(-0.36 - 0.56j, -0.47 - 0.2j, 0.045, dark, 0.7)
    horse.new_layer()
    for start, end in ((-0.28, -0.32), (0.2, 0.2)):
        horse.line(start - 0.42j, end - 0.04j, 0.062, coat, 0.6).disc(end - 0.035j, 0.037, dark)
    horse.line(-0.2 - 0.52j, 0.18 - 0.52j, 0.165, coat, 0.95)
    horse.line(0.22 - 0.55j, 0.44 - 0.84j, 0.115, coat, 0.62)
    horse.line(0.43 - 0.88j, 0.6 - 0.77j, 0.075, coat, 0.72)
    horse.polygon([0.36 - 0.92j, 0.385 - 1.03j, 0.44 - 0.93j], coat)
    horse.new_layer().path([0.1 - 0.68j, 0.25 - 0.82j, 0.36 - 0.95j], 0.04, dark)
    cloth = palette.accent(rng)
    horse.new_layer(outlined=False).polygon(
        [-0.16 - 0.69j, 0.1 - 0.69j, 0.11 - 0.5j, -0.17 - 0.5j], cloth, 0.01
    )
    horse.disc(0.49 - 0.88j, 0.024, INK)
    return horse


def _dog(palette: Palette, rng: ScalarRNG) -> Sketch:
    coat = palette.natural(rng, COATS)
    dark = blend(coat, INK, 0.55)
    dog = Sketch()
    dog.line(-0.42 - 0.5j, -0.62 - 0.82j, 0.07, coat, 0.7)
    for start, end in ((-0.36, -0.4), (-0.2, -0.18), (0.2, 0.18), (0.34, 0.38)):
        dog.line(start - 0.35j, end - 0.06j, 0.08, coat, 0.8)
    dog.line(-0.3 - 0.45j, 0.26 - 0.48j, 0.17, coat)
    dog.line(0.3 - 0.5j, 0.42 - 0.74j, 0.14, coat)
    dog.disc(0.42 - 0.78j, 0.21, coat).line(0.5 - 0.72j, 0.7 - 0.68j, 0.11, coat, 0.8)
    dog.new_layer().line(0.32 - 0.88j, 0.26 - 0.64j, 0.08, dark, 1.1)
    dog.new_layer(outlined=False).line(0.28 - 0.55j, 0.46 - 0.5j, 0.05, palette.accent(rng))
    dog.disc(0.77 - 0.72j, 0.055, INK).disc(0.52 - 0.84j, 0.035, INK)
    return dog


def _bike(palette: Palette, rng: ScalarRNG) -> Sketch:
    frame, spoke = palette.accent(rng), (196, 196, 204)
    back, front, pedal = -0.31 - 0.235j, 0.31 - 0.235j, -0.03 - 0.24j
    bike = Sketch()
    for hub in (back, front):
        bike.ring(hub, 0.235, 0.05, INK)
        bike.line(hub - 0.17, hub + 0.17, 0.01, spoke).line(hub - 0.17j, hub + 0.17j, 0.01, spoke)
    bike.new_layer().path([back, pedal, 0.2 - 0.52j, -0.13 - 0.52j, back], 0.028, frame)
    bike.line(pedal, -0.15 - 0.56j, 0.028, frame).path([front, 0.19 - 0.58j], 0.028, frame)
    bike.new_layer().line(-0.24 - 0.59j, -0.07 - 0.59j, 0.04, INK)
    bike.path([0.18 - 0.6j, 0.17 - 0.66j, 0.27 - 0.67j], 0.026, INK).disc(pedal, 0.05, INK)
    return bike


def _ball(palette: Palette, rng: ScalarRNG) -> Sketch:
    first, second = palette.accents(rng, 2)
    ball = Sketch().disc(-0.5j, 0.5, WHITE)
    turn, style = rng.uniform(0, 120), rng.randrange(3)
    if style == 2:
        ball.disc(-0.5j, 0.5, first)
        band = arc(-0.5j, 0.5, 0.5, turn - 22, turn + 22, 4)
        ball.polygon([*band, *arc(-0.5j, 0.5, 0.5, turn + 158, turn + 202, 4)], second)
        return ball
    for number in range(3):
        start = turn + 120 * number
        wedge = [-0.5j, *arc(-0.5j, 0.5, 0.5, start, start + 60, 6)]
        ball.polygon(wedge, second if number == 1 and style else first)
    return ball.disc(-0.5j, 0.1, WHITE)


def _box(palette: Palette, rng: ScalarRNG) -> Sketch:
    paper = palette.shade(rng, CARDBOARD) if rng.bernoulli(0.45) else palette.accent(rng)
    band = blend(paper, WHITE, 0.55) if rng.bernoulli(0.5) else palette.accent(rng)
    half, height = 0.5, rng.uniform(0.86, 1.0)
    top = -height * 1j

    def slab(left: float, upper: float, right: float, lower: float, colour: Colour) -> Sketch:
        corners = (left + upper * 1j, right + upper * 1j, right + lower * 1j, left + lower * 1j)
        return box.polygon(corners, colour)

    box = Sketch()
    slab(-half, top.imag, half, 0, paper)
    slab(-half, -0.22, half, 0, blend(paper, INK, 0.12))
    slab(-0.09, top.imag, 0.09, 0, band)
    slab(-half, top.imag, half, 0.24 - height, blend(paper, WHITE, 0.28))
    slab(-0.09, top.imag, 0.09, 0.24 - height, blend(band, WHITE, 0.2))
    slab(-half, 0.24 - height, half, 0.29 - height, blend(paper, INK, 0.4))
    return box


def _umbrella(palette: Palette, rng: ScalarRNG) -> Sketch:
    first, second = palette.accents(rng, 2)
    wood = palette.natural(rng, WOODS)
    umbrella = Sketch().line(-0.9j, -0.06j, 0.026, wood)
    umbrella.path([-0.07j, 0.03 - 0.03j, 0.09 - 0.03j, 0.11 - 0.1j], 0.026, wood)
    umbrella.new_layer().line(-1j, -0.9j, 0.022, wood)
    rim, crown = -0.5j, -0.96j
    edges = (-0.5, -0.28, 0.0, 0.28, 0.5)
    umbrella.polygon(arc(rim, 0.5, 0.46, 180, 360, 14), first)
    for index, (left, right) in enumerate(pairwise(edges)):
        colour = (first, second)[index % 2]
        middle = (left + right) / 2
        umbrella.polygon(
            [
                crown,
                crown + complex(left * 0.62, 0.13 if abs(left) > 0.4 else 0.06),
                rim + left,
                rim + middle - 0.05j,
                rim + right,
                crown + complex(right * 0.62, 0.13 if abs(right) > 0.4 else 0.06),
            ],
            colour,
        )
    return umbrella


def _skateboard(palette: Palette, rng: ScalarRNG) -> Sketch:
    deck, wheels = palette.accents(rng, 2)
    board = Sketch()
    for x in (-0.26, 0.26):
        board.disc(x - 0.095j, 0.095, wheels).disc(x - 0.095j, 0.035, WHITE)
    board.new_layer().path([-0.47 - 0.33j, -0.34 - 0.23j, 0.34 - 0.23j, 0.47 - 0.33j], 0.06, deck)
    board.new_layer(outlined=False).line(-0.3 - 0.25j, 0.3 - 0.25j, 0.018, blend(deck, WHITE, 0.5))
    return board


def _chair(palette: Palette, rng: ScalarRNG) -> Sketch:
    wood = palette.natural(rng, WOODS) if rng.bernoulli(0.5) else palette.accent(rng)
    far, cushion = blend(wood, INK, 0.3), palette.accent(rng)
    chair = Sketch()
    chair.line(-0.2 - 0.42j, -0.18 - 0.03j, 0.035, far).line(0.2 - 0.42j, 0.18 - 0.03j, 0.035, far)
    chair.new_layer().line(-0.26 - 0.45j, -0.3 - 0.035j, 0.04, wood)
    chair.line(0.27 - 0.45j, 0.3 - 0.035j, 0.04, wood)
    chair.path([-0.26 - 0.45j, -0.32 - 0.96j], 0.045, wood)
    chair.line(-0.26 - 0.45j, 0.28 - 0.45j, 0.05, wood)
    chair.new_layer().polygon(
        [-0.25 - 0.6j, -0.29 - 0.92j, -0.2 - 0.92j, -0.17 - 0.6j], cushion, 0.02
    )
    chair.line(-0.18 - 0.51j, 0.26 - 0.51j, 0.04, cushion)
    return chair


Draw = Callable[[Palette, ScalarRNG], Sketch]
# Drawing, range of the unit's length in units of the body height, and anchor points in the object's
# own unit, see `ToyObject`.
OBJECT_KINDS: dict[str, tuple[Draw, tuple[float, float], dict[str, complex]]] = {
    "horse": (
        _horse,
        (0.92, 1.08),
        {"seat": -0.03 - 0.7j, "handle": -0.4 - 0.6j, "tie": 0.38 - 0.72j},
    ),
    "dog": (_dog, (0.42, 0.5), {"grip": -0.32j, "tie": 0.46 - 0.52j}),
    "bike": (
        _bike,
        (0.86, 0.98),
        {"seat": -0.15 - 0.63j, "handle": -0.24 - 0.59j, "tie": 0.2 - 0.6j},
    ),
    "ball": (_ball, (0.34, 0.42), {"grip": -0.1j}),
    "box": (
        _box,
        (0.38, 0.46),
        {"seat": -0.9j, "grip": -0.06j, "handle": -0.5 - 0.75j, "tie": 0.5 - 0.45j},
    ),
    "umbrella": (_umbrella, (0.52, 0.62), {"grip": -0.14j}),
    "skateboard": (_skateboard, (0.58, 0.68), {"seat": -0.29j, "grip": -0.2j}),
    "chair": (_chair, (0.6, 0.68), {"seat": -0.56j, "handle": -0.34 - 0.85j}),
}
