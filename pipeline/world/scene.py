"""Pictures of the world: who does what, where they stand, and how it is annotated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary, load_vocabulary
from pipeline.world.actions import DECORATION, GROWTH, Group, act
from pipeline.world.background import PLACES, SIZE, light_of, paint_background, paint_far
from pipeline.world.dice import Dice
from pipeline.world.figure import random_look
from pipeline.world.objects import Thing, make_thing
from pipeline.world.palette import PALETTES, Palette
from pipeline.world.sketch import OUTLINE, Box, Sketch, bounds_of

PARTS = ("train", "test", "models")
SCALE = 3
SMALLEST = 13.0
NUM_PEOPLE = (0.26, 0.46, 0.28)
HEIGHTS = ((46, 68), (38, 58), (34, 48))
NUM_LOOSE = (0.35, 0.4, 0.25)
ALSO_HOLDS = 0.27
# One picture in so many shows a given rare interaction; "models" knows no rare ones.
RARE_PERIOD = {"train": 500, "test": 100}
IDLE_WEIGHT = 1.5
EDGE = 1.5


@dataclass(frozen=True)
class Wish:
    """What somebody shall do: an interaction, and perhaps one with a second thing in the hand."""

    interaction: int
    in_hand: int | None = None


@dataclass(frozen=True)
class Standing:
    """A group (or a loose thing) with its place in the picture.

    Attributes:
        parts: owner (0 the person, 1, 2 the things, -1 nobody's) and drawing, in picture pixels.
        boxes: by owner, the box of all its parts.
        ground: row of the ground it stands on.
        wish: what it shows, None for a loose thing.
        label: object index of a loose thing.
    """

    parts: tuple[tuple[int, Sketch], ...]
    boxes: dict[int, Box]
    ground: float
    wish: Wish | None
    label: int | None = None

    @property
    def union(self) -> Box:
        return bounds_of(self.boxes.values())


@cache
def world_vocabulary() -> Vocabulary:
    """The vocabulary `world`."""
    return load_vocabulary("world")


def picture_name(part: str, index: int) -> str:
    """File name of a picture, which is its id."""
    return f"world_{part}_{index + 1:08d}.jpg"


def draw_scene(seed: int, part: str, index: int) -> tuple[Image.Image, Annotation]:
    """One picture of the world and its annotation; the same arguments give the same bytes.

    Args:
        seed: of the whole world.
        part: `train`, `test` or `models` (pictures for the world's teacher and detector, with all
            interactions equally common).
        index: number of the picture in its part, from 0.

    Returns:
        An RGB image of 128x128 pixels, and the annotation: people first, boxes tight to what was
        drawn (before others cover it).
    """
    dice = Dice(np.random.default_rng([seed, PARTS.index(part), index]))
    place = dice.pick(PLACES)
    palette = Palette(dice.pick(PALETTES), light_of(place), place.tint)
    horizon = int(dice.between(0.36, 0.56) * SIZE)
    wishes = choose_wishes(seed, part, index, dice)
    standing = place_all(wishes, palette, horizon, dice)
    canvas = paint_background(place, horizon, dice, SCALE)
    draw = ImageDraw.Draw(canvas, "RGBA")
    paint_far(draw, place, horizon, dice, SCALE)
    for group in standing:
        _paint_shadows(draw, group)
    for group in standing:
        for _, sketch in group.parts:
            sketch.paint(draw, SCALE)
    return _finished(canvas, dice), annotate(standing, picture_name(part, index), loose=part == "models")


def _finished(canvas: Image.Image, dice: Dice) -> Image.Image:
    small = np.asarray(canvas.reduce(SCALE), dtype=np.int16)
    grain = dice.generator.integers(-4, 5, (SIZE, SIZE, 1), dtype=np.int16)
    return Image.fromarray(np.clip(small + grain, 0, 255).astype(np.uint8))


def _paint_shadows(draw: ImageDraw.ImageDraw, group: Standing) -> None:
    for owner, (left, _, right, bottom) in group.boxes.items():
        height = group.ground - bottom
        if owner == DECORATION or height > 30:
            continue
        half = (right - left) * (0.46 if height < 3 else 0.36)
        middle, flat = (left + right) / 2, max(1.5, 0.16 * half)
        for grow, alpha in ((1.15, 26), (0.85, 34)):
            box = [
                SCALE * number
                for number in (
                    middle - half * grow,
                    group.ground - flat * grow,
                    middle + half * grow,
                    group.ground + flat * grow,
                )
            ]
            draw.ellipse(box, fill=(20, 16, 48, alpha))


# --- what people do


@cache
def _weights(part: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How likely each interaction is: of all, and of those in a second hand."""
    vocabulary = world_vocabulary()
    rare = set(vocabulary.rare) if part in RARE_PERIOD else set()
    weights = [0.0] * vocabulary.num_interactions
    hands = [0.0] * vocabulary.num_interactions
    hold = vocabulary.verbs.index("hold")
    for verb in range(vocabulary.num_verbs):
        common = [
            index
            for index, (its_verb, _) in enumerate(vocabulary.interactions)
            if its_verb == verb and index not in rare
        ]
        share = IDLE_WEIGHT if verb == vocabulary.no_interaction else 1.0
        for index in common:
            weights[index] = share / len(common)
            hands[index] = float(verb == hold)
    return tuple(weights), tuple(hands)


@cache
def _rare_slots(seed: int, part: str) -> dict[int, int]:
    """Which rare interaction the pictures show whose index modulo the period is the key."""
    rare = world_vocabulary().rare
    slots = np.random.default_rng([seed, PARTS.index(part)]).permutation(RARE_PERIOD[part])
    return {int(slot): index for slot, index in zip(slots[: len(rare)], rare, strict=True)}


def choose_wishes(seed: int, part: str, index: int, dice: Dice) -> list[Wish]:
    """What the people of a picture do; a rare interaction, where it is its turn, comes first."""
    vocabulary = world_vocabulary()
    weights, hands = _weights(part)
    count = 1 + dice.weighted(NUM_PEOPLE)
    chosen = [dice.weighted(weights) for _ in range(count)]
    if part in RARE_PERIOD:
        rare = _rare_slots(seed, part).get(index % RARE_PERIOD[part])
        if rare is not None:
            chosen[0] = rare
    wishes = []
    for interaction in chosen:
        verb = vocabulary.verbs[vocabulary.interactions[interaction][0]]
        busy = verb not in ("ride", "sit_on") or not dice.chance(ALSO_HOLDS)
        wishes.append(Wish(interaction, None if busy else dice.weighted(hands)))
    return wishes


# --- where they stand


def place_all(wishes: list[Wish], palette: Palette, horizon: int, dice: Dice) -> list[Standing]:
    """Groups and loose things in the picture, from back to front; what finds no room is left out."""
    low, high = HEIGHTS[len(wishes) - 1]
    placed: list[Standing] = []
    for wish in wishes:
        height = dice.between(low, high)
        found = _find_room(wish, height, palette, horizon, placed, dice)
        if found is not None:
            placed.append(found)
    for _ in range(dice.weighted(NUM_LOOSE)):
        found = _find_room(None, dice.between(low, high), palette, horizon, placed, dice)
        if found is not None:
            placed.append(found)
    return sorted(placed, key=lambda group: group.ground)


def _find_room(wish: Wish | None, height: float, palette: Palette, horizon: int,
               placed: list[Standing], dice: Dice) -> Standing | None:  # fmt: skip
    for _ in range(4):
        parts, label = _parts(wish, height, palette, dice)
        mirrored = dice.chance(0.5)
        sketches = [(owner, sketch.moved(0, height, mirrored=mirrored)) for owner, sketch in parts]
        left, top, right, bottom = bounds_of(sketch.bounds(OUTLINE) for owner, sketch in sketches)
        highest = max(horizon + 0.1 * SIZE, EDGE - top)
        lowest = SIZE - EDGE - max(bottom, 0)
        if right - left > SIZE - 2 * EDGE or highest > lowest:
            height *= 0.88
            continue
        for _ in range(8):
            ground = dice.between(highest, lowest)
            across = dice.between(EDGE - left, SIZE - EDGE - right)
            boxes = _boxes(sketches, complex(across, ground))
            if not _disturbs(boxes, wish is None, placed):
                moved = tuple(
                    (owner, sketch.moved(complex(across, ground))) for owner, sketch in sketches
                )
                return Standing(moved, boxes, ground, wish, label)
        height = max(height * 0.9, 32.0)
    return None


def _parts(wish: Wish | None, height: float, palette: Palette, dice: Dice):
    vocabulary = world_vocabulary()
    smallest = SMALLEST / height
    if wish is None:
        label = 1 + dice.below(vocabulary.num_objects - 1)
        thing = make_thing(vocabulary.objects[label], palette, dice, smallest)
        return ((1, thing.sketch),), label
    verb, label = vocabulary.interactions[wish.interaction]
    kind = (vocabulary.verbs[verb], vocabulary.objects[label])
    thing = make_thing(kind[1], palette, dice, smallest, GROWTH.get(kind, 1.0))
    in_hand: Thing | None = None
    if wish.in_hand is not None:
        name = vocabulary.objects[vocabulary.interactions[wish.in_hand][1]]
        in_hand = make_thing(name, palette, dice, smallest, 0.9)
    group: Group = act(kind[0], thing, random_look(palette, dice), dice, in_hand)
    return group.parts, None


def _boxes(parts: list[tuple[int, Sketch]], shift: complex) -> dict[int, Box]:
    boxes: dict[int, list[Box]] = {}
    for owner, sketch in parts:
        left, top, right, bottom = sketch.bounds(OUTLINE)
        box = (left + shift.real, top + shift.imag, right + shift.real, bottom + shift.imag)
        boxes.setdefault(owner, []).append(box)
    return {owner: bounds_of(its) for owner, its in boxes.items()}


def _disturbs(boxes: dict[int, Box], loose: bool, placed: list[Standing]) -> bool:
    """Whether a new group covers others' pairs, is covered, or seems to act on their things."""
    union = bounds_of(boxes.values())
    for other in placed:
        for box in other.boxes.values():
            if _covered(box, union, 0.0) > 0.12:
                return True
        for box in boxes.values():
            if _covered(box, other.union, 0.0) > 0.12:
                return True
        if 0 in other.boxes and _covered_by_any(other.boxes[0], boxes):
            return True
        if not loose and _covered_by_any(boxes[0], other.boxes):
            return True
    return False


def _covered_by_any(person: Box, boxes: dict[int, Box]) -> bool:
    """Whether a thing or person comes too near to a person."""
    return any(_covered(box, person, 4.0) > 0.04 for box in boxes.values())


def _covered(box: Box, other: Box, margin: float) -> float:
    """The share of a box that lies in another, widened by a margin."""
    across = min(box[2], other[2] + margin) - max(box[0], other[0] - margin)
    down = min(box[3], other[3] + margin) - max(box[1], other[1] - margin)
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / ((box[2] - box[0]) * (box[3] - box[1]))


# --- what is written about it


def annotate(standing: list[Standing], image_id: str, loose: bool = False) -> Annotation:
    """The annotation of a picture: every group's person and things.

    Args:
        standing: what was drawn.
        image_id: file name of the picture.
        loose: also name the boxes of things nobody has to do with, as a detection dataset does
            and HICO-DET does not.
    """
    vocabulary = world_vocabulary()
    boxes: list[Box] = []
    labels: list[int] = []
    hois: list[tuple[int, int, int]] = []
    for group in standing:
        if group.wish is None:
            if loose and group.label is not None:
                boxes.append(group.boxes[1])
                labels.append(group.label)
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
