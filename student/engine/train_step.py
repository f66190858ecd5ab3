"""One optimisation step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from pipeline.utils.devices import autocast
from student.config import Recipe
from student.data.dataset import Batch
from student.engine.optimizer import AveragedWeights, build_optimiser, build_schedule
from student.losses.criterion import Criterion, by_source, dense_losses
from student.models.detector import HOIDetector
from student.utils import seeding as generators
from student.utils.distributed import Execution, _distributed


class Stepper:
    """Everything that a step changes: weights, their average, the optimiser's state, the rate.

    A batch may come in parts, over processes and, on each, one after the other. The losses are
    those of the whole batch all the same: images are padded as far as in one batch, and sums are
    divided by counts over all processes and parts. What differs is rounding and dropout's draws.

    Args:
        recipe: all settings.
        model: the detector to train, on its device.
        asked_verbs: (V,) bool, see `Criterion`.
        steps_per_epoch: for the schedule.
        execution: see there.
        sources: names of the sources that samples come from, by number; none where there is one.
    """

    FIELDS = ("model", "optimizer", "scheduler", "averages")

    def __init__(
        self,
        recipe: Recipe,
        model: HOIDetector,
        asked_verbs: Tensor,
        steps_per_epoch: int,
        execution: Execution,
        sources: Sequence[str] = (),
    ) -> None:
        self.recipe, self.model, self.execution = recipe, model, execution
        self.sources = sources
        device, train = execution.device, recipe.train
        self.criterion = Criterion(recipe.matcher, recipe.losses, asked_verbs.to(device))
        self.optimizer = build_optimiser(model, train, device)
        self.scheduler = build_schedule(self.optimizer, train, steps_per_epoch)
        self.averaged = AveragedWeights(model, train.ema) if train.ema else None
        self._forward: Any = torch.compile(model) if execution.compiled else model
        if execution.team.size > 1:
            self._forward = _distributed(self._forward, device)

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of everything but the backbone."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def predictor(self) -> HOIDetector:
        """The detector whose weights predict: averaged where averaging is on."""
        if self.averaged is None:
            return self.model
        assert isinstance(self.averaged.module, HOIDetector)
        return self.averaged.module

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one step.

        Args:
            batch: this process's share of the batch, on its device, padded as far as the others.

        Returns:
            The weighted losses by name, their `total` and the `gradient`'s norm before clipping,
            still on the device. Averaged over the processes they are those of the whole batch.
            With several sources also "source/loss", what the source's images add to a loss, and
            "source/images", their number in this process.
        """
        self.optimizer.zero_grad(set_to_none=True)
        count = min(self.execution.accumulation, len(batch))
        ends = [len(batch) * part // count for part in range(count + 1)]
        parts = [slice(*rows) for rows in pairwise(ends)]
        losses = self._whole(batch) if len(parts) == 1 else self._in_parts(batch, parts)
        clip = self.recipe.train.clip_norm or torch.inf
        losses["gradient"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update(self.model)
        return {name: value.detach() for name, value in losses.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it beside the predictor's weights; see `FIELDS`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "averages": 0 if self.averaged is None else self.averaged.updates,
        }

    def restore(self, state: dict[str, Any], predictor: dict[str, Tensor]) -> None:
        """Takes back `state`, and the weights that predicted."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.averaged is not None:
            self.averaged.module.load_state_dict(predictor)
            self.averaged.updates = state["averages"]

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The criterion's weighted losses, the dense head's, their `total`, and the criterion's by
        source."""
        found = self.criterion(outputs, batch.targets)
        losses = dict(found.weighted)
        if "dense" in outputs:
            train = self.recipe.train
            dense = dense_losses(outputs["dense"], batch.targets, self.recipe.model.person)
            losses["dense_class"] = train.dense_class_weight * dense["dense_class"]
            losses["dense_box"] = train.dense_box_weight * dense["dense_box"]
        losses["total"] = torch.stack(list(losses.values())).sum()
        if self.sources:
            losses |= by_source(found.by_image, batch.targets.source[:, 0], self.sources)
        return losses

    def _whole(self, batch: Batch) -> dict[str, Tensor]:
        losses = self.losses(self._predict(batch, slice(None)), batch)
        losses["total"].backward()
        return losses

    def _in_parts(self, batch: Batch, parts: Sequence[slice]) -> dict[str, Tensor]:
        """Gradients of the parts' common loss, with the activations of one part at a time.

        What the losses are divided by is known when all parts have been predicted. So all but the
        last are predicted twice: first for the losses and their gradients at the outputs, then
        for the way back through the model (Gao et al. 2021, arXiv 2101.06983).
        """
        device = self.execution.device
        outputs, states = [], []
        for part in parts[:-1]:
            states.append(generators.capture(device))
            with torch.no_grad():
                outputs.append(self._predict(batch, part))
        with self._unsynchronised():
            outputs.append(self._predict(batch, parts[-1]))
        ends = [cut_off(output) for output in outputs]
        losses = self.losses(joined(ends), batch)
        losses["total"].backward()
        after = generators.capture(device)
        with self._unsynchronised():
            _send_back(outputs[-1], ends[-1])
        for row, (part, state, end) in enumerate(zip(parts[:-1], states, ends[:-1], strict=True)):
            generators.restore(state, device)
            is_last = row == len(parts) - 2
            with nullcontext() if is_last else self._unsynchronised():
                _send_back(self._predict(batch, part), end)
        generators.restore(after, device)
        return losses

    def _predict(self, batch: Batch, rows: slice) -> dict[str, Any]:
        device = self.execution.device
        images = batch.images(rows)
        with autocast(device, self.recipe.train.precision), attention_kernel(device):
            return self._forward(images)

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Gradients stay in this process until a backward pass outside of this."""
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()


def _send_back(output: Any, end: Any) -> None:
    """Backpropagates the gradients that gathered at `end`, where the output was cut off."""
    pairs = [
        (tensor, leaf.grad)
        for tensor, leaf in zip(tensors(output), tensors(end), strict=True)
        if leaf.grad is not None and tensor.requires_grad
    ]
    torch.autograd.backward([one for one, _ in pairs], [gradient for _, gradient in pairs])


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """The kernel of scaled dot-product attention to train with.

    On the CPU the fused kernel's backward pass takes longer than the plain products: a step of
    the world's student was 0.58 s with it and 0.29 s without (bfloat16, one core).
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


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
