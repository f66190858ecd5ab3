"""Parameter groups, the optimiser, and the learning rate over the steps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from student.config import TrainConfig
from student.models.detector import HOIDetector

LR_DROP_FACTOR = 0.1
# torch's single-kernel AdamW exists for these.
FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(
    model: HOIDetector, config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the backbone has a rate of its own."""
    return torch.optim.AdamW(
        _parameter_groups(model, config),
        lr=config.learning_rate,
        fused=device.type in FUSED_DEVICES,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> LRScheduler:
    """The learning rate of every step, as a factor on the groups' own rates.

    "step": rises linearly over `warmup_steps`, then stays, and is a tenth from `drop_epoch` on.
    "one_cycle": Smith and Topin's rise and fall over the whole run.
    """
    if config.schedule == "step":
        drop, rise = config.drop_epoch * steps_per_epoch, config.warmup_steps

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (rise + 1))
            return warm * (LR_DROP_FACTOR if step >= drop else 1.0)

        return LambdaLR(optimizer, factor)
    peaks = [group["lr"] for group in optimizer.param_groups]
    total = steps_per_epoch * config.epochs
    return OneCycleLR(optimizer, peaks, total_steps=total + 1)


def _parameter_groups(model: HOIDetector, config: TrainConfig) -> list[dict[str, Any]]:
    backbone: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else others).append(parameter)
    return [
        {"params": others, "weight_decay": config.weight_decay},
        {
            "params": backbone,
            "weight_decay": config.weight_decay,
            "lr": config.learning_rate * config.backbone_lr_factor,
        },
    ]


class ModelEMA:
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
