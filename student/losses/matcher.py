"""Two-stage bipartite matching of queries with human-object pairs (EoID 3.3).

Stage 1 assigns queries to seen pairs, by the costs of object class, verbs, boxes and GIoU. Stage 2
assigns the remaining queries to candidate pairs, without the verb cost, and keeps those matches
whose boxes overlap and whose interactive scores are highest.

The costs of all decoder layers and images are computed at once on the outputs' device and copied
to the CPU in a single transfer, where the assignments are solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from student.config import MatcherConfig
from student.data.targets import Targets
from student.losses.box_ops import iou_and_giou

# Added to the numbers of present and absent verbs, as in the published code.
EPSILON = 1e-4
# Replaces NaN and infinite costs.
INVALID_COST = 1e6


class CandidateCounts(NamedTuple):
    """Numbers of candidate pairs that pass the conditions of stage 2, each on top of the former.

    Attributes:
        total: candidates.
        overlapping: those matched with a query both of whose boxes have an IoU of at least
            `MatcherConfig.iou_threshold` with the pair's.
        interactive: those whose query also has an interactive probability above
            `interactive_threshold`.
        kept: those among the `topk` highest of their image, which are matches.
    """

    total: int
    overlapping: int
    interactive: int
    kept: int


@dataclass(frozen=True, eq=False)
class QueryMatches:
    """The M matches of all layers and images, those of seen pairs first within each image.

    Attributes:
        layers, images, queries, targets: (M,) int64 indices; `targets` are pairs of the image.
        is_candidate: (M,) bool, True for matches of stage 2.
        num_last_layer: number of matches in the last layer.
        candidate_counts: candidates of the B images by condition, in the last layer.
        iou_mask: (L, B, Q, N) bool, True where both boxes of the query have an IoU of at least
            `MatcherConfig.iou_threshold` with those of the pair.
    """

    layers: Tensor
    images: Tensor
    queries: Tensor
    targets: Tensor
    is_candidate: Tensor
    num_last_layer: int
    candidate_counts: CandidateCounts
    iou_mask: Tensor

    @property
    def query_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """Index of the matched queries in (L, B, Q, ...) tensors."""
        return self.layers, self.images, self.queries

    @property
    def target_index(self) -> tuple[Tensor, Tensor]:
        """Index of the matched pairs in batched targets."""
        return self.images, self.targets


class TwoStageMatcher:
    """Matches queries with pairs.

    Args:
        config: factors of the costs and thresholds of stage 2.
        distilled_verbs: (V,) bool, the verbs that the teacher is distilled for (u in the paper).
            That a pair has no label of such a verb does not count in the verb cost.

    Attributes:
        interactive_threshold: that of `config`, or a lower one during its warm-up.
    """

    def __init__(self, config: MatcherConfig, distilled_verbs: Tensor) -> None:
        self.config = config
        self.distilled_verbs = distilled_verbs
        self.interactive_threshold = config.interactive_threshold

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Tensor], batch: Targets) -> QueryMatches:
        """Matches every layer independently of the others.

        Args:
            outputs: the model's outputs with all layers stacked, float32: `pred_object_logits`
                (L, B, Q, O + 1), `pred_verb_logits` (L, B, Q, V), `pred_human_boxes` and
                `pred_object_boxes` (L, B, Q, 4) cxcywh, `pred_interactive_logits` (L, B, Q, 2).
            batch: targets of the B images.
        """
        costs, iou_mask = self._costs(outputs, batch)
        interactive = outputs["pred_interactive_logits"].softmax(-1)[..., 1]
        kinds = batch.seen, batch.pair_mask & ~batch.seen
        # The only transfer to the host.
        host_costs, mask, scores, seen, candidate = _to_host(costs, iou_mask, interactive, *kinds)
        # `linear_sum_assignment` refuses NaN and infinite costs. The losses are NaN as well, and
        # the training loop reports them.
        limit = INVALID_COST
        host_costs = np.nan_to_num(host_costs, nan=limit, posinf=limit, neginf=-limit)
        rows: list[tuple[int, ...]] = []
        # Counted on the host, where the matches are: the device has nothing to do for them.
        counts = np.zeros(len(CandidateCounts._fields), dtype=np.int64)
        for place in np.ndindex(host_costs.shape[:2]):
            layer, image = place
            arrays = host_costs[place], mask[place], scores[place], seen[image], candidate[image]
            *stages, image_counts = self._assign(*arrays)
            for stage, matches in enumerate(stages):
                rows += [(*place, *match, stage) for match in matches]
            if layer == len(host_costs) - 1:
                counts += image_counts
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
        if costs.is_cuda:
            # A copy from pageable memory would wait for the device.
            table = table.pin_memory()
        table = table.to(costs.device, non_blocking=True).T.contiguous()
        return QueryMatches(
            layers=table[0],
            images=table[1],
            queries=table[2],
            targets=table[3],
            is_candidate=table[4].bool(),
            num_last_layer=sum(row[0] == len(costs) - 1 for row in rows),
            candidate_counts=CandidateCounts(*counts.tolist()),
            iou_mask=iou_mask,
        )

    def _costs(self, outputs: dict[str, Tensor], batch: Targets) -> tuple[Tensor, Tensor]:
        """(L, B, Q, N) costs of all queries and pairs, and the IoU mask.

        The verb term is 0 for candidates, so that stage 2 can use the same costs. Padded pairs have
        costs too, but are in neither stage.
        """
        config = self.config
        object_probs = outputs["pred_object_logits"].softmax(-1)
        labels = batch.object_labels[None, :, None, :].expand(*object_probs.shape[:3], -1)
        cost = -config.object_cost * object_probs.gather(-1, labels)
        cost += config.verb_cost * batch.seen[:, None, :] * self._verb_cost(outputs, batch)

        human_l1, human_iou, human_giou = _compare_boxes(
            outputs["pred_human_boxes"], batch.human_boxes
        )
        object_l1, object_iou, object_giou = _compare_boxes(
            outputs["pred_object_boxes"], batch.object_boxes
        )
        # A verb without object (V-COCO) is matched by the human box alone.
        has_object = (batch.object_boxes != 0).any(-1)[:, None, :]
        l1 = torch.where(has_object, torch.maximum(human_l1, object_l1), human_l1)
        giou = torch.where(has_object, torch.minimum(human_giou, object_giou), human_giou)
        cost += config.box_cost * l1 - config.giou_cost * giou
        iou_mask = (human_iou >= config.iou_threshold) & (object_iou >= config.iou_threshold)
        return cost, iou_mask & batch.pair_mask[:, None, :]

    def _verb_cost(self, outputs: dict[str, Tensor], batch: Targets) -> Tensor:
        """(L, B, Q, N) minus the mean of two averages: the probabilities of a pair's verbs, and one
        minus the probabilities of the verbs that it does not have and that are not distilled."""
        verb_probs = outputs["pred_verb_logits"].sigmoid()
        present = batch.verb_labels.float()
        absent = (1 - present) * ~self.distilled_verbs.to(present.device)
        present_mean = verb_probs @ (present / (present.sum(-1, keepdim=True) + EPSILON)).mT
        absent_mean = (1 - verb_probs) @ (absent / (absent.sum(-1, keepdim=True) + EPSILON)).mT
        return -(present_mean + absent_mean) / 2

    def _assign(
        self,
        costs: np.ndarray,
        iou_mask: np.ndarray,
        interactive: np.ndarray,
        seen: np.ndarray,
        candidate: np.ndarray,
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]], CandidateCounts]:
        """(query, pair) matches of stage 1 and of stage 2 in one image, and its candidates."""
        queries = np.arange(len(costs))
        seen_matches = _solve(costs, queries, np.flatnonzero(seen))
        free_queries = np.setdiff1d(queries, [query for query, _ in seen_matches])
        # The overlap is that with the matched pair. The published code tests queries and pairs
        # separately, so that matches with a low IoU pass.
        candidates = np.flatnonzero(candidate)
        overlapping = [
            match for match in _solve(costs, free_queries, candidates) if iou_mask[match]
        ]
        confident = [
            match for match in overlapping if interactive[match[0]] > self.interactive_threshold
        ]
        confident.sort(key=lambda match: -interactive[match[0]])
        kept = confident[: self.config.topk]
        counts = CandidateCounts(len(candidates), len(overlapping), len(confident), len(kept))
        return seen_matches, kept, counts


def _solve(costs: np.ndarray, queries: np.ndarray, pairs: np.ndarray) -> list[tuple[int, int]]:
    """Hungarian assignment of these queries to these pairs, by their indices in (Q, N) costs."""
    if not len(queries) or not len(pairs):
        return []
    rows, columns = linear_sum_assignment(costs[np.ix_(queries, pairs)])
    return [(int(queries[r]), int(pairs[c])) for r, c in zip(rows, columns, strict=True)]


def _compare_boxes(predicted: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(L, B, Q, 4) against (B, N, 4): L1 distance, IoU and GIoU, each (L, B, Q, N)."""
    predicted, boxes = predicted.unsqueeze(3), boxes.unsqueeze(1)
    return (predicted - boxes).abs().sum(-1), *iou_and_giou(predicted, boxes)


def _to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Copies tensors to the CPU as float32 arrays in one transfer."""
    flat = torch.cat([tensor.flatten().float() for tensor in tensors]).cpu().numpy()
    pieces = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
