"""Training targets: seen pairs with labels, and candidate pairs with the teacher's probabilities.

A zero-shot split removes the labels of unseen interactions. What the student learns about them
comes from the teacher: verbs without label have the probability of the teacher cache as target if
they are distilled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
from teacher_cache.reader.format import ANNOTATED, PROPOSED

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
# In a batch these are concatenated; all other fields are padded.
PROPOSAL_FIELDS = ("proposal_boxes", "proposal_labels", "proposal_images")
# Largest difference in pixels between an annotated box and the same box in the cache, where it may
# have been rounded.
BOX_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of one image with N pairs, or of a batch of B images.

    In a batch tensors are (B, N, ...), where N is the largest number of pairs of an image. Padding
    is 0, hence neither seen nor interactive. The losses never modify these tensors.

    Attributes:
        human_boxes, object_boxes: (N, 4) float32, cxcywh in [0, 1], but xyxy in pixels until
            `student.data.dataset.make_sample`. A verb without object (V-COCO) has a zero object
            box.
        object_labels: (N,) int64; O, the index of "no pair", for a verb without object.
        verb_labels: (N, V) bool, the seen labels; all False for candidates.
        teacher_probs: (N, V) float32 in [0, 1], the teacher's probabilities of distilled verbs, 0
            where there is a label and for other verbs.
        seen: (N,) bool, False for candidates.
        interactive: (N,) bool, False for a seen pair that is labelled with "no interaction".
        region_embeddings: (N, D) float16, the teacher's embeddings of the pairs' regions, 0 for
            pairs that are not in the cache; (N, 0) without embedding loss.
        exhaustive_labels: (1,) bool, whether interactions without label are absent from the image.
            False for images without annotated interactions.
        dataset_index: (1,) int64, 0 for the main dataset.
        proposal_boxes: (M, 4) float32 boxes that the proposal head learns: those of the frozen
            detector, and those of seen pairs that it missed. In the form of the others.
        proposal_labels: (M,) int64 object classes.
        proposal_images: (M,) int64, index in the batch of the image that the box is in.
        num_pairs: (B, 1) int64 numbers of pairs; only in a batch.
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
    proposal_boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    proposal_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    proposal_images: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    num_pairs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Number of pairs of an image, or of images of a batch."""
        return len(self.object_labels)

    # DataLoader workers pass these small tensors by value. In shared memory, as tensors are passed
    # otherwise, each would need a file descriptor.
    def __getstate__(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        vars(self).update({name: torch.from_numpy(value) for name, value in state.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> Targets:
        """Applies a function to every tensor."""
        return Targets(**{name: function(value) for name, value in vars(self).items()})

    @property
    def pair_mask(self) -> Tensor:
        """(B, N) bool, False on padding; only of a batch."""
        index = torch.arange(self.seen.shape[-1], device=self.seen.device)
        return index < self.num_pairs

    def select(self, pairs: Tensor, proposals: Tensor) -> Targets:
        """Keeps a subset of an image's pairs and of the proposal head's boxes.

        Args:
            pairs: (N,) bool.
            proposals: (M,) bool.
        """
        rows = {name: getattr(self, name)[pairs] for name in PAIR_FIELDS}
        rows |= {name: getattr(self, name)[proposals] for name in PROPOSAL_FIELDS}
        return replace(self, **rows)

    @classmethod
    def collate(cls, targets: Sequence[Targets]) -> Targets:
        """Copies the targets of single images, at least one, into a batch."""
        values = {name: [getattr(one, name) for one in targets] for name in TARGET_FIELDS}
        values["num_pairs"] = [torch.tensor([len(one)]) for one in targets]
        values["proposal_images"] = [
            torch.full_like(one.proposal_labels, row) for row, one in enumerate(targets)
        ]
        return cls(
            **{
                name: torch.cat(own)
                if name in PROPOSAL_FIELDS
                else pad_sequence(own, batch_first=True)
                for name, own in values.items()
            }
        )


TARGET_FIELDS = tuple(entry.name for entry in fields(Targets))


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
    """Joins an image's annotation with its entry of the teacher cache.

    Args:
        annotation: of the image; the labels of unseen interactions are removed here.
        pairs, probabilities: the P pairs of the cache and their (P, V) verb probabilities.
        split, vocabulary: of annotation and cache.
        config: which pairs are candidates, and whether there is distillation.
        protocol: the cache's protocol: whether its unannotated pairs consist of boxes of a
            "detector" or of "annotated" boxes.
        region_embeddings: (P, D) the teacher's embeddings of the regions of `pairs`, for the
            embedding loss.
        few_shot_rows: rows of unseen labels that are kept.
        dataset_index: 0 for the main dataset, whose images are all exhaustively annotated. Images
            of an extra dataset are only if a label remains: what was removed must not have an
            effect.

    Returns:
        Targets with boxes xyxy in pixels of the original image, seen pairs first.
    """
    human_boxes, object_boxes, labels, verb_labels = _seen_pairs(
        annotation, split, vocabulary, few_shot_rows
    )
    num_seen = len(labels)
    distilled = split.distilled_verbs.astype(np.float32) * config.distillation

    annotated = pairs.sources == ANNOTATED
    same_pair = _match_pairs(human_boxes, object_boxes, labels, pairs) & annotated
    with_teacher, cached = np.nonzero(same_pair)
    teacher_probs = np.zeros(verb_labels.shape, dtype=np.float32)
    teacher_probs[with_teacher] = probabilities[cached] * distilled
    teacher_probs[verb_labels] = 0

    # In a cache of the detector protocol, annotated pairs give seen pairs their teacher
    # probabilities. With `candidates` "annotated", those whose labels are all unseen are the
    # candidates.
    annotated_only = config.candidates == "annotated" and protocol == "detector"
    duplicate = (_pair_iou(human_boxes, object_boxes, labels, pairs) >= config.duplicate_iou).any(0)
    candidates = np.flatnonzero((annotated if annotated_only else ~annotated) & ~duplicate)
    num_candidates = len(candidates)

    interactive = np.ones(num_seen, dtype=bool)
    if vocabulary.no_interaction is not None:
        interactive = ~verb_labels[:, vocabulary.no_interaction]
    embedding_dim = 0 if region_embeddings is None else region_embeddings.shape[1]
    pair_embeddings = np.zeros((num_seen + num_candidates, embedding_dim), dtype=np.float16)
    if region_embeddings is not None:
        pair_embeddings[with_teacher] = region_embeddings[cached]
        pair_embeddings[num_seen:] = region_embeddings[candidates]
    has_object = labels < vocabulary.num_objects
    proposal_boxes, proposal_labels = _add_missed_boxes(
        *_detected_boxes(pairs, vocabulary.person, config.box_score_threshold),
        np.concatenate([human_boxes, object_boxes[has_object]]),
        np.concatenate([np.full(num_seen, vocabulary.person), labels[has_object]]),
        config.duplicate_iou,
    )
    no_labels = np.zeros((num_candidates, vocabulary.num_verbs), dtype=bool)
    candidate_probs = (probabilities[candidates] * distilled).astype(np.float32)
    values = {
        "human_boxes": np.concatenate([human_boxes, pairs.human_boxes[candidates]]),
        "object_boxes": np.concatenate([object_boxes, pairs.object_boxes[candidates]]),
        "object_labels": np.concatenate([labels, pairs.object_labels[candidates]]),
        "verb_labels": np.concatenate([verb_labels, no_labels]),
        "teacher_probs": np.concatenate([teacher_probs, candidate_probs]),
        "seen": np.arange(num_seen + num_candidates) < num_seen,
        "interactive": np.concatenate([interactive, np.ones(num_candidates, dtype=bool)]),
        "region_embeddings": pair_embeddings,
        "exhaustive_labels": np.array([dataset_index == 0 or num_seen > 0]),
        "dataset_index": np.array([dataset_index]),
        "proposal_boxes": proposal_boxes,
        "proposal_labels": proposal_labels,
        "proposal_images": np.zeros_like(proposal_labels),
    }
    return Targets(**{name: torch.from_numpy(value) for name, value in values.items()})


def label_cached_pairs(
    annotation: Annotation, pairs: Pairs, split: Split, vocabulary: Vocabulary, min_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the P pairs of an image in the cache, for a classifier of cached pairs.

    An annotated pair has its seen labels. A proposed pair has those of all annotated pairs of the
    same object that both its boxes overlap by `min_iou`.

    Returns:
        - (P, V) bool labels;
        - (P,) bool, the pairs to train on: all but annotated pairs without seen label, which would
          show where unseen interactions are.
    """
    human_boxes, object_boxes, labels, verb_labels = _seen_pairs(annotation, split, vocabulary)
    annotated = pairs.sources == ANNOTATED
    matches = np.where(
        annotated,
        _match_pairs(human_boxes, object_boxes, labels, pairs),
        _pair_iou(human_boxes, object_boxes, labels, pairs) >= min_iou,
    )
    # A product of float32 numbers, which is many times as fast as one of bool.
    cached_labels = matches.T.astype(np.float32) @ verb_labels.astype(np.float32) > 0
    return cached_labels, ~annotated | cached_labels.any(axis=1)


def _seen_pairs(
    annotation: Annotation,
    split: Split,
    vocabulary: Vocabulary,
    few_shot_rows: Collection[int] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The N distinct annotated pairs with a seen label: human and object boxes (N, 4), object
    classes (N,), verb labels (N, V) bool. See `Targets` for verbs without object."""
    seen = remove_unseen_labels(annotation, split, vocabulary, few_shot_rows)
    pair_rows, label_pairs = np.unique(seen.hois[:, :2], axis=0, return_inverse=True)
    # The shape of the inverse differs between versions of numpy.
    label_pairs = label_pairs.reshape(-1)
    human_rows, object_rows = pair_rows.reshape(-1, 2).T
    human_boxes, objectless = seen.boxes[human_rows], object_rows < 0
    object_boxes = np.where(objectless[:, None], np.float32(0), seen.boxes[object_rows])
    labels = np.where(objectless, vocabulary.num_objects, seen.labels[object_rows])
    verb_labels = np.zeros((len(pair_rows), vocabulary.num_verbs), dtype=bool)
    verb_labels[label_pairs, seen.hois[:, 2]] = True
    return human_boxes, object_boxes, labels, verb_labels


def _pair_iou(
    human_boxes: np.ndarray, object_boxes: np.ndarray, labels: np.ndarray, pairs: Pairs
) -> np.ndarray:
    """(N, P) the smaller IoU of both boxes of annotated pair n and cached pair p; 0 for different
    objects."""
    overlap = np.minimum(
        box_iou(human_boxes, pairs.human_boxes), box_iou(object_boxes, pairs.object_boxes)
    )
    return overlap * (labels[:, None] == pairs.object_labels)


def _match_pairs(
    human_boxes: np.ndarray, object_boxes: np.ndarray, labels: np.ndarray, pairs: Pairs
) -> np.ndarray:
    """(N, P) bool, whether annotated pair n is cached pair p, up to `BOX_TOLERANCE`."""
    same_human, same_object = (
        np.abs(boxes[:, None] - cached[None]).max(-1, initial=0) < BOX_TOLERANCE
        for boxes, cached in ((human_boxes, pairs.human_boxes), (object_boxes, pairs.object_boxes))
    )
    return same_human & same_object & (labels[:, None] == pairs.object_labels)


def _detected_boxes(pairs: Pairs, person: int, min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """The detector's boxes that proposed pairs consist of, without duplicates: (M, 4) and (M,)."""
    proposed = pairs.sources == PROPOSED
    humans = proposed & (pairs.human_scores >= min_score)
    # People are taken from the humans of the pairs only.
    objects = proposed & (pairs.object_scores >= min_score) & (pairs.object_labels != person)
    boxes = np.concatenate([pairs.human_boxes[humans], pairs.object_boxes[objects]])
    labels = np.concatenate([np.full(humans.sum(), person), pairs.object_labels[objects]])
    table = np.unique(np.column_stack([boxes, labels]), axis=0).reshape(-1, 5)
    return table[:, :4].astype(np.float32), table[:, 4].astype(np.int64)


def _add_missed_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    labelled_boxes: np.ndarray,
    labelled_classes: np.ndarray,
    min_iou: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The detector's boxes, followed by the labelled ones that it missed.

    Without these, the proposal head would learn that there is nothing where the detector missed a
    labelled pair.

    Args:
        boxes, labels: (M, 4) xyxy in pixels and (M,) object classes, of the detector.
        labelled_boxes, labelled_classes: (N, 4) and (N,) of the seen pairs.
        min_iou: a labelled box is left out if a box of the same class before it overlaps it by this
            IoU: people of several pairs are labelled several times.
    """
    for row in range(len(labelled_boxes)):
        box, label = labelled_boxes[row : row + 1], labelled_classes[row : row + 1]
        if not (box_iou(box, boxes[labels == label]) >= min_iou).any():
            boxes, labels = np.concatenate([boxes, box]), np.concatenate([labels, label])
    return boxes, labels
