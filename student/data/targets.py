"""What training images should give."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.boxes import box_iou
from pipeline.splits import Split, remove_unseen_labels
from pipeline.types import Annotation, Pairs
from pipeline.vocabulary import Vocabulary
from student.config import TargetConfig

PAIR_FIELDS = (
    "human_boxes",
    "object_boxes",
    "object_labels",
    "verb_labels",
    "teacher_probs",
    "seen",
    "interactive",
    "region_embeddings",
)
# A batch holds these for its images one after the other, and pads all others.
DETECTION_FIELDS = ("detected_boxes", "detected_labels", "detected_images")


@dataclass(frozen=True, eq=False)
class Targets:
    """The N pairs of one image: seen pairs carry labels, candidates carry none. Or those of B
    images: then tensors are (B, N, ...) with N the largest number of pairs, and 0 on padding, which
    is neither seen nor interactive.

    Nothing that computes losses writes into these tensors.

    Attributes:
        human_boxes, object_boxes: (N, 4) float32, cxcywh in [0, 1] (xyxy in pixels until
            `student.data.dataset.make_sample` has transformed the image); an object box of zeros
            says that the verb has no object (V-COCO).
        object_labels: (N,) int64; the number of objects, the model's "no pair", without object.
        verb_labels: (N, V) bool, the seen labels; no row of a candidate has one.
        teacher_probs: (N, V) float in [0, 1], the teacher's probability where it was asked and
            there is no label, else 0.
        seen: (N,) bool, False for candidates.
        interactive: (N,) bool, False where a seen label says "no interaction".
        region_embeddings: (N, D) float16, the teacher's embedding of a pair's region, 0 where it
            did not look; (N, 0) for students that do not learn from it.
        exhaustive_labels: (1,) bool: what has no label in this image is absent. False where nobody
            looked for interactions: there, only the teacher's answers say anything about verbs.
        dataset_index: (1,) int64, number of the image's dataset, 0 for the main one.
        detected_boxes: (M, 4) float32, what the frozen detector found, in the form of the others.
        detected_labels: (M,) int64 classes.
        detected_images: (M,) int64, the image that a detected box is of: 0, or its row in a batch.
        num_pairs: (B, 1) int64, pairs of the images of a batch.
    """

    human_boxes: Tensor
    object_boxes: Tensor
    object_labels: Tensor
    verb_labels: Tensor
    teacher_probs: Tensor
    seen: Tensor
    interactive: Tensor
    region_embeddings: Tensor = field(
        default_factory=lambda: torch.zeros(0, 0, dtype=torch.float16)
    )
    exhaustive_labels: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.bool))
    dataset_index: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    detected_boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    detected_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    detected_images: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    num_pairs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Number of pairs of an image, of images of a batch."""
        return len(self.object_labels)

    @property
    def pair_mask(self) -> Tensor:
        """(B, N) bool of a batch, False on padding."""
        place = torch.arange(self.seen.shape[-1], device=self.seen.device)
        return place < self.num_pairs

    def select(self, pairs: Tensor, detected: Tensor) -> Targets:
        """An image's targets without the pairs (N,) and detected boxes (M,) that are False here."""
        rows = {name: getattr(self, name)[pairs] for name in PAIR_FIELDS}
        rows |= {name: getattr(self, name)[detected] for name in DETECTION_FIELDS}
        return replace(self, **rows)

    @classmethod
    def collate(cls, targets: Sequence[Targets]) -> Targets:
        """The images' targets as one batch of copies.

        Args:
            targets: of single images, at least one.
        """
        values = {name: [getattr(one, name) for one in targets] for name in TARGET_FIELDS}
        values["num_pairs"] = [torch.tensor([len(one)]) for one in targets]
        values["detected_images"] = [
            torch.full_like(one.detected_labels, row) for row, one in enumerate(targets)
        ]
        return cls(
            **{
                name: torch.cat(own)
                if name in DETECTION_FIELDS
                else pad_sequence(own, batch_first=True)
                for name, own in values.items()
            }
        )


TARGET_FIELDS = tuple(entry.name for entry in fields(Targets))


PROTOCOLS = ("detector", "annotated")
ANNOTATED, PROPOSED = 0, 1


def build_targets(
    annotation: Annotation,
    pairs: Pairs,
    probabilities: np.ndarray,
    split: Split,
    vocabulary: Vocabulary,
    config: TargetConfig,
    protocol: str = "detector",
    region_embeddings: np.ndarray | None = None,
    few_shot_rows: Collection[int] = (),
    dataset_index: int = 0,
) -> Targets:
    """Joins an image's annotation with the teacher's answers under a split: the image's training
    pairs before any transformation, boxes xyxy in pixels, seen pairs first.

    Args:
        annotation: all labels; those of unseen interactions are removed here.
        pairs: the cached pairs of the image.
        probabilities: (P, V) the teacher's answers for `pairs`.
        split: what is unseen, and for which verbs the teacher is asked.
        vocabulary: of annotation and cache.
        config: see `TargetConfig`.
        protocol: what the cache's candidate pairs are made of, boxes of a "detector" or
            "annotated" ones.
        region_embeddings: (P, D) the teacher's embeddings of the regions of `pairs`, for a student
            that learns from them.
        few_shot_rows: rows of the annotation's labels that teach although the split hides them.
        dataset_index: number of the image's dataset. An image of the main one, 0, is annotated
            whatever its labels; one of an extra dataset is where training may see a label of it.
            Hidden labels do not count, so that nothing follows from their being there.
    """
    seen = remove_unseen_labels(annotation, split, vocabulary, few_shot_rows)
    rows, inverse = _unique_pairs(seen.hois)
    humans = seen.boxes[rows[:, 0]]
    objects, labels = _object_boxes_and_labels(seen, rows[:, 1], vocabulary.num_objects)
    verb_labels = np.zeros((len(rows), vocabulary.num_verbs), dtype=bool)
    verb_labels[inverse, seen.hois[:, 2]] = True
    asked = split.distilled_verbs.astype(np.float32) * config.distillation

    annotated = pairs.sources == ANNOTATED
    known, cached = np.nonzero(_match_pairs(humans, objects, labels, pairs) & annotated)
    teacher_probs = np.zeros(verb_labels.shape, dtype=np.float32)
    teacher_probs[known] = probabilities[cached] * asked
    teacher_probs[verb_labels] = 0

    only_labelled = config.candidates == "annotated" and protocol == "detector"
    wanted = annotated if only_labelled else ~annotated
    overlap = np.minimum(
        box_iou(humans, pairs.human_boxes), box_iou(objects, pairs.object_boxes)
    ) * (labels[:, None] == pairs.object_labels)
    candidates = np.flatnonzero(wanted & ~(overlap >= config.duplicate_iou).any(0))
    interactive = np.ones(len(rows), dtype=bool)
    if vocabulary.no_interaction is not None:
        interactive = ~verb_labels[:, vocabulary.no_interaction]
    boxes, box_labels = _detected_boxes(pairs, vocabulary.person, config.box_score_threshold)
    count = len(candidates)
    width = 0 if region_embeddings is None else region_embeddings.shape[1]
    pair_embeddings = np.zeros((len(rows) + count, width), dtype=np.float16)
    if region_embeddings is not None:
        pair_embeddings[known] = region_embeddings[cached]
        pair_embeddings[len(rows) :] = region_embeddings[candidates]
    values = {
        "human_boxes": np.concatenate([humans, pairs.human_boxes[candidates]]),
        "object_boxes": np.concatenate([objects, pairs.object_boxes[candidates]]),
        "object_labels": np.concatenate([labels, pairs.object_labels[candidates]]),
        "verb_labels": np.concatenate(
            [verb_labels, np.zeros((count, verb_labels.shape[1]), dtype=bool)]
        ),
        "teacher_probs": np.concatenate(
            [teacher_probs, (probabilities[candidates] * asked).astype(np.float32)]
        ),
        "seen": np.arange(len(rows) + count) < len(rows),
        "interactive": np.concatenate([interactive, np.ones(count, dtype=bool)]),
        "region_embeddings": pair_embeddings,
        "exhaustive_labels": np.array([dataset_index == 0 or len(rows) > 0]),
        "dataset_index": np.array([dataset_index]),
        "detected_boxes": boxes,
        "detected_labels": box_labels,
        "detected_images": np.zeros_like(box_labels),
    }
    return Targets(**{name: torch.from_numpy(value) for name, value in values.items()})


def _unique_pairs(hois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, 3) labels -> (P, 2) pairs (human row, object row) and (K,) the pair of each label."""
    rows, inverse = np.unique(hois[:, :2], axis=0, return_inverse=True)
    return rows.reshape(-1, 2), inverse.reshape(-1)


def _object_boxes_and_labels(
    annotation: Annotation, rows: np.ndarray, no_object: int
) -> tuple[np.ndarray, np.ndarray]:
    """(P, 4) boxes and (P,) labels of object rows; a verb without object (row -1) has an all-zero
    box and the label `no_object`: it teaches the query that no object goes with the person."""
    objectless = rows < 0
    boxes = np.where(objectless[:, None], np.float32(0), annotation.boxes[rows])
    return boxes, np.where(objectless, no_object, annotation.labels[rows])


def _match_pairs(
    humans: np.ndarray, objects: np.ndarray, labels: np.ndarray, pairs: Pairs
) -> np.ndarray:
    """(N, P) bool: annotated pair n is cached pair p, up to rounding of the boxes."""
    near = [
        np.abs(mine[:, None] - cached[None]).max(-1, initial=0) < 0.01
        for mine, cached in ((humans, pairs.human_boxes), (objects, pairs.object_boxes))
    ]
    return near[0] & near[1] & (labels[:, None] == pairs.object_labels)


def _detected_boxes(pairs: Pairs, person: int, score: float) -> tuple[np.ndarray, np.ndarray]:
    """The detector's own boxes, each once: people and objects that proposed pairs are made of."""
    proposed = pairs.sources == PROPOSED
    human = proposed & (pairs.human_scores >= score)
    thing = proposed & (pairs.object_scores >= score) & (pairs.object_labels != person)
    boxes = np.concatenate([pairs.human_boxes[human], pairs.object_boxes[thing]])
    labels = np.concatenate([np.full(human.sum(), person), pairs.object_labels[thing]])
    table = np.unique(np.column_stack([boxes, labels]), axis=0).reshape(-1, 5)
    return table[:, :4].astype(np.float32), table[:, 4].astype(np.int64)
