"""Measures both sides of a ratio in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Calls that make the host wait for the device.
HOST_READS = {
    getattr(Tensor, name)
    for name in ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__")
}


class HostReads(TorchFunctionMode):
    """Counts calls that would make a host wait for its GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        self.count += func in HOST_READS
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Turns:
    """What both sides took.

    Attributes:
        seconds: of each side, turn by turn.
    """

    seconds: dict[str, list[float]]

    def ratio(self, slow: str, quick: str) -> float:
        """Median over the turns of one side's seconds by the other's in the same turn: what the
        machine does beside it changes more slowly than that."""
        pairs = zip(self.seconds[slow], self.seconds[quick], strict=True)
        return round(statistics.median(above / below for above, below in pairs), 3)

    def medians(self) -> dict[str, float]:
        """Seconds of each side, for JSON."""
        return {name: round(statistics.median(found), 4) for name, found in self.seconds.items()}


def in_turns(
    sides: dict[str, Callable[[], float | None]], turns: int, device: torch.device
) -> Turns:
    """Measures sides in turns after one round that does not count.

    Args:
        sides: the work by name; what gives a number has measured its seconds itself.
        turns: rounds that count.
        device: where the work is done.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name in list(sides) if turn % 2 else reversed(list(sides)):
            started = time.perf_counter()
            own = sides[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(time.perf_counter() - started if own is None else own)
    return Turns(times)
