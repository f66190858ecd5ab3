"""`TrainStep`: forward pass, losses, gradient accumulation, clipping and update of one step.

A batch can be divided over processes and, within a process, into parts. The losses are those of
the whole batch nevertheless: images are padded to one size, and sums are divided by counts over all
processes and parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.splits import Split
from pipeline.utils.devices import autocast
from student.config import Recipe
from student.data.dataset import Batch
from student.engine.optimizer import (
    ModelEMA,
    build_optimizer,
    build_schedule,
    freeze_parameters,
)
from student.losses.criterion import Criterion, proposal_losses, sum_by_dataset
from student.losses.matcher import CandidateCounts, TwoStageMatcher
from student.models.backbone import pixel_statistics
from student.models.detector import HOIDetector
from student.utils import seeding
from student.utils.distributed import Execution, wrap_ddp


class TrainStep:
    """One optimisation step, and all state that it changes.

    Dividing a batch over processes or parts changes the result only by rounding, and by the random
    numbers of dropout.

    Args:
        recipe: all settings.
        model: the detector to train, which is moved to the device.
        split: the split whose distilled verbs have a soft loss.
        steps_per_epoch: number of steps of an epoch, for the schedule.
        execution: device, processes, accumulation and compilation.
        dataset_names: names of the datasets that samples come from, in the order of their indices;
            empty with one dataset.

    Attributes:
        candidate_counts: candidate pairs of this process's share of the last batch, by the
            conditions of the matching.
    """

    STATE_FIELDS = ("model", "optimizer", "scheduler", "averages")

    def __init__(
        self,
        recipe: Recipe,
        model: HOIDetector,
        split: Split,
        steps_per_epoch: int,
        execution: Execution,
        dataset_names: Sequence[str] = (),
    ) -> None:
        self.recipe, self.execution, self.dataset_names = recipe, execution, dataset_names
        self.steps_per_epoch = steps_per_epoch
        train, device = recipe.train, execution.device
        freeze_parameters(model, train)
        # Convolutions are faster in this memory format, on CPUs and GPUs.
        self.model = model.to(device).to(memory_format=torch.channels_last)
        distilled_verbs = torch.from_numpy(split.distilled_verbs).to(device)
        self.matcher = TwoStageMatcher(recipe.matcher, distilled_verbs)
        self.criterion = Criterion(self.matcher, recipe.losses)
        self.optimizer = build_optimizer(model, train, device)
        self.scheduler = build_schedule(self.optimizer, train, steps_per_epoch)
        self.ema = ModelEMA(model, train.ema) if train.ema else None
        self.candidate_counts = CandidateCounts(0, 0, 0, 0)
        self._forward: Any = torch.compile(model) if execution.compiled else model
        if execution.context.world_size > 1:
            self._forward = wrap_ddp(self._forward, execution.device)

    @property
    def learning_rates(self) -> dict[str, float]:
        """`lr` and `backbone_lr`, the learning rates of the next step."""
        other, backbone = self.optimizer.param_groups
        return {"lr": other["lr"], "backbone_lr": backbone["lr"]}

    @property
    def interactive_threshold(self) -> float:
        """The minimum interactive probability of the next step, which rises during its warm-up."""
        matcher = self.recipe.matcher
        warmup = matcher.interactive_warmup * self.steps_per_epoch
        done = self.scheduler.last_epoch / warmup if warmup else 1.0
        return matcher.interactive_threshold * min(1.0, done)

    @property
    def eval_model(self) -> HOIDetector:
        """The detector to predict with: with EMA the averaged one."""
        if self.ema is None:
            return self.model
        assert isinstance(self.ema.module, HOIDetector)
        return self.ema.module

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one step.

        Args:
            batch: this process's share of the batch, on its device, padded to the size of the
                whole batch.

        Returns:
            Scalars on the device: the weighted losses by name, their `total`, and `gradient`, the
            gradient's norm before clipping. Their means over the processes are those of the whole
            batch. With several datasets also "dataset/loss", the part of a loss that a dataset's
            images contribute, and "dataset/images", their number in this process.
        """
        self.matcher.interactive_threshold = self.interactive_threshold
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
        """The state to be saved beside the weights of `eval_model`; its keys are `STATE_FIELDS`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "averages": 0 if self.ema is None else self.ema.updates,
        }

    def restore(self, state: dict[str, Any], eval_weights: dict[str, Tensor]) -> None:
        """Restores the result of `state()`, and `eval_model` from its state dict."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(eval_weights)
            self.ema.updates = state["averages"]

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Weighted losses of a batch, see `__call__`, from the model's outputs."""
        computed = self.criterion(outputs, batch.targets)
        self.candidate_counts = computed.matches.candidate_counts
        losses = dict(computed.weighted)
        if "proposals" in outputs:
            train = self.recipe.train
            proposal = proposal_losses(
                outputs["proposals"], batch.targets, self.recipe.model.person
            )
            losses["proposal_class"] = train.proposal_class_weight * proposal["proposal_class"]
            losses["proposal_box"] = train.proposal_box_weight * proposal["proposal_box"]
        losses["total"] = torch.stack(list(losses.values())).sum()
        if self.dataset_names:
            losses |= sum_by_dataset(
                computed.by_image, batch.targets.dataset_index[:, 0], self.dataset_names
            )
        return losses

    def _full_batch(self, batch: Batch) -> dict[str, Tensor]:
        losses = self.losses(self._predict(batch, slice(None)), batch)
        losses["total"].backward()
        return losses

    def _accumulated(self, batch: Batch, parts: Sequence[slice]) -> dict[str, Tensor]:
        """Gradients of the whole batch's losses with the activations of one part at a time.

        The losses' denominators are known only after the forward pass of all parts. Therefore all
        parts but the last are computed twice: first without graph, to obtain the losses and their
        gradients with respect to the outputs, and then with graph, to backpropagate these through
        the model (gradient cache, Gao et al. 2021, arXiv 2101.06983). The random states of the
        first pass are restored for the second, so that dropout draws the same numbers.
        """
        device = self.execution.device
        outputs, states = [], []
        for part in parts[:-1]:
            states.append(seeding.rng_state(device))
            with torch.no_grad():
                outputs.append(self._predict(batch, part))
        with self._no_sync():
            outputs.append(self._predict(batch, parts[-1]))
        leaves = [detach_leaves(output) for output in outputs]
        losses = self.losses(cat_outputs(leaves), batch)
        losses["total"].backward()
        final_state = seeding.rng_state(device)
        with self._no_sync():
            backward_from(outputs[-1], leaves[-1])
        for index, (part, state) in enumerate(zip(parts[:-1], states, strict=True)):
            seeding.set_rng_state(state, device)
            # DDP averages the accumulated gradients in the last backward pass.
            is_last = index == len(parts) - 2
            with nullcontext() if is_last else self._no_sync():
                backward_from(self._predict(batch, part), leaves[index])
        seeding.set_rng_state(final_state, device)
        return losses

    def _predict(self, batch: Batch, rows: slice) -> dict[str, Any]:
        device = self.execution.device
        images = batch.images(rows, pixel_statistics(self.model.backbone))
        with autocast(device, self.recipe.train.precision), attention_kernel(device):
            return self._forward(images)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Within, DDP accumulates gradients without averaging them over the processes."""
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()


def cat_outputs(outputs: Sequence[Any]) -> Any:
    """Concatenates the outputs of parts of a batch along the images."""
    return tree_map(lambda *parts: torch.cat(parts), *outputs)


def detach_leaves(output: Any) -> Any:
    """A copy of an output whose tensors are leaves of a new graph and collect gradients."""
    return tree_map(lambda tensor: tensor.detach().requires_grad_(), output)


def backward_from(output: Any, leaf_output: Any) -> None:
    """Backpropagates the gradients accumulated in `detach_leaves(output)` through `output`."""
    pairs = [
        (tensor, leaf.grad)
        for tensor, leaf in zip(tree_leaves(output), tree_leaves(leaf_output), strict=True)
        if leaf.grad is not None and tensor.requires_grad
    ]
    torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """Selects the kernel of scaled dot-product attention for training.

    On the CPU the backward pass of the fused kernel is slower than plain matrix products: a step of
    the toy student took 0.58 s with it and 0.29 s without (bfloat16, one core).
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
