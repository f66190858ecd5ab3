"""What training images should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PAIRS = (
    "human_boxes",
    "object_boxes",
    "object_labels",
    "hard",
    "soft",
    "seen",
    "interactive",
    "embeddings",
)
# A batch holds these for its images one after the other, and pads all others.
DETECTED = ("detected_boxes", "detected_labels", "detected_images")


@dataclass(frozen=True, eq=False)
class Targets:
    """The N pairs of one image: seen pairs carry labels, candidates carry none. Or those of B
    images: then tensors are (B, N, ...) with N the largest number of pairs, and 0 on padding, which
    is neither seen nor interactive.

    Nothing that computes losses writes into these tensors.

    Attributes:
        human_boxes, object_boxes: (N, 4) float32, cxcywh in [0, 1] (xyxy in pixels until
            `student.data.make_sample` has transformed the image); an object box of zeros says that
            the verb has no object (V-COCO).
        object_labels: (N,) int64; the number of objects, the model's "no pair", without object.
        hard: (N, V) bool, the seen labels; no row of a candidate has one.
        soft: (N, V) float in [0, 1], the teacher's probability where it was asked and there is
            no hard label, else 0.
        seen: (N,) bool, False for candidates.
        interactive: (N,) bool, False where a seen label says "no interaction".
        embeddings: (N, D) float16, the teacher's embedding of a pair's region, 0 where it did not
            look; (N, 0) for students that do not learn from it.
        annotated: (1,) bool: what has no label in this image is absent. False where nobody looked
            for interactions: there, only the teacher's answers say anything about verbs.
        source: (1,) int64, number of the source of the image, 0 for the main one.
        detected_boxes: (M, 4) float32, what the frozen detector found, in the form of the others.
        detected_labels: (M,) int64 classes.
        detected_images: (M,) int64, the image that a detected box is of: 0, or its row in a batch.
        counts: (B, 1) int64, pairs of the images of a batch.
    """

    human_boxes: Tensor
    object_boxes: Tensor
    object_labels: Tensor
    hard: Tensor
    soft: Tensor
    seen: Tensor
    interactive: Tensor
    embeddings: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float16))
    annotated: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.bool))
    source: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    detected_boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    detected_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    detected_images: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Number of pairs of an image, of images of a batch."""
        return len(self.object_labels)

    @property
    def present(self) -> Tensor:
        """(B, N) bool of a batch, False on padding."""
        place = torch.arange(self.seen.shape[-1], device=self.seen.device)
        return place < self.counts

    def select(self, pairs: Tensor, detected: Tensor) -> Targets:
        """An image's targets without the pairs (N,) and detected boxes (M,) that are False here."""
        rows = {name: getattr(self, name)[pairs] for name in PAIRS}
        rows |= {name: getattr(self, name)[detected] for name in DETECTED}
        return replace(self, **rows)

    @classmethod
    def batch(cls, targets: Sequence[Targets]) -> Targets:
        """The images' targets as one batch of copies.

        Args:
            targets: of single images, at least one.
        """
        values = {name: [getattr(one, name) for one in targets] for name in FIELDS}
        values["counts"] = [torch.tensor([len(one)]) for one in targets]
        values["detected_images"] = [
            torch.full_like(one.detected_labels, row) for row, one in enumerate(targets)
        ]
        return cls(
            **{
                name: torch.cat(own) if name in DETECTED else pad_sequence(own, batch_first=True)
                for name, own in values.items()
            }
        )


FIELDS = tuple(entry.name for entry in fields(Targets))
