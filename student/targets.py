"""What a training image should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False)
class Targets:
    """The N pairs of one image: seen pairs carry labels, candidates carry none.

    Nothing that computes losses writes into these tensors.

    Attributes:
        human_boxes, object_boxes: (N, 4) float, cxcywh in [0, 1]; an object box of zeros says
            that the verb has no object (V-COCO).
        object_labels: (N,) int64; the number of objects, the model's "no pair", without object.
        hard: (N, V) bool, the seen labels; no row of a candidate has one.
        soft: (N, V) float in [0, 1], the teacher's probability where it was asked and there is
            no hard label, else 0.
        seen: (N,) bool, False for candidates.
        interactive: (N,) bool, False where a seen label says "no interaction".
        embeddings: (N, D) float16, the teacher's embedding of a pair's region, 0 where it did not
            look; (0, 0) for students that do not learn from it.
        annotated: (1,) bool: what has no label in this image is absent. False where nobody looked
            for interactions: there, only the teacher's answers say anything about verbs.
    """

    human_boxes: Tensor
    object_boxes: Tensor
    object_labels: Tensor
    hard: Tensor
    soft: Tensor
    seen: Tensor
    interactive: Tensor
    embeddings: Tensor = field(default_factory=lambda: torch.zeros(0, 0), kw_only=True)
    annotated: Tensor = field(default_factory=lambda: torch.ones(1).bool(), kw_only=True)

    def __len__(self) -> int:
        return len(self.object_labels)

    def to(self, device: torch.device | str) -> Targets:
        """The same pairs on another device; copies do not block."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in FIELDS}
        return Targets(**moved)

    def pin_memory(self) -> Targets:
        """The same pairs in page-locked memory, from which copies to a GPU need not wait."""
        return Targets(**{name: getattr(self, name).pin_memory() for name in FIELDS})


FIELDS = tuple(entry.name for entry in fields(Targets))


@dataclass(frozen=True, eq=False)
class TargetBatch(Targets):
    """Targets of B images, each field padded to (B, N, ...) with N the largest number of pairs;
    `annotated` is (B, 1).

    Attributes:
        counts: pairs of every image.
        present: (B, N) bool, False on padding. Padding is neither seen nor interactive.
    """

    counts: tuple[int, ...]
    present: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, targets: Sequence[Targets]) -> TargetBatch:
        """Pads the images' targets into one batch of copies.

        Args:
            targets: at least one, all on one device.
        """
        counts = tuple(len(one) for one in targets)
        padded = {
            name: pad_sequence([getattr(one, name) for one in targets], batch_first=True)
            for name in FIELDS
        }
        device = targets[0].seen.device
        place = torch.arange(max(counts), device=device)
        present = place < torch.tensor(counts).to(device, non_blocking=True)[:, None]
        return cls(**padded, counts=counts, present=present)
