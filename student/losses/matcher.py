"""Two-stage bipartite matching (EoID 3.3): seen pairs first, then candidates take what is left.

Costs of all decoder layers and images are computed at once where the outputs are, and go to the
host in a single transfer; only the assignments are solved there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from student.config import MatcherConfig
from student.data.targets import Targets
from student.losses.box_ops import iou_and_giou

EPSILON = 1e-4
# Stands in for a cost that is not a number, so that the losses get to say that they are not.
INVALID_COST = 1e6


@dataclass(frozen=True, eq=False)
class Matches:
    """Which query takes which pair, as M flat rows over layers and images, seen pairs first.

    Attributes:
        layers, images, queries, targets: (M,) int64.
        is_candidate: (M,) bool, True for pairs that were kept by stage 2.
        num_last_layer: matched pairs of the last layer.
        iou_mask: (L, B, Q, N) bool, both boxes of the query overlap those of the pair.
    """

    layers: Tensor
    images: Tensor
    queries: Tensor
    targets: Tensor
    is_candidate: Tensor
    num_last_layer: int
    iou_mask: Tensor

    def of_image(self, layer: int, image: int, candidates: bool) -> tuple[Tensor, Tensor]:
        """Matched queries and pairs of one image in one layer, of either stage."""
        here = (self.layers == layer) & (self.images == image) & (self.is_candidate == candidates)
        return self.queries[here], self.targets[here]


@dataclass(frozen=True, eq=False)
class _MatchInputs:
    """Numpy copies: costs and iou_mask (L, B, Q, N), interactive (L, B, Q), seen and candidate
    (B, N)."""

    costs: np.ndarray
    iou_mask: np.ndarray
    interactive: np.ndarray
    seen: np.ndarray
    candidate: np.ndarray


class TwoStageMatcher:
    """Matches queries with pairs; keeps no state but its settings.

    Args:
        config: cost factors and the gate of stage 2.
        distilled_verbs: (V,) bool, verbs u that the teacher is asked for: not having such a label
            is no evidence in the verb cost.
    """

    def __init__(self, config: MatcherConfig, distilled_verbs: Tensor) -> None:
        self.config = config
        self.distilled_verbs = distilled_verbs

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Tensor], batch: Targets) -> Matches:
        """Matches every layer on its own.

        Args:
            outputs: the model's outputs with all layers stacked, float32: `pred_object_logits`
                (L, B, Q, O + 1), `pred_verb_logits` (L, B, Q, V), `pred_human_boxes` and
                `pred_object_boxes` (L, B, Q, 4) cxcywh, `pred_interactive_logits` (L, B, Q, 2).
            batch: pairs of the B images.
        """
        costs, iou_mask = self._costs(outputs, batch)
        interactive = outputs["pred_interactive_logits"].softmax(-1)[..., 1]
        host = _to_host(costs, iou_mask, interactive, batch)
        rows = [
            (layer, image, query, target, candidate)
            for layer in range(len(costs))
            for image in range(len(batch))
            for candidate, pairs in enumerate(self._assign(host, layer, image))
            for query, target in pairs
        ]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
        if costs.is_cuda:
            # From other memory a large copy waits for the device.
            table = table.pin_memory()
        table = table.to(costs.device, non_blocking=True).T.contiguous()
        return Matches(
            layers=table[0],
            images=table[1],
            queries=table[2],
            targets=table[3],
            is_candidate=table[4].bool(),
            num_last_layer=sum(row[0] == len(costs) - 1 for row in rows),
            iou_mask=iou_mask,
        )

    def _costs(self, outputs: dict[str, Tensor], batch: Targets) -> tuple[Tensor, Tensor]:
        """(L, B, Q, N) costs, with a verb term for seen pairs only, and the IoU mask."""
        config = self.config
        probability = outputs["pred_object_logits"].softmax(-1)
        labels = batch.object_labels[None, :, None, :].expand(*probability.shape[:3], -1)
        cost = -config.object_cost * probability.gather(-1, labels)
        cost += config.verb_cost * batch.seen[:, None, :] * self._verb_cost(outputs, batch)

        far_human, iou_human, giou_human = _compare_boxes(
            outputs["pred_human_boxes"], batch.human_boxes
        )
        far_object, iou_object, giou_object = _compare_boxes(
            outputs["pred_object_boxes"], batch.object_boxes
        )
        has_object = (batch.object_boxes != 0).any(-1)[:, None, :]
        far = torch.where(has_object, torch.maximum(far_human, far_object), far_human)
        giou = torch.where(has_object, torch.minimum(giou_human, giou_object), giou_human)
        cost += config.box_cost * far - config.giou_cost * giou
        iou_mask = (iou_human >= config.iou_threshold) & (iou_object >= config.iou_threshold)
        return cost, iou_mask & batch.pair_mask[:, None, :]

    def _verb_cost(self, outputs: dict[str, Tensor], batch: Targets) -> Tensor:
        probability = outputs["pred_verb_logits"].sigmoid()
        present = batch.verb_labels.float()
        absent = (1 - present) * ~self.distilled_verbs.to(present.device)
        hits = probability @ (present / (present.sum(-1, keepdim=True) + EPSILON)).mT
        rejections = (1 - probability) @ (absent / (absent.sum(-1, keepdim=True) + EPSILON)).mT
        return -(hits + rejections) / 2

    def _assign(
        self, host: _MatchInputs, layer: int, image: int
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(query, pair) rows of stage 1 and of stage 2 for one image."""
        costs, iou_mask = host.costs[layer, image], host.iou_mask[layer, image]
        interactive = host.interactive[layer, image]
        labelled, candidates = (np.flatnonzero(one[image]) for one in (host.seen, host.candidate))
        first = _solve(costs, np.arange(len(costs)), labelled)
        left = np.setdiff1d(np.arange(len(costs)), [query for query, _ in first])
        kept = [
            (query, pair)
            for query, pair in _solve(costs, left, candidates)
            if iou_mask[query, pair] and interactive[query] > self.config.interactive_threshold
        ]
        kept.sort(key=lambda match: -interactive[match[0]])
        return first, kept[: self.config.topk]


def _solve(costs: np.ndarray, queries: np.ndarray, pairs: np.ndarray) -> list[tuple[int, int]]:
    """Cheapest one-to-one assignment; with more pairs than queries the dearest pairs go without."""
    if not len(queries) or not len(pairs):
        return []
    rows, columns = linear_sum_assignment(costs[np.ix_(queries, pairs)])
    return [(int(queries[r]), int(pairs[c])) for r, c in zip(rows, columns, strict=True)]


def _compare_boxes(predicted: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(L, B, Q, 4) against (B, N, 4): L1 distance, IoU and GIoU, each (L, B, Q, N)."""
    predicted, boxes = predicted.unsqueeze(3), boxes.unsqueeze(1)
    return (predicted - boxes).abs().sum(-1), *iou_and_giou(predicted, boxes)


def _to_host(costs: Tensor, iou_mask: Tensor, interactive: Tensor, batch: Targets) -> _MatchInputs:
    """Copies all of it in one transfer."""
    parts = (costs, iou_mask, interactive, batch.seen, batch.pair_mask & ~batch.seen)
    flat = torch.cat([part.flatten().float() for part in parts]).cpu().numpy()
    pieces = np.split(flat, np.cumsum([part.numel() for part in parts])[:-1])
    shaped = [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]
    return _MatchInputs(
        costs=np.nan_to_num(shaped[0], nan=INVALID_COST, posinf=INVALID_COST, neginf=-INVALID_COST),
        iou_mask=shaped[1] > 0,
        interactive=shaped[2],
        seen=shaped[3] > 0,
        candidate=shaped[4] > 0,
    )
