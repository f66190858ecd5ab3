"""Content of a toy image: interactions of the people, and positions with little overlap.

Interactions are common or rare, as in HICO-DET.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.toy.actions import SIZE_FACTORS, draw_action
from pipeline.toy.canvas import IMAGE_SIZE, OUTLINE_WIDTH, Box, Sketch, enclosing_box
from pipeline.toy.objects import ToyObject, make_object
from pipeline.toy.palette import Palette
from pipeline.toy.people import sample_appearance
from pipeline.toy.rng import ScalarRNG
from pipeline.vocabulary import Vocabulary, load_vocabulary

PARTS = ("train", "test", "models")
# Every rare interaction is shown by one image in this many. The images of "models", for training
# the toy teacher and detector, have no rare interactions.
RARE_PERIOD = {"train": 500, "test": 100}
NUM_PEOPLE_WEIGHTS = (0.24, 0.46, 0.30)
NO_INTERACTION_WEIGHT = 1.5
HOLD_PROBABILITY = 0.27
HANDS_FREE_VERBS = ("ride", "sit_on")


@dataclass(frozen=True)
class PersonSpec:
    """Interactions of one person.

    Attributes:
        interaction: index of the interaction.
        in_hand: index of an interaction `hold` with a second object; None without such an object.
    """

    interaction: int
    in_hand: int | None = None


@cache
def toy_vocabulary() -> Vocabulary:
    """The vocabulary `toy`."""
    return load_vocabulary("toy")


def sample_scene_spec(seed: int, part: str, index: int, rng: ScalarRNG) -> list[PersonSpec]:
    """Samples the interactions of the one to three people of an image.

    A rare interaction is shown exactly once in `RARE_PERIOD` images, by the first person, because
    only the first person can always be placed.

    Args:
        seed: seed of the toy dataset.
        part: one of `PARTS`.
        index: index of the image in its part.
        rng: random numbers of the image.
    """
    vocabulary = toy_vocabulary()
    weights, hands = _interaction_weights(part)
    count = 1 + rng.weighted_index(NUM_PEOPLE_WEIGHTS)
    chosen = [rng.weighted_index(weights) for _ in range(count)]
    if part in RARE_PERIOD:
        chosen[0] = _rare_slots(seed, part).get(index % RARE_PERIOD[part], chosen[0])
    specs = []
    for interaction in chosen:
        verb = vocabulary.verbs[vocabulary.interactions[interaction][0]]
        holds = verb in HANDS_FREE_VERBS and rng.bernoulli(HOLD_PROBABILITY)
        specs.append(PersonSpec(interaction, rng.weighted_index(hands) if holds else None))
    return specs


@cache
def _interaction_weights(part: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sampling weights of the interactions: as a person's main one, and with an object in the hand.

    All verbs have the same probability except `no_interaction`, and so have all common interactions
    of a verb.
    """
    vocabulary = toy_vocabulary()
    rare = vocabulary.rare if part in RARE_PERIOD else ()
    verbs = [verb for verb, _ in vocabulary.interactions]
    common = [index for index in range(vocabulary.num_interactions) if index not in rare]
    counts = Counter(verbs[index] for index in common)
    weights, hands = np.zeros((2, vocabulary.num_interactions))
    for index in common:
        weight = NO_INTERACTION_WEIGHT if verbs[index] == vocabulary.no_interaction else 1
        weights[index] = weight / counts[verbs[index]]
        hands[index] = vocabulary.verbs[verbs[index]] == "hold"
    return tuple(weights.tolist()), tuple(hands.tolist())


@cache
def _rare_slots(seed: int, part: str) -> dict[int, int]:
    """Rare interactions by the index, modulo `RARE_PERIOD`, of the images that show them."""
    rare = toy_vocabulary().rare
    slots = np.random.default_rng([seed, PARTS.index(part)]).permutation(RARE_PERIOD[part])
    return {int(slot): index for slot, index in zip(slots[: len(rare)], rare, strict=True)}


# Ranges of body heights for one, two and three people, and the smallest body height and longer side
# of an object, in pixels.
BODY_HEIGHTS = ((46, 68), (38, 58), (34, 48))
MIN_BODY_HEIGHT, MIN_OBJECT_LENGTH = 32.0, 13.0
EDGE_MARGIN = 1.5
NUM_DISTRACTOR_WEIGHTS = (0.35, 0.4, 0.25)
MAX_DESIGNS, MAX_POSITIONS = 4, 10
# Largest share of a box that another group may cover, and largest share of it within
# `PERSON_MARGIN` pixels of another person, who would seem to interact with it.
MAX_OVERLAP, MAX_NEAR_OVERLAP, PERSON_MARGIN = 0.12, 0.03, 4.0

OwnedSketches = list[tuple[int, Sketch]]


@dataclass(frozen=True)
class PlacedGroup:
    """A person with objects, or a distractor object, at its position in the image.

    Attributes:
        parts: owner and drawing of every part, from back to front, in pixels relative to
            `position`. Owners are 0 for the person, 1 and 2 for the objects, -1 for decoration.
        position: origin of the group in the image; its row is the ground.
        boxes: tight box of all parts of an owner, by owner.
        spec: the interactions; None for a distractor.
    """

    parts: OwnedSketches
    position: complex
    boxes: dict[int, Box]
    spec: PersonSpec | None

    @property
    def box(self) -> Box:
        """The smallest box around all parts."""
        return enclosing_box(self.boxes.values())


def place_groups(
    specs: list[PersonSpec], palette: Palette, horizon: int, rng: ScalarRNG
) -> list[PlacedGroup]:
    """Places a group for every spec, and some distractors, without much overlap.

    Groups for which no position is found are left out; the first group always has one.

    Args:
        specs: interactions of the people.
        palette: colours of the image.
        horizon: row where the ground begins.
        rng: random numbers of the image.

    Returns:
        The placed groups from back to front.
    """
    low, high = BODY_HEIGHTS[len(specs) - 1]
    placed: list[PlacedGroup] = []
    distractors = [None] * rng.weighted_index(NUM_DISTRACTOR_WEIGHTS)
    for spec in [*specs, *distractors]:
        group = _place_group(spec, rng.uniform(low, high), palette, horizon, placed, rng)
        if group is not None:
            placed.append(group)
    return sorted(placed, key=lambda group: group.position.imag)


def _place_group(
    spec: PersonSpec | None,
    height: float,
    palette: Palette,
    horizon: int,
    placed: list[PlacedGroup],
    rng: ScalarRNG,
) -> PlacedGroup | None:
    """Tries several drawings at several positions, with decreasing size; None if all overlap."""
    for _ in range(MAX_DESIGNS):
        mirrored = rng.bernoulli(0.5)
        parts = [
            (owner, sketch.transformed(0, height, mirrored=mirrored))
            for owner, sketch in _draw_group(spec, height, palette, rng)
        ]
        boxes = _owner_boxes(parts)
        left, top, right, bottom = enclosing_box(boxes.values())
        highest = max(horizon + 0.1 * IMAGE_SIZE, EDGE_MARGIN - top)
        lowest = IMAGE_SIZE - EDGE_MARGIN - max(bottom, 0)
        if right - left > IMAGE_SIZE - 2 * EDGE_MARGIN or highest > lowest:
            height *= 0.85
            continue
        for _ in range(MAX_POSITIONS):
            position = complex(
                rng.uniform(EDGE_MARGIN - left, IMAGE_SIZE - EDGE_MARGIN - right),
                rng.uniform(highest, lowest),
            )
            shifted = {owner: _shift_box(box, position) for owner, box in boxes.items()}
            if not _overlaps_others(shifted, placed):
                return PlacedGroup(parts, position, shifted, spec)
        height = max(height * 0.88, MIN_BODY_HEIGHT)
    return None


def _draw_group(
    spec: PersonSpec | None, height: float, palette: Palette, rng: ScalarRNG
) -> OwnedSketches:
    """Parts of a group or, without spec, of a distractor, in units of the body height."""
    vocabulary = toy_vocabulary()
    smallest = MIN_OBJECT_LENGTH / height
    if spec is None:
        name = vocabulary.objects[1 + rng.randrange(vocabulary.num_objects - 1)]
        obj = make_object(name, palette, rng, smallest)
        return [(1, obj.sketch.transformed(mirrored=rng.bernoulli(0.5)))]
    verb, label = vocabulary.interactions[spec.interaction]
    names = (vocabulary.verbs[verb], vocabulary.objects[label])
    obj = make_object(names[1], palette, rng, smallest, SIZE_FACTORS.get(names, 1.0))
    in_hand: ToyObject | None = None
    if spec.in_hand is not None:
        name = vocabulary.objects[vocabulary.interactions[spec.in_hand][1]]
        in_hand = make_object(name, palette, rng, smallest, 0.9)
    return draw_action(names[0], obj, sample_appearance(palette, rng), rng, in_hand)


def _owner_boxes(parts: OwnedSketches) -> dict[int, Box]:
    """The tight box of every owner, outlines included."""
    boxes: dict[int, list[Box]] = {}
    for owner, sketch in parts:
        boxes.setdefault(owner, []).append(sketch.bounds(OUTLINE_WIDTH))
    return {owner: enclosing_box(part_boxes) for owner, part_boxes in boxes.items()}


def _shift_box(box: Box, offset: complex) -> Box:
    left, top, right, bottom = box
    return left + offset.real, top + offset.imag, right + offset.real, bottom + offset.imag


def _overlaps_others(boxes: dict[int, Box], placed: list[PlacedGroup]) -> bool:
    """Whether a new group overlaps others, or a person is too close to another one's object."""
    union = enclosing_box(boxes.values())
    for other in placed:
        if any(covered_share(box, union) > MAX_OVERLAP for box in other.boxes.values()):
            return True
        if any(covered_share(box, other.box) > MAX_OVERLAP for box in boxes.values()):
            return True
        if other.spec is not None and _too_close(other.boxes[0], boxes):
            return True
        if 0 in boxes and _too_close(boxes[0], other.boxes):
            return True
    return False


def _too_close(person: Box, boxes: dict[int, Box]) -> bool:
    return any(
        covered_share(box, person, PERSON_MARGIN) > MAX_NEAR_OVERLAP for box in boxes.values()
    )


def covered_share(box: Box, other: Box, margin: float = 0.0) -> float:
    """Share of a box's area that is inside another box, which is widened by a margin."""
    across = min(box[2], other[2] + margin) - max(box[0], other[0] - margin)
    down = min(box[3], other[3] + margin) - max(box[1], other[1] - margin)
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / ((box[2] - box[0]) * (box[3] - box[1]))
