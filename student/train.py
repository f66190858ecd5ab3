"""Phase two: the training loop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pipeline.devices import autocast
from pipeline.errors import InputError
from pipeline.progress import Progress
from pipeline.splits import Split
from pipeline.vocabulary import Vocabulary
from student.checkpoints import CHECKPOINT, Checkpoint, load_checkpoint, save_checkpoint
from student.data import (
    EpochSampler,
    Sample,
    TrainingImages,
    plain_errors,
    without_interrupts,
)
from student.dense_head import dense_losses
from student.losses import Criterion
from student.metrics import METRICS, rewind
from student.model import HOIDetector
from student.recipe import Recipe

LOG_EVERY = 10


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as the step takes them, all on one device."""

    samples: Sequence[Sample]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch([sample.to(device) for sample in self.samples])


class Trainer:
    """Model, optimiser and position of one training run.

    Args:
        recipe: all settings.
        model: the detector to train.
        images: where samples come from.
        vocabulary, split: stored with the checkpoints.
        run: folder for checkpoints and metrics.
        device: where to train.
        workers: processes that prepare samples.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: HOIDetector,
        images: TrainingImages,
        vocabulary: Vocabulary,
        split: Split,
        run: Path,
        device: torch.device,
        workers: int,
    ) -> None:
        self.recipe, self.run, self.device = recipe, run, device
        self.vocabulary, self.split = vocabulary, split
        # Convolutions are quicker on channels-last maps, on CPUs and GPUs alike.
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.criterion = Criterion(
            recipe.matcher, recipe.losses, torch.from_numpy(split.asked_verbs).to(device)
        )
        train = recipe.train
        self.sampler = EpochSampler(len(images), train.batch_size, train.seed)
        self.steps_per_epoch = len(images) // train.batch_size or 1
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, recipe), lr=train.learning_rate, fused=True
        )
        self.scheduler = _scheduler(self.optimizer, recipe, self.steps_per_epoch)
        self.averaged = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema))
            if train.ema
            else None
        )
        self.step = 0
        self.loader = DataLoader(
            images,
            batch_size=train.batch_size,
            sampler=self.sampler,
            num_workers=workers,
            collate_fn=list,
            drop_last=len(images) > train.batch_size,
            persistent_workers=workers > 0,
            worker_init_fn=without_interrupts,
            # Iterating draws a number: from here, so that dropout goes on as if never stopped.
            generator=torch.Generator(),
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.recipe.train.epochs

    @property
    def predictor(self) -> HOIDetector:
        """The detector whose weights predict: averaged where averaging is on."""
        if self.averaged is None:
            return self.model
        assert isinstance(self.averaged.module, HOIDetector)
        return self.averaged.module

    def train(self) -> None:
        """Trains from where the run stands to its end.

        Raises:
            KeyboardInterrupt: asked to stop; the state is saved first.
            InputError: a loss is not finite; the last good checkpoint stays.
        """
        self.model.train()
        rewind(self.run / METRICS, self.step)
        with (
            Progress(self.total_steps, "training", "steps", self.step) as progress,
            asked_to_stop() as stop,
            plain_errors(),
            open(self.run / METRICS, "a", encoding="utf-8") as log,
        ):
            while self.step < self.total_steps:
                self.sampler.position(*divmod(self.step, self.steps_per_epoch))
                waited = time.perf_counter()
                for samples in self.loader:
                    waiting = time.perf_counter() - waited
                    losses = self.train_step(Batch(samples).to(self.device))
                    seconds = time.perf_counter() - waited
                    if self.step % LOG_EVERY == 0 or self.step == self.total_steps:
                        record = self.record(losses, len(samples) / seconds, waiting / seconds)
                        log.write(json.dumps(record) + "\n")
                        log.flush()
                    progress.advance(note=f"loss {losses['total']:.2f}")
                    if stop():
                        self.save()
                        raise KeyboardInterrupt
                    waited = time.perf_counter()
                    if self.step % self.steps_per_epoch == 0:
                        break
                self.save()

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step on one batch; returns the losses by name, `total` among them."""
        with autocast(self.device, self.recipe.train.precision), attention_kernel(self.device):
            outputs = self.model([sample.image for sample in batch.samples])
        losses = self.losses(outputs, batch)
        total = losses["total"]
        if not torch.isfinite(total):
            wrong = [name for name, value in losses.items() if not torch.isfinite(value)]
            names = ", ".join(sample.image_id for sample in batch.samples)
            raise InputError(
                f"step {self.step + 1}: {', '.join(wrong)} not finite on images {names}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.step += 1
        return {name: value.item() for name, value in losses.items()}

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The criterion's weighted losses, the dense head's, and their `total`."""
        losses = dict(self.criterion(outputs, [s.targets for s in batch.samples]).weighted)
        if "dense" in outputs:
            train = self.recipe.train
            dense = dense_losses(
                outputs["dense"],
                [sample.boxes for sample in batch.samples],
                [sample.labels for sample in batch.samples],
                self.recipe.model.person,
            )
            losses["dense_class"] = train.dense_class_weight * dense["dense_class"]
            losses["dense_box"] = train.dense_box_weight * dense["dense_box"]
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def record(self, losses: dict[str, float], rate: float, waiting: float) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        return {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "images": self.step * self.recipe.train.batch_size,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": losses["total"],
            "losses": {name: value for name, value in losses.items() if name != "total"},
            "images_per_second": round(rate, 2),
            "data_wait_share": round(waiting, 4),
        }

    def save(self) -> None:
        """Writes the checkpoint."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "averages": int(self.averaged.n_averaged) if self.averaged is not None else 0,
            "generator": torch.get_rng_state(),
            "gpu_generator": (
                torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
            ),
        }
        checkpoint = Checkpoint(
            self.recipe, self.vocabulary, self.split, self.predictor.state_dict(), state
        )
        save_checkpoint(self.run / CHECKPOINT, checkpoint)

    def resume(self) -> None:
        """Goes back to the run's checkpoint.

        Raises:
            InputError: the checkpoint is damaged.
        """
        checkpoint = load_checkpoint(self.run / CHECKPOINT)
        state = checkpoint.state
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.averaged is not None:
            self.averaged.module.load_state_dict(checkpoint.weights)
            self.averaged.n_averaged.fill_(state["averages"])
        torch.set_rng_state(state["generator"])
        if self.device.type == "cuda" and state.get("gpu_generator") is not None:
            torch.cuda.set_rng_state(state["gpu_generator"], self.device)


def _parameter_groups(model: HOIDetector, recipe: Recipe) -> list[dict[str, Any]]:
    train = recipe.train
    backbone: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else others).append(parameter)
    return [
        {"params": others, "weight_decay": train.weight_decay},
        {
            "params": backbone,
            "weight_decay": train.weight_decay,
            "lr": train.learning_rate * train.backbone_factor,
        },
    ]


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    train = recipe.train
    if train.schedule == "step":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [train.drop_epoch * steps_per_epoch])
    peaks = [group["lr"] for group in optimizer.param_groups]
    total = steps_per_epoch * train.epochs
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total + 1)


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """The kernel of scaled dot-product attention to train with.

    On the CPU the fused kernel's backward pass takes longer than the plain products: a step of
    the world's student was 0.58 s with it and 0.29 s without (bfloat16, one core).
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@contextmanager
def asked_to_stop() -> Iterator[Any]:
    """Ctrl-C and SIGTERM ask for a stop after the running step instead of breaking it."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _: asked.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
