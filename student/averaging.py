"""The moving average of the weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class AveragedWeights:
    """A copy of a model whose parameters follow it slowly.

    Args:
        model: buffers are taken from it as they are.
        decay: share of the old average that a step keeps.

    Attributes:
        module: the copy, with the averaged parameters.
        updates: steps taken so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes one step towards the model's parameters; the first one goes all the way."""
        share = 1 - self.decay if self.updates else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), share)
        self.updates += 1
