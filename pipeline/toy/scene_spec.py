"""Who does what in a picture: interactions as common or rare as in HICO-DET."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.toy.actions import GROWTH, act
from pipeline.toy.canvas import OUTLINE, SIZE, Box, Sketch, bounds_of
from pipeline.toy.objects import Thing, make_thing
from pipeline.toy.palette import Palette
from pipeline.toy.people import random_look
from pipeline.toy.rng import Dice
from pipeline.vocabulary import Vocabulary, load_vocabulary

PARTS = ("train", "test", "models")
# A given rare interaction is shown by one picture in so many; "models" knows no rare ones.
RARE_PERIOD = {"train": 500, "test": 100}
NUM_PEOPLE = (0.24, 0.46, 0.30)
IDLE_WEIGHT = 1.5
ALSO_HOLDS = 0.27
FREE_HANDED = ("ride", "sit_on")


@dataclass(frozen=True)
class Wish:
    """What somebody shall do: an interaction, and perhaps one with a second thing in the hand."""

    interaction: int
    in_hand: int | None = None


@cache
def world_vocabulary() -> Vocabulary:
    """The vocabulary `world`."""
    return load_vocabulary("world")


def choose_wishes(seed: int, part: str, index: int, dice: Dice) -> list[Wish]:
    """What the one to three people of a picture do.

    A rare interaction is shown exactly once in `RARE_PERIOD` pictures, by the first person, who
    always finds room.

    Args:
        seed: of the world.
        part: one of `PARTS`.
        index: number of the picture in its part.
        dice: the picture's randomness.
    """
    vocabulary = world_vocabulary()
    weights, hands = _weights(part)
    count = 1 + dice.weighted(NUM_PEOPLE)
    chosen = [dice.weighted(weights) for _ in range(count)]
    if part in RARE_PERIOD:
        chosen[0] = _rare_slots(seed, part).get(index % RARE_PERIOD[part], chosen[0])
    wishes = []
    for interaction in chosen:
        verb = vocabulary.verbs[vocabulary.interactions[interaction][0]]
        holds = verb in FREE_HANDED and dice.chance(ALSO_HOLDS)
        wishes.append(Wish(interaction, dice.weighted(hands) if holds else None))
    return wishes


@cache
def _weights(part: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How likely every interaction is: as the main one, and as the one of a second thing.

    Verbs are equally likely, and so are the common interactions of a verb.
    """
    vocabulary = world_vocabulary()
    rare = set(vocabulary.rare) if part in RARE_PERIOD else set()
    weights = [0.0] * vocabulary.num_interactions
    hands = [0.0] * vocabulary.num_interactions
    for verb, name in enumerate(vocabulary.verbs):
        common = [
            index
            for index, (its_verb, _) in enumerate(vocabulary.interactions)
            if its_verb == verb and index not in rare
        ]
        for index in common:
            weights[index] = (IDLE_WEIGHT if verb == vocabulary.no_interaction else 1) / len(common)
            hands[index] = float(name == "hold")
    return tuple(weights), tuple(hands)


@cache
def _rare_slots(seed: int, part: str) -> dict[int, int]:
    """Rare interactions by the number, within the period, of the pictures that show them."""
    rare = world_vocabulary().rare
    slots = np.random.default_rng([seed, PARTS.index(part)]).permutation(RARE_PERIOD[part])
    return {int(slot): index for slot, index in zip(slots[: len(rare)], rare, strict=True)}


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
