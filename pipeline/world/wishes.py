"""Who does what in a picture: interactions as common or rare as in HICO-DET."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.vocabulary import Vocabulary, load_vocabulary
from pipeline.world.dice import Dice

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
