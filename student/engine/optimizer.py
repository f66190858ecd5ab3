"""Optimizer, learning-rate schedules, and the exponential moving average of the weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from student.config import TrainConfig
from student.models.detector import HEADS, HOIDetector

LR_DROP_FACTOR = 0.1
# Device types with a fused AdamW kernel in torch.
FUSED_DEVICES = ("cpu", "cuda")
# Start of the names of the backbone's parameters.
BACKBONE = "backbone."


def freeze_parameters(model: HOIDetector, config: TrainConfig) -> None:
    """Turns off the gradients of the parameters that the recipe does not train.

    Frozen parameters also save time: without a backbone's gradients a step takes two thirds of it.
    """
    if config.heads_only:
        for name, parameter in model.named_parameters():
            if not name.startswith(HEADS):
                parameter.requires_grad_(False)
    elif not config.backbone_lr_factor:
        model.backbone.requires_grad_(False)


def build_optimizer(
    model: HOIDetector, config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, with a separate learning rate for the backbone."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained.items() if not name.startswith(BACKBONE)]},
        {
            "params": [p for name, p in trained.items() if name.startswith(BACKBONE)],
            "lr": config.learning_rate * config.backbone_lr_factor,
        },
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type in FUSED_DEVICES,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> LRScheduler:
    """Builds the learning-rate schedule, which is to be advanced after every step.

    "step": linear warm-up over `warmup_steps`, then constant, and a tenth from `drop_epoch` on.
    "one_cycle": the 1cycle policy over the whole run (Smith and Topin, arXiv 1708.07120).
    """
    if config.schedule == "step":
        drop_step, warmup_steps = config.drop_epoch * steps_per_epoch, config.warmup_steps

        def factor(step: int) -> float:
            warmup = min(1.0, (step + 1) / (warmup_steps + 1))
            return warmup * (LR_DROP_FACTOR if step >= drop_step else 1.0)

        return LambdaLR(optimizer, factor)
    peaks = [group["lr"] for group in optimizer.param_groups]
    # The schedule is also advanced after the last step, hence one step more than the run has.
    return OneCycleLR(optimizer, peaks, total_steps=steps_per_epoch * config.epochs + 1)


class ModelEMA:
    """Exponential moving average of a model's parameters.

    `torch.optim.swa_utils.AveragedModel` also copies every buffer, of which the detector has
    several hundred constant ones, and a counter, for which the host would wait for a GPU.

    Attributes:
        module: copy of the model with the averaged parameters.
        decay: weight of the old average in every update.
        updates: number of updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Updates the average with the model's parameters; the first update copies them."""
        weight = 1 - self.decay if self.updates else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
        self.updates += 1
