"""Timing of alternatives in turns, and counting of host synchronisations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Calls that make the host wait for the device, with a GPU.
SYNCHRONISING_CALLS = {
    getattr(Tensor, name)
    for name in ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__")
}


class HostSyncCounter(TorchFunctionMode):
    """Counts calls that make the host wait for a GPU, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        self.count += func in SYNCHRONISING_CALLS
        return func(*args, **(kwargs or {}))


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
    sides: dict[str, Callable[[], float | None]], turns: int, device: torch.device
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
