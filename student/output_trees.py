"""The model's outputs as one value, whatever dicts, lists and dataclasses they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

Joiner = Callable[[list[Tensor]], Tensor]


def combine(join: Joiner, outputs: Sequence[Any]) -> Any:
    """Outputs of one form become one of the same form, tensor by tensor.

    Args:
        join: makes one tensor of those that stand at the same place.
        outputs: at least one.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return join(list(outputs))
    if isinstance(first, dict):
        return {name: combine(join, [one[name] for one in outputs]) for name in first}
    if isinstance(first, list):
        return [combine(join, list(row)) for row in zip(*outputs, strict=True)]
    assert is_dataclass(first) and not isinstance(first, type)
    names = [entry.name for entry in fields(first)]
    return type(first)(
        **{name: combine(join, [getattr(one, name) for one in outputs]) for name in names}
    )


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, in a fixed order."""
    found: list[Tensor] = []

    def collect(alone: list[Tensor]) -> Tensor:
        found.append(alone[0])
        return alone[0]

    combine(collect, [output])
    return found


def joined(outputs: Sequence[Any]) -> Any:
    """Outputs of parts of a batch as the output of the whole, images in order."""
    return combine(torch.cat, outputs)


def cut_off(output: Any) -> Any:
    """The same numbers without their history; gradients gather in the new tensors."""
    return combine(lambda alone: alone[0].detach().requires_grad_(), [output])
