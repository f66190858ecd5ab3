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
from torch.optim.lr_scheduler import LRScheduler

from pipeline.utils.devices import autocast
from student.config import Recipe
from student.data.dataset import Batch
from student.engine.optimizer import ModelEMA
from student.losses.criterion import Criterion, proposal_losses, sum_by_dataset
from student.models.detector import HOIDetector
from student.utils import seeding
from student.utils.distributed import Execution, wrap_ddp


class TrainStep:
    """Everything that a step changes: weights, their average, the optimiser's state, the rate.

    A batch may come in parts, over processes and, on each, one after the other. The losses are
    those of the whole batch all the same: images are padded as far as in one batch, and sums are
    divided by counts over all processes and parts. What differs is rounding and dropout's draws.

    Args:
        recipe: all settings.
        model: the detector to train, on its device.
        criterion: losses of the model's outputs; its tensors are on the same device.
        optimizer: over the model's parameters.
        scheduler: the optimizer's learning rate, advanced by every step.
        execution: device, processes, accumulation and compilation.
        ema: averaged copy of the model, updated by every step; None without averaging.
        source_names: names of the datasets that samples come from, in the order of their indices;
            empty with one dataset.
    """

    STATE_FIELDS = ("model", "optimizer", "scheduler", "averages")

    def __init__(
        self,
        recipe: Recipe,
        model: HOIDetector,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        execution: Execution,
        ema: ModelEMA | None = None,
        source_names: Sequence[str] = (),
    ) -> None:
        self.recipe, self.model, self.execution = recipe, model, execution
        self.criterion, self.optimizer, self.scheduler = criterion, optimizer, scheduler
        self.ema, self.source_names = ema, source_names
        self._forward: Any = torch.compile(model) if execution.compiled else model
        if execution.context.world_size > 1:
            self._forward = wrap_ddp(self._forward, execution.device)

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of everything but the backbone."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def eval_model(self) -> HOIDetector:
        """The detector whose weights predict: averaged where averaging is on."""
        if self.ema is None:
            return self.model
        assert isinstance(self.ema.module, HOIDetector)
        return self.ema.module

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
        losses = self._full_batch(batch) if len(parts) == 1 else self._accumulated(batch, parts)
        clip = self.recipe.train.clip_norm or torch.inf
        losses["gradient"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return {name: value.detach() for name, value in losses.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights of `eval_model`; see `STATE_FIELDS`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "averages": 0 if self.ema is None else self.ema.updates,
        }

    def restore(self, state: dict[str, Any], eval_weights: dict[str, Tensor]) -> None:
        """Takes back `state`, and the weights that predicted."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(eval_weights)
            self.ema.updates = state["averages"]

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The criterion's weighted losses, the proposal head's, their `total`, and the criterion's
        by source."""
        found = self.criterion(outputs, batch.targets)
        losses = dict(found.weighted)
        if "proposals" in outputs:
            train = self.recipe.train
            proposal = proposal_losses(
                outputs["proposals"], batch.targets, self.recipe.model.person
            )
            losses["proposal_class"] = train.proposal_class_weight * proposal["proposal_class"]
            losses["proposal_box"] = train.proposal_box_weight * proposal["proposal_box"]
        losses["total"] = torch.stack(list(losses.values())).sum()
        if self.source_names:
            losses |= sum_by_dataset(
                found.by_image, batch.targets.dataset_index[:, 0], self.source_names
            )
        return losses

    def _full_batch(self, batch: Batch) -> dict[str, Tensor]:
        losses = self.losses(self._predict(batch, slice(None)), batch)
        losses["total"].backward()
        return losses

    def _accumulated(self, batch: Batch, parts: Sequence[slice]) -> dict[str, Tensor]:
        """Gradients of the parts' common loss, with the activations of one part at a time.

        What the losses are divided by is known when all parts have been predicted. So all but the
        last are predicted twice: first for the losses and their gradients at the outputs, then
        for the way back through the model (Gao et al. 2021, arXiv 2101.06983).
        """
        device = self.execution.device
        outputs, states = [], []
        for part in parts[:-1]:
            states.append(seeding.rng_state(device))
            with torch.no_grad():
                outputs.append(self._predict(batch, part))
        with self._no_sync():
            outputs.append(self._predict(batch, parts[-1]))
        ends = [detach_leaves(output) for output in outputs]
        losses = self.losses(cat_outputs(ends), batch)
        losses["total"].backward()
        after = seeding.rng_state(device)
        with self._no_sync():
            backward_from(outputs[-1], ends[-1])
        for row, (part, state, end) in enumerate(zip(parts[:-1], states, ends[:-1], strict=True)):
            seeding.set_rng_state(state, device)
            is_last = row == len(parts) - 2
            with nullcontext() if is_last else self._no_sync():
                backward_from(self._predict(batch, part), end)
        seeding.set_rng_state(after, device)
        return losses

    def _predict(self, batch: Batch, rows: slice) -> dict[str, Any]:
        device = self.execution.device
        images = batch.images(rows)
        with autocast(device, self.recipe.train.precision), attention_kernel(device):
            return self._forward(images)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Gradients stay in this process until a backward pass outside of this."""
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()


def backward_from(output: Any, end: Any) -> None:
    """Backpropagates the gradients that gathered at `end`, where the output was cut off."""
    pairs = [
        (tensor, leaf.grad)
        for tensor, leaf in zip(tree_leaves(output), tree_leaves(end), strict=True)
        if leaf.grad is not None and tensor.requires_grad
    ]
    torch.autograd.backward([one for one, _ in pairs], [gradient for _, gradient in pairs])


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """The kernel of scaled dot-product attention to train with.

    On the CPU the fused kernel's backward pass takes longer than the plain products: a step of
    the toy student was 0.58 s with it and 0.29 s without (bfloat16, one core).
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


LeafFunction = Callable[[list[Tensor]], Tensor]


def tree_map(function: LeafFunction, outputs: Sequence[Any]) -> Any:
    """Outputs of one form become one of the same form, tensor by tensor.

    Args:
        function: makes one tensor of those that stand at the same place.
        outputs: at least one.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return function(list(outputs))
    if isinstance(first, dict):
        return {name: tree_map(function, [one[name] for one in outputs]) for name in first}
    if isinstance(first, list):
        return [tree_map(function, list(row)) for row in zip(*outputs, strict=True)]
    assert is_dataclass(first) and not isinstance(first, type)
    names = [entry.name for entry in fields(first)]
    return type(first)(
        **{name: tree_map(function, [getattr(one, name) for one in outputs]) for name in names}
    )


def tree_leaves(output: Any) -> list[Tensor]:
    """All tensors of an output, in a fixed order."""
    found: list[Tensor] = []

    def collect(alone: list[Tensor]) -> Tensor:
        found.append(alone[0])
        return alone[0]

    tree_map(collect, [output])
    return found


def cat_outputs(outputs: Sequence[Any]) -> Any:
    """Outputs of parts of a batch as the output of the whole, images in order."""
    return tree_map(torch.cat, outputs)


def detach_leaves(output: Any) -> Any:
    """The same numbers without their history; gradients gather in the new tensors."""
    return tree_map(lambda alone: alone[0].detach().requires_grad_(), [output])
