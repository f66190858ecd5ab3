"""What a step measured, read without making the device wait for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.devices import start_download


@dataclass(frozen=True, eq=False)
class Reading:
    """The numbers of one step.

    Attributes:
        step: how many steps were done after it.
        image_ids: this process's images.
        values: losses, `total` and `gradient` by name.
        record: what else the log says about the step; None where it is not logged.
    """

    step: int
    image_ids: tuple[str, ...]
    values: dict[str, float]
    record: dict[str, Any] | None

    @property
    def not_finite(self) -> list[str]:
        """Names of values that are not finite numbers."""
        return [name for name, value in self.values.items() if not math.isfinite(value)]


@dataclass(frozen=True, eq=False)
class _OnItsWay:
    """A reading whose numbers may still be on the device; `vector` waits for them."""

    step: int
    image_ids: tuple[str, ...]
    names: tuple[str, ...]
    vector: Callable[[], Tensor]
    record: dict[str, Any] | None

    def arrived(self) -> Reading:
        values = dict(zip(self.names, self.vector().tolist(), strict=True))
        return Reading(self.step, self.image_ids, values, self.record)


class Readings:
    """Brings each step's numbers to the host one step later.

    On a GPU they are copied behind the work that makes them, and read when the next step's
    matching has waited for the device anyway. On a CPU they are there at once.

    Args:
        device: where steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._late = device.type == "cuda"
        self._waiting: list[_OnItsWay] = []

    def put(
        self,
        step: int,
        image_ids: tuple[str, ...],
        values: dict[str, Tensor],
        record: dict[str, Any] | None,
    ) -> list[Reading]:
        """Takes a step's numbers, still on the device.

        Returns:
            The readings that have arrived: the step's own, or the one before.
        """
        vector = start_download(torch.stack(list(values.values())))
        self._waiting.append(_OnItsWay(step, image_ids, tuple(values), vector, record))
        return self._read(len(self._waiting) - self._late)

    def rest(self) -> list[Reading]:
        """All readings that have not arrived, after waiting for them."""
        return self._read(len(self._waiting))

    def _read(self, count: int) -> list[Reading]:
        readings = [one.arrived() for one in self._waiting[:count]]
        del self._waiting[:count]
        return readings


def not_finite(readings: Sequence[Reading]) -> str:
    """What to say about the readings of a step some of whose numbers are not finite.

    A gradient is everybody's; where a loss went wrong too, its process has the images.
    """
    wrong = [one for one in readings if set(one.not_finite) - {"gradient"}]
    wrong = wrong or [one for one in readings if one.not_finite]
    first = [one for one in wrong if one.step == wrong[0].step]
    names = dict.fromkeys(name for one in first for name in one.not_finite)
    images = ", ".join(image for one in first for image in one.image_ids)
    return f"step {wrong[0].step}: {', '.join(names)} not finite on images {images}"
