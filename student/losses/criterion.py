"""The training losses of all decoder layers (EoID 3.4), and those of the proposal head.

The losses are those of DETR and CDN for objects, boxes and pairs, a focal loss for verb labels, and
the distillation loss for the teacher's verb probabilities. `student.losses.matcher` decides which
queries it is computed for (the interactive threshold). All layers are computed at once, and
neither outputs nor targets are modified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from student.config import LossConfig
from student.data.targets import Targets
from student.losses.box_ops import iou_and_giou
from student.losses.matcher import QueryMatches, TwoStageMatcher
from student.models.proposal_queries import CELL_TOLERANCE, ProposalOutputs, grid_cell_centres
from student.utils.distributed import average_counts

# Added to the number of object boxes, as in the published code.
EPSILON = 1e-4
# Name of the number of images beside the losses of each dataset; see `sum_by_dataset`.
IMAGE_COUNT = "images"
# Losses on the teacher's region embeddings, and the outputs of the text heads that have them.
EMBEDDING_TERMS = {
    "embedding": "pred_verb_embeddings",
    "object_embedding": "pred_object_embeddings",
}


@dataclass(frozen=True, eq=False)
class Losses:
    """Loss terms of one batch.

    Attributes:
        by_name: (L,) every term without its weight, by decoder layer, the final layer last.
        weighted: scalars, every term with its weight, summed over the layers.
        by_image: (B,) contributions of the images to `weighted`, without gradient.
        matches: the matches of queries and pairs.
    """

    by_name: dict[str, Tensor]
    weighted: dict[str, Tensor]
    by_image: dict[str, Tensor]
    matches: QueryMatches


class Criterion:
    """Matches queries with pairs and computes the losses between them.

    Sums are divided by counts over the whole batch. With several processes every count is averaged
    over them, so that the average of their gradients is the gradient of the whole batch.

    In an image whose interactions are not annotated (`Targets.exhaustive_labels` is False) a
    missing label is no evidence:

    - Queries that are matched with a candidate have the object, box and soft verb losses, as in
      every image, but no hard verb loss.
    - Other queries that overlap a candidate have no loss.
    - The remaining queries, at places where the detector found no pair, have the object class "no
      pair" and are not interactive, but have no verb loss.

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
            "object_embedding": config.embedding_weight,
        }

    def __call__(self, outputs: dict[str, Any], batch: Targets) -> Losses:
        """Losses of the outputs of `HOIDetector.forward` against the batch's targets."""
        layers = stack_layers(outputs)
        matches = self.matcher({name: value.detach() for name, value in layers.items()}, batch)
        mask, config = _supervised_mask(batch, matches), self.config
        verb_logits = layers["pred_verb_logits"]
        terms = {
            "object": _object_loss(layers["pred_object_logits"], batch, matches, mask, config),
            **_box_losses(layers, batch, matches),
            **_verb_losses(verb_logits, batch, matches, config, self.num_distilled_verbs),
            "interactive": _interactive_loss(layers["pred_interactive_logits"], batch, matches),
        }
        if "pred_matching_logits" in layers:
            terms["matching"] = _matching_loss(layers["pred_matching_logits"], matches, mask)
        for name, output in EMBEDDING_TERMS.items():
            if output in layers and batch.region_embeddings.shape[-1]:
                terms[name] = _embedding_loss(layers[output], batch, matches)
        losses = _normalise(terms)
        by_name = {name: loss.sum(1) for name, loss in losses.items()}
        weighted = {name: self.weights[name] * loss.sum() for name, loss in by_name.items()}
        by_image = {n: self.weights[n] * loss.detach().sum(0) for n, loss in losses.items()}
        return Losses(by_name=by_name, weighted=weighted, by_image=by_image, matches=matches)


def stack_layers(outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Stacks the model's `pred_*` outputs as float32 (L, B, Q, ...), the final layer last.

    In half precision the exponentials of large logits would overflow.
    """
    layers = [*outputs["aux_outputs"], outputs]
    names = [name for name in outputs if name.startswith("pred_")]
    return {name: torch.stack([layer[name].float() for layer in layers]) for name in names}


@dataclass(frozen=True, eq=False)
class _LossTerm:
    """A loss term before normalisation.

    Attributes:
        sums: (L, B) sums over the queries of every image of this process.
        counts: (L,) divisors of this process; they are averaged over processes before use.
        min_count: lower bound of the averaged count.
        offset: added to the count of the whole batch.
        clamp_empty: divide by 1 where the count of the whole batch is 0.
    """

    sums: Tensor
    counts: Tensor
    min_count: float = 0.0
    offset: float = 0.0
    clamp_empty: bool = False


def _normalise(terms: dict[str, _LossTerm]) -> dict[str, Tensor]:
    """Divides every term by its count: (L, B) by name. Counts of processes are averaged in one
    reduction."""
    counts, processes = average_counts(torch.stack([term.counts for term in terms.values()]))
    losses = {}
    for (name, term), count in zip(terms.items(), counts, strict=True):
        # 1 / processes and offset / processes are averages too: 1 and offset of the whole batch.
        if term.clamp_empty:
            count = torch.where(count > 0, count, 1 / processes)
        count = count.clamp(min=term.min_count) + term.offset / processes
        losses[name] = term.sums / count[:, None]
    return losses


def _supervised_mask(batch: Targets, matches: QueryMatches) -> Tensor:
    """(L, B, Q) bool, False for queries of which it is unknown whether they have a pair."""
    supervised_mask = batch.exhaustive_labels[None] | ~matches.iou_mask.any(-1)
    return supervised_mask.index_put_(matches.query_index, torch.ones_like(matches.is_candidate))


def _object_loss(
    logits: Tensor,
    batch: Targets,
    matches: QueryMatches,
    supervised_mask: Tensor,
    config: LossConfig,
) -> _LossTerm:
    """Weighted cross-entropy of the object class; unmatched queries have the class "no pair"."""
    num_layers, no_pair = len(logits), logits.shape[-1] - 1
    labels = logits.new_full(logits.shape[:3], no_pair, dtype=torch.int64)
    labels[matches.query_index] = batch.object_labels[matches.target_index]
    weights = torch.where(labels == no_pair, config.no_pair_weight, 1.0) * supervised_mask
    losses = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none") * weights
    # The sum of the weights is 0 where `no_pair_weight` is 0 and no query is matched.
    counts = weights.view(num_layers, -1).sum(1)
    return _LossTerm(losses.sum(2), counts, min_count=EPSILON**2)


def _box_losses(
    layers: dict[str, Tensor], batch: Targets, matches: QueryMatches
) -> dict[str, _LossTerm]:
    """L1 and GIoU losses of matched boxes; a verb without object (V-COCO) has no object term."""
    shape = layers["pred_human_boxes"].shape[:2]
    query_index, target_index = matches.query_index, matches.target_index
    object_boxes = batch.object_boxes[target_index]
    has_object = (object_boxes != 0).any(-1)

    def box_sums(name: str, boxes: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        predicted = layers[name][query_index]
        l1, giou_loss = (predicted - boxes).abs().sum(-1), 1 - iou_and_giou(predicted, boxes)[1]
        if mask is not None:
            l1, giou_loss = l1 * mask, giou_loss * mask
        return _sum_by_image(l1, matches, shape), _sum_by_image(giou_loss, matches, shape)

    human_l1, human_giou = box_sums("pred_human_boxes", batch.human_boxes[target_index], None)
    object_l1, object_giou = box_sums("pred_object_boxes", object_boxes, has_object)
    num_pairs = human_l1.new_full(shape[:1], matches.num_last_layer)
    num_objects = _sum_by_image(has_object.float(), matches, shape).sum(1)
    return {
        "human_box": _LossTerm(human_l1, num_pairs, min_count=1),
        "human_giou": _LossTerm(human_giou, num_pairs, min_count=1),
        "object_box": _LossTerm(object_l1, num_objects, offset=EPSILON),
        "object_giou": _LossTerm(object_giou, num_objects, offset=EPSILON),
    }


def _verb_losses(
    logits: Tensor,
    batch: Targets,
    matches: QueryMatches,
    config: LossConfig,
    num_distilled_verbs: int,
) -> dict[str, _LossTerm]:
    """The verb losses of all layers.

    Hard part: binary cross-entropy, with focal weights in the published form, between all entries
    that have no soft target and the labels; queries without pair have only negative labels. Soft
    part, the distillation: binary cross-entropy between the matched queries' entries and the
    teacher's probabilities. The labels decide which part an entry belongs to, so that a teacher
    probability of 1 is a soft target too.
    """
    num_layers = len(logits)
    query_index, target_index = matches.query_index, matches.target_index
    labels = torch.zeros_like(logits)
    labels[query_index] = batch.verb_labels[target_index].float()
    teacher_probs = torch.zeros_like(logits)
    teacher_probs[query_index] = torch.where(
        batch.verb_labels[target_index], 0.0, batch.teacher_probs[target_index].float()
    )
    is_soft = teacher_probs > 0

    hard_losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if config.verb_loss == "focal_bce":
        error = (labels - logits.sigmoid()).abs()
        balance = torch.where(labels > 0, config.alpha, 1 - config.alpha)
        hard_losses = balance * error**config.gamma * hard_losses
    soft_losses = F.binary_cross_entropy_with_logits(logits, teacher_probs, reduction="none")
    exhaustive_labels = batch.exhaustive_labels
    hard_sums = (hard_losses * ~is_soft * exhaustive_labels[None, :, None]).flatten(2).sum(2)
    soft_sums = (soft_losses * is_soft).flatten(2).sum(2)

    num_entries = logits.new_full((num_layers,), logits[0].numel())
    if config.verb_loss == "focal_bce":
        hard_counts = labels.view(num_layers, -1).sum(1)
    else:
        hard_counts = num_entries * exhaustive_labels.float().mean()
    hard_term = _LossTerm(hard_sums, hard_counts, clamp_empty=True)
    if config.soft_normalisation == "entries":
        # The mean over all B*Q*V entries of the published code, of which few are soft: hence the
        # published weight of 700.
        soft_term = _LossTerm(soft_sums, num_entries)
    else:
        per_pair = num_distilled_verbs if config.soft_normalisation == "supervised" else 1
        soft_counts = torch.full_like(num_entries, matches.num_last_layer * per_pair)
        soft_term = _LossTerm(soft_sums, soft_counts, min_count=1)
    return {"verb_hard": hard_term, "verb_soft": soft_term}


def _interactive_loss(logits: Tensor, batch: Targets, matches: QueryMatches) -> _LossTerm:
    """Cross-entropy of the interactive score.

    Positive are queries that overlap an interactive seen pair or are matched with a candidate.
    Other queries that overlap a candidate have no loss, since its interactions are unknown.
    """
    interactive = (batch.seen & batch.interactive)[:, None, :]
    candidate = (batch.pair_mask & ~batch.seen)[:, None, :]
    positive = (matches.iou_mask & interactive).any(-1)
    positive[matches.query_index] |= matches.is_candidate
    mask = positive | ~(matches.iou_mask & candidate).any(-1)
    losses = F.cross_entropy(logits.movedim(-1, 1), positive.long(), reduction="none")
    counts = mask.view(len(logits), -1).float().sum(1)
    return _LossTerm((losses * mask).sum(2), counts, clamp_empty=True)


def _matching_loss(logits: Tensor, matches: QueryMatches, supervised_mask: Tensor) -> _LossTerm:
    """Cross-entropy of whether a query is matched with a pair (CDN's matching head)."""
    labels = logits.new_zeros(logits.shape[:3], dtype=torch.int64)
    labels.index_put_(matches.query_index, torch.ones_like(matches.queries))
    losses = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    counts = supervised_mask.view(len(logits), -1).float().sum(1)
    return _LossTerm((losses * supervised_mask).sum(2), counts, clamp_empty=True)


def _embedding_loss(predicted: Tensor, batch: Targets, matches: QueryMatches) -> _LossTerm:
    """One minus the cosine similarity between a matched query's embedding and the teacher's
    embedding of the pair's region; pairs without a teacher embedding have no loss."""
    embeddings = batch.region_embeddings[matches.target_index].float()
    mask = (embeddings != 0).any(-1).float()
    cosines = F.cosine_similarity(predicted[matches.query_index], embeddings, dim=-1)
    shape = predicted.shape[:2]
    counts = _sum_by_image(mask, matches, shape).sum(1)
    return _LossTerm(_sum_by_image((1 - cosines) * mask, matches, shape), counts, clamp_empty=True)


def _sum_by_image(values: Tensor, matches: QueryMatches, shape: Sequence[int]) -> Tensor:
    """Sums (M,) values of the matches over each layer and image: (L, B), which is `shape`."""
    num_layers, num_images = shape
    rows = matches.layers * num_images + matches.images
    sums = values.new_zeros(num_layers * num_images).index_add(0, rows, values)
    return sums.view(num_layers, num_images)


def proposal_losses(proposals: ProposalOutputs, targets: Targets, person: int) -> dict[str, Tensor]:
    """Losses of the proposal head against the boxes of the teacher cache's detector, and against
    those of seen pairs that it missed.

    As in CenterNet (arXiv 1904.07850, sections 3 and 4), every box is a Gaussian peak in the
    heatmap of its class, the logits have a penalty-reduced focal loss, and the predicted box of the
    centre's cell has an L1 and a GIoU loss.

    Returns:
        Scalars `proposal_class` and `proposal_box`, each divided by the batch's number of these
        boxes, averaged over processes.
    """
    batch, num_classes, height, width = proposals.logits.shape
    device = proposals.logits.device
    image, label, box = targets.proposal_images, targets.proposal_labels, targets.proposal_boxes
    average_count, processes = average_counts(torch.full((), float(len(label)), device=device))
    count = average_count.clamp(min=1 / processes)
    grid = proposals.grid_sizes()[image]
    cell = (box[:, :2] * grid).long().clamp(min=0)
    cell = torch.minimum(cell, (grid - CELL_TOLERANCE).ceil().long() - 1)
    ratios = proposals.valid_ratios[image].view(-1, 2, 1, 1)
    cell_centres = grid_cell_centres(height, width, device) / ratios
    # A box ends three standard deviations from its centre, but these are at least half a cell.
    sigma = torch.maximum(box[:, 2:] / 6, 0.5 / grid).view(-1, 2, 1, 1)
    offset = (cell_centres - ((cell + 0.5) / grid).view(-1, 2, 1, 1)) / sigma
    peak = torch.exp(-0.5 * offset.square().sum(1))
    heatmap = torch.zeros(batch * num_classes, height, width, device=device)
    rows = image * num_classes + label
    heatmap = heatmap.scatter_reduce(0, rows.view(-1, 1, 1).expand_as(peak), peak, "amax")
    heatmap = heatmap.view(batch, num_classes, height, width)
    probability = proposals.logits.sigmoid()
    # The peak's own cell; its offset is 0 up to rounding.
    positive = heatmap >= 1 - 1e-6
    class_loss = torch.where(
        positive,
        -((1 - probability) ** 2) * F.logsigmoid(proposals.logits),
        -((1 - heatmap) ** 4) * probability**2 * F.logsigmoid(-proposals.logits),
    )
    class_loss = class_loss.where(proposals.valid_cells(), 0)
    branch = (label != person).long()
    predicted = proposals.boxes[image, branch, :, cell[:, 1], cell[:, 0]]
    box_loss = (predicted - box).abs().sum() + (1 - iou_and_giou(predicted, box)[1]).sum()
    return {"proposal_class": class_loss.sum() / count, "proposal_box": box_loss / count}


def sum_by_dataset(
    values: dict[str, Tensor], indices: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """Sums (B,) values of images, by name, over each dataset.

    Args:
        values: values of every image.
        indices: (B,) int64, the images' datasets.
        names: names of all datasets.

    Returns:
        Scalars "dataset/name" for every value, and "dataset/images", the number of images.
    """
    table = torch.stack([*values.values(), torch.ones_like(next(iter(values.values())))])
    sums = table @ F.one_hot(indices, len(names)).to(table.dtype)
    return {
        f"{dataset}/{name}": value
        for dataset, column in zip(names, sums.unbind(1), strict=True)
        for name, value in zip([*values, IMAGE_COUNT], column.unbind(), strict=True)
    }
