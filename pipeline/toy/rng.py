"""Fast scalar random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
BLOCK_SIZE = 512


class ScalarRNG:
    """Scalar random numbers, drawn from a numpy generator in blocks.

    Single scalar draws from a numpy generator are slow. Other draws from it change the sequence.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self._block: list[float] = []

    def random(self) -> float:
        if not self._block:
            self._block = self.generator.random(BLOCK_SIZE).tolist()
        return self._block.pop()

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def bernoulli(self, probability: float) -> bool:
        return self.random() < probability

    def randrange(self, count: int) -> int:
        return int(self.random() * count)

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.randrange(len(items))]

    def weighted_index(self, weights: Sequence[float]) -> int:
        """An index with probability proportional to its weight."""
        remaining = self.random() * sum(weights)
        for index, weight in enumerate(weights):
            remaining -= weight
            if remaining < 0:
                return index
        return len(weights) - 1

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        remaining = list(items)
        return [remaining.pop(self.randrange(len(remaining))) for _ in items]
