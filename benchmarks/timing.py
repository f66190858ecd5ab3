"""Timing of alternatives in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timings:
    """Times of alternatives that were measured in turns.

    Attributes:
        seconds: for each alternative, the seconds of every turn.
    """

    seconds: dict[str, list[float]]

    def ratio(self, slow: str, quick: str) -> float:
        """Median over the turns of the ratio of two alternatives' seconds.

        Ratios within a turn are robust against other load of the machine, which changes slowly.
        """
        pairs = zip(self.seconds[slow], self.seconds[quick], strict=True)
        return round(statistics.median(above / below for above, below in pairs), 3)

    def medians(self) -> dict[str, float]:
        """Median seconds of each alternative, rounded for JSON."""
        return {name: round(statistics.median(found), 4) for name, found in self.seconds.items()}


def time_in_turns(
    sides: Mapping[str, Callable[[], float | None]], turns: int, device: torch.device
) -> Timings:
    """Times functions in turns, after a warm-up turn that is not counted.

    Args:
        sides: functions by name; a function that returns a number has measured its own seconds.
        turns: number of turns.
        device: device of the work.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name in list(sides) if turn % 2 else reversed(list(sides)):
            started = time.perf_counter()
            measured = sides[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(time.perf_counter() - started if measured is None else measured)
    return Timings(times)
