"""Random choices that are cheap one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
BLOCK_SIZE = 512


class ScalarRNG:
    """Scalar draws from a generator, taken from it in blocks (a generator's own are slow).

    Args:
        generator: the only source of randomness; nobody else may draw from it meanwhile.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self._block: list[float] = []

    def random(self) -> float:
        """A number in [0, 1)."""
        if not self._block:
            self._block = self.generator.random(BLOCK_SIZE).tolist()
        return self._block.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.random()

    def bernoulli(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    def randrange(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self.random() * count)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items, all equally likely."""
        return items[self.randrange(len(items))]

    def weighted_index(self, weights: Sequence[float]) -> int:
        """An index, as likely as its weight."""
        left = self.random() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in random order."""
        rest = list(items)
        return [rest.pop(self.randrange(len(rest))) for _ in items]
