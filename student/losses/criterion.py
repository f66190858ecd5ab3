"""The training losses of all decoder layers at once (EoID 3.4).

Pure: outputs and targets go in, numbers come out, nothing is written into either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn import functional as F

from student.config import LossConfig
from student.data.targets import Targets
from student.losses.box_ops import iou_and_giou
from student.losses.matcher import Matches, TwoStageMatcher
from student.models.proposal_queries import CELL_TOLERANCE, ProposalOutputs, grid_cell_centres
from student.utils.distributed import average_counts

EPSILON = 1e-4


@dataclass(frozen=True, eq=False)
class Losses:
    """What a batch costs.

    Attributes:
        by_name: every loss without its weight, (L,) over the decoder layers, the last one final.
        weighted: every loss with its weight, a scalar summed over the layers.
        by_image: what every image adds to these, (B,) without gradient.
        matches: the matching behind them.
    """

    by_name: dict[str, Tensor]
    weighted: dict[str, Tensor]
    by_image: dict[str, Tensor]
    matches: Matches

    @property
    def total(self) -> Tensor:
        """The sum to differentiate."""
        return torch.stack(list(self.weighted.values())).sum()


class Criterion:
    """Matches queries with pairs and compares them.

    Sums are divided by counts over the whole batch. With several processes every count is the
    average over them, so that the gradients' average is the gradient of the whole batch.

    Where nobody annotated interactions (`Targets.exhaustive_labels`), the absence of a label says
    nothing. Of such an image, queries that take a candidate learn its object, its boxes and the
    teacher's answers above 0, as everywhere. Others that overlap a candidate, a pair of which
    nobody knows what goes on in it, learn nothing. The rest, where the detector sees no pair,
    learns that there is none; verbs are no part of that.

    Args:
        matcher: matches queries with pairs; its distilled verbs are those of the soft verb loss.
        config: weights and forms of the losses.
    """

    def __init__(self, matcher: TwoStageMatcher, config: LossConfig) -> None:
        self.matcher, self.config = matcher, config
        self.num_distilled_verbs = int(matcher.distilled_verbs.sum())
        self.weights = {
            "object": config.object_weight,
            "human_box": config.box_weight,
            "object_box": config.box_weight,
            "human_giou": config.giou_weight,
            "object_giou": config.giou_weight,
            "verb_hard": config.verb_hard_weight,
            "verb_soft": config.verb_soft_weight,
            "interactive": config.interactive_weight,
            "matching": config.matching_weight,
            "embedding": config.embedding_weight,
        }

    def __call__(self, outputs: dict[str, Any], batch: Targets) -> Losses:
        """Losses of a batch.

        Args:
            outputs: the model's, `aux_outputs` included.
            batch: targets of its images, on the outputs' device.
        """
        layers = stack_layers(outputs)
        matches = self.matcher({name: value.detach() for name, value in layers.items()}, batch)
        supervised_mask = _supervised_mask(batch, matches)
        parts = {
            **_object_loss(
                layers["pred_object_logits"], batch, matches, supervised_mask, self.config
            ),
            **_box_losses(layers, batch, matches),
            **_verb_losses(
                layers["pred_verb_logits"], batch, matches, self.config, self.num_distilled_verbs
            ),
            "interactive": _interactive_loss(layers["pred_interactive_logits"], batch, matches),
        }
        if "pred_matching_logits" in layers:
            parts["matching"] = _matching_loss(
                layers["pred_matching_logits"], matches, supervised_mask
            )
        if "pred_verb_embeddings" in layers and batch.region_embeddings.shape[-1]:
            parts["embedding"] = _embedding_loss(layers["pred_verb_embeddings"], batch, matches)
        divided = _normalise(parts)
        by_name = {name: loss.sum(1) for name, loss in divided.items()}
        weighted = {name: self.weights[name] * loss.sum() for name, loss in by_name.items()}
        by_image = {n: self.weights[n] * loss.detach().sum(0) for n, loss in divided.items()}
        return Losses(by_name=by_name, weighted=weighted, by_image=by_image, matches=matches)


def stack_layers(outputs: dict[str, Any]) -> dict[str, Tensor]:
    """The model's `pred_*` outputs as float32 (L, B, Q, ...), auxiliary layers first.

    float32 keeps half-precision logits from overflowing on the way through exponentials.
    """
    layers = [*outputs["aux_outputs"], outputs]
    names = [name for name in outputs if name.startswith("pred_")]
    return {name: torch.stack([layer[name].float() for layer in layers]) for name in names}


@dataclass(frozen=True, eq=False)
class _LossTerm:
    """A loss on its way: sums, what they are divided by, and how that count is treated.

    Attributes:
        sums: (L, B) sums over every image of this process's batch.
        counts: (L,) counts of this process, averaged over processes before use.
        min_count: lower bound of the averaged count.
        offset: added to the whole batch's count.
        clamp_empty: divide by 1 where no process counts anything.
    """

    sums: Tensor
    counts: Tensor
    min_count: float = 0.0
    offset: float = 0.0
    clamp_empty: bool = False


def _normalise(parts: dict[str, _LossTerm]) -> dict[str, Tensor]:
    counts, processes = average_counts(torch.stack([part.counts for part in parts.values()]))
    divided = {}
    for (name, part), count in zip(parts.items(), counts, strict=True):
        if part.clamp_empty:
            count = torch.where(count > 0, count, 1 / processes)
        count = count.clamp(min=part.min_count) + part.offset / processes
        divided[name] = part.sums / count[:, None]
    return divided


def _supervised_mask(batch: Targets, matches: Matches) -> Tensor:
    """(L, B, Q) bool: queries of which it is known whether they have a pair."""
    supervised_mask = batch.exhaustive_labels[None] | ~matches.iou_mask.any(-1)
    return supervised_mask.index_put_(
        _matched_index(matches), torch.ones_like(matches.is_candidate)
    )


def _object_loss(
    logits: Tensor, batch: Targets, matches: Matches, supervised_mask: Tensor, config: LossConfig
) -> dict[str, _LossTerm]:
    """Cross-entropy over all queries; those without a pair are "no pair", at a low weight."""
    num_layers, no_pair = len(logits), logits.shape[-1] - 1
    labels = logits.new_full(logits.shape[:3], no_pair, dtype=torch.int64)
    labels[_matched_index(matches)] = batch.object_labels[matches.images, matches.targets]
    weights = torch.where(labels == no_pair, config.no_pair_weight, 1.0) * supervised_mask
    costs = functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none") * weights
    # The weights can add up to nothing when "no pair" weighs nothing and no query has a pair.
    counts = weights.view(num_layers, -1).sum(1)
    return {"object": _LossTerm(costs.sum(2), counts, min_count=EPSILON**2)}


def _box_losses(
    layers: dict[str, Tensor], batch: Targets, matches: Matches
) -> dict[str, _LossTerm]:
    """L1 and GIoU of matched boxes; pairs without object box have no object part."""
    shape = layers["pred_human_boxes"].shape[:2]
    rows, place = _matched_index(matches), (matches.images, matches.targets)
    object_boxes = batch.object_boxes[place]
    has_object = (object_boxes != 0).any(-1)

    def part(name: str, boxes: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        predicted = layers[name][rows]
        costs = (predicted - boxes).abs().sum(-1), 1 - iou_and_giou(predicted, boxes)[1]
        if counted is not None:
            costs = costs[0] * counted, costs[1] * counted
        return _sum_by_image(costs[0], matches, shape), _sum_by_image(costs[1], matches, shape)

    human_box, human_giou = part("pred_human_boxes", batch.human_boxes[place], None)
    object_box, object_giou = part("pred_object_boxes", object_boxes, has_object)
    pairs = human_box.new_full(shape[:1], matches.num_last_layer)
    objects = _sum_by_image(has_object.float(), matches, shape).sum(1)
    return {
        "human_box": _LossTerm(human_box, pairs, min_count=1),
        "human_giou": _LossTerm(human_giou, pairs, min_count=1),
        "object_box": _LossTerm(object_box, objects, offset=EPSILON),
        "object_giou": _LossTerm(object_giou, objects, offset=EPSILON),
    }


def _verb_losses(
    logits: Tensor,
    batch: Targets,
    matches: Matches,
    config: LossConfig,
    num_distilled_verbs: int,
) -> dict[str, _LossTerm]:
    """Hard part: labels and their absence. Soft part: the teacher's answers, the distillation.

    Which is which is decided by the label: a teacher's probability of 1 stays soft.
    """
    num_layers = len(logits)
    rows, place = _matched_index(matches), (matches.images, matches.targets)
    verb_labels = torch.zeros_like(logits)
    verb_labels[rows] = batch.verb_labels[place].float()
    teacher_probs = torch.zeros_like(logits)
    teacher_probs[rows] = torch.where(
        batch.verb_labels[place], 0.0, batch.teacher_probs[place].float()
    )
    is_soft = teacher_probs > 0

    hard_costs = functional.binary_cross_entropy_with_logits(logits, verb_labels, reduction="none")
    if config.verb_loss == "focal_bce":
        missed = (verb_labels - logits.sigmoid()).abs()
        balance = torch.where(verb_labels > 0, config.alpha, 1 - config.alpha)
        hard_costs = balance * missed**config.gamma * hard_costs
    soft_costs = functional.binary_cross_entropy_with_logits(
        logits, teacher_probs, reduction="none"
    )
    exhaustive_labels = batch.exhaustive_labels
    hard_sums = (hard_costs * ~is_soft * exhaustive_labels[None, :, None]).flatten(2).sum(2)
    soft_sums = (soft_costs * is_soft).flatten(2).sum(2)

    entries = logits.new_full((num_layers,), logits[0].numel())
    if config.verb_loss == "focal_bce":
        hard_part = _LossTerm(hard_sums, verb_labels.view(num_layers, -1).sum(1), clamp_empty=True)
    else:
        hard_part = _LossTerm(
            hard_sums, entries * exhaustive_labels.float().mean(), clamp_empty=True
        )
    if config.soft_normalisation == "entries":
        soft_part = _LossTerm(soft_sums, entries)
    else:
        answers = num_distilled_verbs if config.soft_normalisation == "supervised" else 1
        count = torch.full_like(entries, matches.num_last_layer * answers)
        soft_part = _LossTerm(soft_sums, count, min_count=1)
    return {"verb_hard": hard_part, "verb_soft": soft_part}


def _interactive_loss(logits: Tensor, batch: Targets, matches: Matches) -> _LossTerm:
    """Cross-entropy of the interactive score; queries on unlabelled pairs are left out."""
    wanted = (batch.seen & batch.interactive)[:, None, :]
    unlabelled = (batch.pair_mask & ~batch.seen)[:, None, :]
    positive = (matches.iou_mask & wanted).any(-1)
    positive[_matched_index(matches)] |= matches.is_candidate
    counted = positive | ~(matches.iou_mask & unlabelled).any(-1)
    costs = functional.cross_entropy(logits.movedim(-1, 1), positive.long(), reduction="none")
    return _LossTerm(
        (costs * counted).sum(2), counted.view(len(logits), -1).float().sum(1), clamp_empty=True
    )


def _matching_loss(logits: Tensor, matches: Matches, supervised_mask: Tensor) -> _LossTerm:
    """Cross-entropy of whether a query has a pair (CDN's matching head)."""
    matched = logits.new_zeros(logits.shape[:3], dtype=torch.int64)
    matched.index_put_(_matched_index(matches), torch.ones_like(matches.queries))
    costs = functional.cross_entropy(logits.movedim(-1, 1), matched, reduction="none")
    counts = supervised_mask.view(len(logits), -1).float().sum(1)
    return _LossTerm((costs * supervised_mask).sum(2), counts, clamp_empty=True)


def _embedding_loss(predicted: Tensor, batch: Targets, matches: Matches) -> _LossTerm:
    """One minus the cosine between a matched query and what the teacher saw of its pair; pairs
    that the teacher did not look at are left out."""
    wanted = batch.region_embeddings[matches.images, matches.targets].float()
    known = (wanted != 0).any(-1).float()
    costs = (
        1 - functional.cosine_similarity(predicted[_matched_index(matches)], wanted, dim=-1)
    ) * known
    shape = predicted.shape[:2]
    counts = _sum_by_image(known, matches, shape).sum(1)
    return _LossTerm(_sum_by_image(costs, matches, shape), counts, clamp_empty=True)


def _matched_index(matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the matched queries in (L, B, Q, ...) tensors."""
    return matches.layers, matches.images, matches.queries


def _sum_by_image(values: Tensor, matches: Matches, shape: Sequence[int]) -> Tensor:
    """Sums the (M,) values of matched pairs over each layer and image, (L, B)."""
    num_layers, num_images = shape
    rows = matches.layers * num_images + matches.images
    sums = values.new_zeros(num_layers * num_images).index_add(0, rows, values)
    return sums.view(num_layers, num_images)


def proposal_losses(proposals: ProposalOutputs, targets: Targets, person: int) -> dict[str, Tensor]:
    """Losses of the proposal head against a detector's boxes.

    Centres are marked by a Gaussian bump and scored by a focal loss that forgives the bump's
    slope; boxes are compared in the centre cell (CenterNet, arXiv 1904.07850, section 4).

    Args:
        proposals: the head's answer.
        targets: of the batch, with the detector's boxes.
        person: class index of people.

    Returns:
        Scalars `proposal_class` and `proposal_box`, each divided by the batch's number of detected
        boxes, averaged over processes.
    """
    batch, num_classes, height, width = proposals.logits.shape
    device = proposals.logits.device
    image, label, box = targets.detected_images, targets.detected_labels, targets.detected_boxes
    counted, processes = average_counts(torch.full((), float(len(label)), device=device))
    count = counted.clamp(min=1 / processes)
    grid = proposals.grid_sizes()[image]
    cell = (box[:, :2] * grid).long().clamp(min=0)
    cell = torch.minimum(cell, (grid - CELL_TOLERANCE).ceil().long() - 1)
    centres = grid_cell_centres(height, width, device) / proposals.valid_ratios[image].view(
        -1, 2, 1, 1
    )
    # The slope is as wide as a sixth of the box, at least half a cell.
    spread = torch.maximum(box[:, 2:] / 6, 0.5 / grid).view(-1, 2, 1, 1)
    offset = (centres - ((cell + 0.5) / grid).view(-1, 2, 1, 1)) / spread
    bump = torch.exp(-0.5 * offset.square().sum(1))
    heat = torch.zeros(batch * num_classes, height, width, device=device)
    rows = image * num_classes + label
    heat = heat.scatter_reduce(0, rows.view(-1, 1, 1).expand_as(bump), bump, "amax")
    heat = heat.view(batch, num_classes, height, width)
    probability = proposals.logits.sigmoid()
    positive = heat >= 1 - 1e-6
    loss = torch.where(
        positive,
        -((1 - probability) ** 2) * F.logsigmoid(proposals.logits),
        -((1 - heat) ** 4) * probability**2 * F.logsigmoid(-proposals.logits),
    )
    loss = loss.where(proposals.valid_cells(), 0)
    branch = (label != person).long()
    predicted = proposals.boxes[image, branch, :, cell[:, 1], cell[:, 0]]
    distance = (predicted - box).abs().sum() + (1 - iou_and_giou(predicted, box)[1]).sum()
    return {"proposal_class": loss.sum() / count, "proposal_box": distance / count}


# Beside the losses of each source: how many of a step's images are its own.
IMAGE_COUNT = "images"


def sum_by_dataset(
    values: dict[str, Tensor], numbers: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """Sums by source.

    Args:
        values: (B,) of every image, by name.
        numbers: (B,) of the images' sources.
        names: of the sources.

    Returns:
        "source/name" of every value, and "source/images", how many there are.
    """
    table = torch.stack([*values.values(), torch.ones_like(next(iter(values.values())))])
    rows = functional.one_hot(numbers, len(names)).to(table.dtype)
    return {
        f"{source}/{name}": number
        for source, column in zip(names, (table @ rows).unbind(1), strict=True)
        for name, number in zip([*values, IMAGE_COUNT], column.unbind(), strict=True)
    }
