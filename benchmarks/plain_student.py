"""A straightforward second implementation of the student's training, to compare losses with.

Matching and losses loop over layers and images. The model computes frozen batch norm separately
from the convolutions and attention with its weights, in float32 and torch's default memory layout.
The formulas, and so the results, are those of `student.losses.matcher` and
`student.losses.criterion`, for learned queries and the published forms of the losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d, box_convert, box_iou, generalized_box_iou

from student.config import LossConfig, MatcherConfig, Recipe
from student.data.dataset import Batch
from student.data.targets import PAIR_FIELDS, Targets
from student.models.backbone import RESNETS, ResNetBackbone
from student.models.detector import HOIDetector
from student.models.transformer import Attention

PLAIN_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
EPSILON = 1e-4


class PlainBackbone(nn.Module):
    """The student's ResNet with separate batch norm operations."""

    size_divisible = 1

    def __init__(self, backbone: ResNetBackbone, name: str) -> None:
        super().__init__()
        kind, depths = RESNETS[name]
        self.body = ResNet(PLAIN_BLOCKS[kind], list(depths), norm_layer=FrozenBatchNorm2d)
        del self.body.avgpool, self.body.fc
        self.body.load_state_dict(backbone.body.state_dict())
        for own, theirs in zip(self.body.children(), backbone.body.children(), strict=True):
            trained = any(p.requires_grad for p in theirs.parameters())
            own.requires_grad_(trained)
        self.num_channels = backbone.num_channels

    def forward(self, pixels: Tensor, sizes: None = None) -> dict[str, Tensor]:
        """Feature maps by name of (B, 3, H, W) images."""
        body = self.body
        stem = body.maxpool(body.relu(body.bn1(body.conv1(pixels))))
        stride8 = body.layer2(body.layer1(stem))
        stride16 = body.layer3(stride8)
        return {"stride8": stride8, "stride16": stride16, "stride32": body.layer4(stride16)}


def plain_model(model: HOIDetector) -> HOIDetector:
    """A copy of a detector with the plain backbone."""
    copy = HOIDetector(model.config)
    copy.load_state_dict(model.state_dict())
    assert isinstance(copy.backbone, ResNetBackbone)
    copy.backbone = PlainBackbone(copy.backbone, model.config.backbone)
    return copy


@contextmanager
def attention_with_weights() -> Iterator[None]:
    """Makes attention compute its weights, as `nn.MultiheadAttention` does by default."""

    def attend(
        self: Attention, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        return nn.MultiheadAttention.forward(self, query, key, value, key_padding_mask=padding)[0]

    with mock.patch.object(Attention, "forward", attend):
        yield


class PlainTraining:
    """Trains a plain copy of a detector.

    Args:
        model: the detector, which is not changed.
        recipe: its recipe.
        distilled_verbs: (V,) bool, the verbs that the teacher is distilled for.
    """

    def __init__(self, model: HOIDetector, recipe: Recipe, distilled_verbs: Tensor) -> None:
        self.model, self.recipe = plain_model(model).train(), recipe
        self.distilled_verbs = distilled_verbs
        train = recipe.train
        body = [p for p in self.model.backbone.parameters() if p.requires_grad]
        ids = set(map(id, self.model.backbone.parameters()))
        others = [p for p in self.model.parameters() if id(p) not in ids]
        rate = train.learning_rate
        self.optimizer = torch.optim.AdamW(
            [
                {"params": others, "lr": rate},
                {"params": body, "lr": rate * train.backbone_lr_factor},
            ],
            weight_decay=train.weight_decay,
            fused=False,
        )

    def __call__(self, batch: Batch) -> dict[str, float]:
        """Takes a step at a constant learning rate; returns the weighted losses before it."""
        counts = batch.targets.num_pairs[:, 0].tolist()
        targets = [
            Targets(**{name: getattr(batch.targets, name)[row, :count] for name in PAIR_FIELDS})
            for row, count in enumerate(counts)
        ]
        with attention_with_weights():
            outputs = self.model(batch.images(slice(None)))
        recipe = self.recipe
        losses = plain_losses(outputs, targets, self.distilled_verbs, recipe.matcher, recipe.losses)
        self.optimizer.zero_grad()
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.train.clip_norm)
        self.optimizer.step()
        return {**{name: value.item() for name, value in losses.items()}, "total": total.item()}


def plain_losses(
    outputs: dict[str, Any],
    targets: Sequence[Targets],
    distilled_verbs: Tensor,
    matcher: MatcherConfig,
    config: LossConfig,
) -> dict[str, Tensor]:
    """The weighted losses, summed over the layers, with focal loss and `entries` normalisation."""
    layers = [*outputs["aux_outputs"], outputs]
    matched = [
        [
            match_image(layer, image, target, distilled_verbs, matcher)
            for image, target in enumerate(targets)
        ]
        for layer in layers
    ]
    num_pairs = max(1, sum(len(first) + len(second) for first, second in matched[-1]))
    totals: dict[str, Tensor] = {}
    for layer, matches in zip(layers, matched, strict=True):
        for name, value in _layer_losses(layer, targets, matches, num_pairs, matcher, config):
            totals[name] = totals[name] + value if name in totals else value
    return totals


def match_image(
    outputs: dict[str, Any],
    image: int,
    target: Targets,
    distilled_verbs: Tensor,
    config: MatcherConfig,
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(query, pair) matches of both stages for one image and layer."""
    with torch.no_grad():
        human, thing = (outputs[f"pred_{name}_boxes"][image].cpu() for name in ("human", "object"))
        objects = outputs["pred_object_logits"][image].softmax(-1).cpu()
        verbs = outputs["pred_verb_logits"][image].sigmoid().cpu()
        interactive = outputs["pred_interactive_logits"][image].softmax(-1)[:, 1].cpu()
        labels = target.object_labels.cpu()
        human_boxes, object_boxes = target.human_boxes.cpu(), target.object_boxes.cpu()
        l1 = torch.maximum(
            torch.cdist(human, human_boxes, p=1), torch.cdist(thing, object_boxes, p=1)
        )
        giou = torch.minimum(
            generalized_box_iou(_corners(human), _corners(human_boxes)),
            generalized_box_iou(_corners(thing), _corners(object_boxes)),
        )
        cost = -objects[:, labels] + config.box_cost * l1 - config.giou_cost * giou
        hard = target.verb_labels.cpu().float()
        absent = (1 - hard) * (~distilled_verbs.cpu()).float()
        hits = verbs @ (hard / (hard.sum(1, keepdim=True) + EPSILON)).T
        rejected = (1 - verbs) @ (absent / (absent.sum(1, keepdim=True) + EPSILON)).T
        verb_cost = -config.verb_cost * (hits + rejected) / 2
        iou_mask = _iou_mask(human, thing, target, config.iou_threshold)
        seen = [pair for pair in range(len(labels)) if target.seen[pair]]
        others = [pair for pair in range(len(labels)) if not target.seen[pair]]
        first = _solve(cost + verb_cost, list(range(len(cost))), seen)
        taken = {query for query, _ in first}
        free = [query for query in range(len(cost)) if query not in taken]
        second = [
            (query, pair)
            for query, pair in _solve(cost, free, others)
            if iou_mask[query, pair] and interactive[query] > config.interactive_threshold
        ]
    second.sort(key=lambda match: -float(interactive[match[0]]))
    return first, second[: config.topk]


def _layer_losses(
    outputs: dict[str, Any],
    targets: Sequence[Targets],
    matches: Sequence[tuple[list[tuple[int, int]], list[tuple[int, int]]]],
    num_pairs: int,
    matcher: MatcherConfig,
    config: LossConfig,
) -> Iterator[tuple[str, Tensor]]:
    """Names and weighted losses of one layer."""
    logits, verbs = outputs["pred_object_logits"], outputs["pred_verb_logits"]
    labels = torch.full(logits.shape[:2], logits.shape[-1] - 1, dtype=torch.int64)
    hard, soft = torch.zeros_like(verbs), torch.zeros_like(verbs)
    interactive_labels = torch.zeros(logits.shape[:2], dtype=torch.int64)
    supervised_mask = torch.ones(logits.shape[:2], dtype=torch.bool)
    boxes: dict[str, list[Tensor]] = {name: [] for name in ("human", "object")}
    overlap: dict[str, list[Tensor]] = {name: [] for name in ("human", "object")}
    for image, (target, (first, second)) in enumerate(zip(targets, matches, strict=True)):
        for query, pair in first + second:
            labels[image, query] = target.object_labels[pair]
            hard[image, query] = target.verb_labels[pair].float()
            soft[image, query] = torch.where(
                target.verb_labels[pair], 0.0, target.teacher_probs[pair]
            )
            for name in boxes:
                found = outputs[f"pred_{name}_boxes"][image, query]
                right = getattr(target, f"{name}_boxes")[pair]
                boxes[name].append((found - right).abs().sum())
                giou = generalized_box_iou(_corners(found[None]), _corners(right[None]))
                overlap[name].append(1 - giou.squeeze())
        human, thing = (
            outputs[f"pred_{name}_boxes"][image].detach() for name in ("human", "object")
        )
        iou_mask = _iou_mask(human, thing, target, matcher.iou_threshold)
        kept = {query for query, _ in second}
        for query in range(logits.shape[1]):
            overlapping = iou_mask[query]
            positive = query in kept or bool((overlapping & target.seen & target.interactive).any())
            interactive_labels[image, query] = int(positive)
            supervised_mask[image, query] = positive or not bool((overlapping & ~target.seen).any())
    weights = torch.ones(logits.shape[-1])
    weights[-1] = config.no_pair_weight
    yield "object", config.object_weight * F.cross_entropy(logits.mT, labels, weights)
    for name in boxes:
        count = num_pairs if name == "human" else len(boxes[name]) + EPSILON
        no_loss = outputs[f"pred_{name}_boxes"].sum() * 0
        yield f"{name}_box", config.box_weight * (sum(boxes[name], no_loss) / count)
        yield f"{name}_giou", config.giou_weight * (sum(overlap[name], no_loss) / count)
    is_soft = soft > 0
    probability = verbs.sigmoid()
    present = -config.alpha * (1 - probability) ** config.gamma * F.logsigmoid(verbs)
    absent = -(1 - config.alpha) * probability**config.gamma * F.logsigmoid(-verbs)
    costs = torch.where(hard > 0, present, absent)
    num_hard = hard.sum()
    yield "verb_hard", config.verb_hard_weight * costs[~is_soft].sum() / num_hard.clamp(min=1)
    soft_losses = F.binary_cross_entropy_with_logits(verbs, soft, reduction="none")[is_soft]
    yield "verb_soft", config.verb_soft_weight * soft_losses.sum() / verbs.numel()
    scores = outputs["pred_interactive_logits"][supervised_mask]
    yield (
        "interactive",
        config.interactive_weight * F.cross_entropy(scores, interactive_labels[supervised_mask]),
    )


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def _iou_mask(human: Tensor, thing: Tensor, target: Targets, threshold: float) -> Tensor:
    """(Q, N) bool: both boxes of the query have at least this IoU with those of the pair."""
    ious = [
        box_iou(_corners(found.cpu()), _corners(boxes.cpu()))
        for found, boxes in ((human, target.human_boxes), (thing, target.object_boxes))
    ]
    return (ious[0] >= threshold) & (ious[1] >= threshold)


def _solve(cost: Tensor, queries: list[int], pairs: list[int]) -> list[tuple[int, int]]:
    if not queries or not pairs:
        return []
    rows, columns = linear_sum_assignment(cost[queries][:, pairs].numpy())
    return [(queries[row], pairs[column]) for row, column in zip(rows, columns, strict=True)]
