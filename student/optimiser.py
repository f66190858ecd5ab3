"""Parameter groups, the optimiser, and the learning rate over the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from student.model import HOIDetector
from student.recipe import TrainConfig

DROP = 0.1
# torch's single-kernel AdamW exists for these.
FUSED_ON = ("cpu", "cuda")


def build_optimiser(
    model: HOIDetector, config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the backbone has a rate of its own."""
    return torch.optim.AdamW(
        _parameter_groups(model, config),
        lr=config.learning_rate,
        fused=device.type in FUSED_ON,
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
            return warm * (DROP if step >= drop else 1.0)

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
            "lr": config.learning_rate * config.backbone_factor,
        },
    ]
