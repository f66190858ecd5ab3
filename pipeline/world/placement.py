"""Where people and things stand in a picture, so that it shows what it says and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.world.actions import GROWTH, act
from pipeline.world.dice import Dice
from pipeline.world.figure import random_look
from pipeline.world.objects import Thing, make_thing
from pipeline.world.palette import Palette
from pipeline.world.sketch import OUTLINE, SIZE, Box, Sketch, bounds_of
from pipeline.world.wishes import Wish, world_vocabulary

# Body heights by number of people, and the least length of a thing's longer side, in pixels.
HEIGHTS = ((46, 68), (38, 58), (34, 48))
LEAST_HEIGHT, LEAST_LENGTH = 32.0, 13.0
EDGE = 1.5
NUM_LOOSE = (0.35, 0.4, 0.25)
DESIGNS, SPOTS = 4, 10
MAX_COVERED, MAX_NEAR, PERSONAL_SPACE = 0.12, 0.03, 4.0

Parts = list[tuple[int, Sketch]]


@dataclass(frozen=True)
class Standing:
    """A group, or a loose thing, with its place in the picture.

    Attributes:
        parts: from back to front, whose (0 the person, 1, 2 the things, -1 nobody's) and what, in
            pixels from the spot.
        spot: where in the picture the group's origin is; its row is that of the ground there.
        boxes: by owner, the tight box of all its parts.
        wish: what it shows, None for a loose thing.
    """

    parts: Parts
    spot: complex
    boxes: dict[int, Box]
    wish: Wish | None

    @property
    def union(self) -> Box:
        """The box around all of it."""
        return bounds_of(self.boxes.values())


def place_all(wishes: list[Wish], palette: Palette, horizon: int, dice: Dice) -> list[Standing]:
    """Groups for all wishes and some loose things, from back to front.

    What finds no room is left out; the first always finds some.
    """
    low, high = HEIGHTS[len(wishes) - 1]
    placed: list[Standing] = []
    loose = [None] * dice.weighted(NUM_LOOSE)
    for wish in [*wishes, *loose]:
        found = _find_room(wish, dice.between(low, high), palette, horizon, placed, dice)
        if found is not None:
            placed.append(found)
    return sorted(placed, key=lambda group: group.spot.imag)


def _find_room(
    wish: Wish | None,
    height: float,
    palette: Palette,
    horizon: int,
    placed: list[Standing],
    dice: Dice,
) -> Standing | None:
    """Tries some designs in some spots, ever smaller."""
    for _ in range(DESIGNS):
        mirrored = dice.chance(0.5)
        parts = [
            (owner, sketch.moved(0, height, mirrored=mirrored))
            for owner, sketch in _design(wish, height, palette, dice)
        ]
        boxes = _boxes(parts)
        left, top, right, bottom = bounds_of(boxes.values())
        highest = max(horizon + 0.1 * SIZE, EDGE - top)
        lowest = SIZE - EDGE - max(bottom, 0)
        if right - left > SIZE - 2 * EDGE or highest > lowest:
            height *= 0.85
            continue
        for _ in range(SPOTS):
            spot = complex(
                dice.between(EDGE - left, SIZE - EDGE - right), dice.between(highest, lowest)
            )
            shifted = {owner: _shifted(box, spot) for owner, box in boxes.items()}
            if not _disturbs(shifted, placed):
                return Standing(parts, spot, shifted, wish)
        height = max(height * 0.88, LEAST_HEIGHT)
    return None


def _design(wish: Wish | None, height: float, palette: Palette, dice: Dice) -> Parts:
    """The parts of a wish's group (or of a loose thing), in body heights."""
    vocabulary = world_vocabulary()
    smallest = LEAST_LENGTH / height
    if wish is None:
        name = vocabulary.objects[1 + dice.below(vocabulary.num_objects - 1)]
        thing = make_thing(name, palette, dice, smallest)
        return [(1, thing.sketch.moved(mirrored=dice.chance(0.5)))]
    verb, label = vocabulary.interactions[wish.interaction]
    kind = (vocabulary.verbs[verb], vocabulary.objects[label])
    thing = make_thing(kind[1], palette, dice, smallest, GROWTH.get(kind, 1.0))
    in_hand: Thing | None = None
    if wish.in_hand is not None:
        name = vocabulary.objects[vocabulary.interactions[wish.in_hand][1]]
        in_hand = make_thing(name, palette, dice, smallest, 0.9)
    return act(kind[0], thing, random_look(palette, dice), dice, in_hand)


def _boxes(parts: Parts) -> dict[int, Box]:
    """The tight box of every owner, outlines included."""
    boxes: dict[int, list[Box]] = {}
    for owner, sketch in parts:
        boxes.setdefault(owner, []).append(sketch.bounds(OUTLINE))
    return {owner: bounds_of(its) for owner, its in boxes.items()}


def _shifted(box: Box, by: complex) -> Box:
    left, top, right, bottom = box
    return left + by.real, top + by.imag, right + by.real, bottom + by.imag


def _disturbs(boxes: dict[int, Box], placed: list[Standing]) -> bool:
    """Whether a new group hides others, is hidden by them, or somebody seems to act on another's
    thing."""
    union = bounds_of(boxes.values())
    for other in placed:
        if any(covered(box, union) > MAX_COVERED for box in other.boxes.values()):
            return True
        if any(covered(box, other.union) > MAX_COVERED for box in boxes.values()):
            return True
        if other.wish is not None and _crowded(other.boxes[0], boxes):
            return True
        if 0 in boxes and _crowded(boxes[0], other.boxes):
            return True
    return False


def _crowded(person: Box, boxes: dict[int, Box]) -> bool:
    return any(covered(box, person, PERSONAL_SPACE) > MAX_NEAR for box in boxes.values())


def covered(box: Box, other: Box, margin: float = 0.0) -> float:
    """The share of a box that lies in another one widened by a margin."""
    across = min(box[2], other[2] + margin) - max(box[0], other[0] - margin)
    down = min(box[3], other[3] + margin) - max(box[1], other[1] - margin)
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / ((box[2] - box[0]) * (box[3] - box[1]))
