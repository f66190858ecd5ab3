"""`HOIResult`, the interactions detected in one image, and `build_result`, which makes it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from evaluation.drawing.interactions import add_legend, draw_interactions
from evaluation.hico.nms import pairwise_nms
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary
from student.inference.images import ImageInput, to_rgb_image

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class HOIResult:
    """K human-object interactions between N boxes in one image.

    Boxes are xyxy in pixels of the upright image, after its EXIF orientation is applied.

    Attributes:
        image: the image's path, or "image 3" at index 3 of a list.
        size: (width, height) of the upright image, in pixels.
        boxes: (N, 4) float32.
        labels: (N,) int64, object indices of the vocabulary; "person" is one of the objects.
        names: N object names, of `labels`.
        pairs: (K, 2) int64, rows of `boxes`: the person, and the object or -1 for a verb without
            object. Several interactions may share a pair.
        verbs: (K,) int64, verb indices of the vocabulary.
        actions: K names such as "ride horse".
        scores: (K,) float32 from 0 to 1, descending.
        unseen: (K,) bool, whether the interaction had no label in training.
        vocabulary: names of the indices.
        image_input: the image as it was given, for `draw`.
    """

    image: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    pairs: np.ndarray
    verbs: np.ndarray
    actions: tuple[str, ...]
    scores: np.ndarray
    unseen: np.ndarray
    vocabulary: Vocabulary = field(repr=False)
    image_input: ImageInput = field(repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def human_boxes(self) -> np.ndarray:
        """(K, 4) float32, the human box of every interaction."""
        return self.boxes[self.pairs[:, 0]]

    @property
    def object_boxes(self) -> np.ndarray:
        """(K, 4) float32, the object box of every interaction; NaN for a verb without object."""
        boxes = self.boxes[self.pairs[:, 1]] if len(self.boxes) else np.zeros((0, 4), np.float32)
        return np.where(self.pairs[:, 1:] >= 0, boxes, np.float32(np.nan))

    def to_dict(self) -> dict[str, Any]:
        """The entry of `eoid-predict`'s JSON files; boxes are rounded to a hundredth of a pixel."""
        boxes = np.round(self.boxes.astype(np.float64), 2).tolist()
        scores = np.round(self.scores.astype(np.float64), 6).tolist()
        return {
            "image": self.image,
            "width": self.size[0],
            "height": self.size[1],
            "boxes": [
                {"box": box, "label": name} for box, name in zip(boxes, self.names, strict=True)
            ],
            "interactions": [
                {
                    "person": person,
                    "object": target if target >= 0 else None,
                    "verb": self.vocabulary.verbs[verb],
                    "action": action,
                    "score": score,
                    "unseen": unseen,
                }
                for (person, target), verb, action, score, unseen in zip(
                    self.pairs.tolist(),
                    self.verbs.tolist(),
                    self.actions,
                    scores,
                    self.unseen.tolist(),
                    strict=True,
                )
            ],
        }

    def draw(self) -> Image.Image:
        """Draws the boxes and actions; unseen actions are starred, which a legend explains.

        "No interaction" is not drawn, and near-duplicate interactions are removed by pairwise NMS.
        Small images are enlarged to 512 pixels.

        Returns:
            A new RGB image.

        Raises:
            InputError: the image's file cannot be read any more.
        """
        shown = self.verbs != self.vocabulary.no_interaction
        detections = Detections(
            image_id=self.image,
            boxes=self.boxes,
            labels=self.labels,
            hois=np.column_stack([self.pairs, self.verbs])[shown],
            scores=self.scores[shown],
        )
        unseen = set(_interaction_ids(detections, self.vocabulary)[self.unseen[shown]].tolist())
        image = to_rgb_image(self.image_input, self.image)
        drawn = draw_interactions(image, pairwise_nms(detections), self.vocabulary, unseen)
        return add_legend(drawn) if unseen else drawn

    def to_supervision(self) -> supervision.Detections:
        """Converts to `supervision.Detections`, with one row per box of every pair.

        A box of several pairs is repeated. `class_id` holds object indices and `confidence` the
        highest score of the pair. `data` holds for every row: `class_name`; `role`, "person" or
        "object"; `pair`, the index of the pair, equal for its two rows; `box`, the row of the box
        in `boxes`, equal for repeated ones; `action`, the pair's best action with its score; and
        `actions`, a tuple of (name, score, unseen) with all actions of the pair.

        Raises:
            ImportError: the package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from None
        entries = [
            (row, role, number, np.flatnonzero((self.pairs == pair).all(axis=1)))
            for number, pair in enumerate(dict.fromkeys(map(tuple, self.pairs.tolist())))
            for row, role in zip(pair, ("person", "object"), strict=True)
            if row >= 0
        ]
        rows = np.array([row for row, *_ in entries], dtype=np.int64)
        best = np.array([of_pair[0] for *_, of_pair in entries], dtype=np.int64)
        actions = np.empty(len(entries), dtype=object)
        actions[:] = [
            tuple((self.actions[k], float(self.scores[k]), bool(self.unseen[k])) for k in of_pair)
            for *_, of_pair in entries
        ]
        return supervision.Detections(
            xyxy=self.boxes[rows].reshape(-1, 4),
            class_id=self.labels[rows],
            confidence=self.scores[best],
            data={
                "class_name": np.array([self.names[row] for row in rows], dtype=str),
                "role": np.array([role for _, role, *_ in entries], dtype=str),
                "pair": np.array([number for *_, number, _ in entries], dtype=np.int64),
                "box": rows,
                "action": np.array(
                    [f"{self.actions[k]} {self.scores[k]:.2f}" for k in best], dtype=str
                ),
                "actions": actions,
            },
        )

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Converts to entries of a COCO results file, one per box.

        `bbox` is [x, y, width, height] in pixels of the upright image, `category_id` the
        vocabulary's (COCO's for HICO-DET and V-COCO), and `score` the highest score of the box's
        interactions. COCO's tools ignore the other fields: `box`, the row in `boxes`, and
        `interactions`, those of which the box is the person, as in `to_dict`; their `object` is the
        `box` of another entry of the image, or None.

        Args:
            image_id: id of the image in COCO's annotation file; None takes `image`.
        """
        value = self.to_dict()
        interactions = value["interactions"]
        entries = []
        for row, label in enumerate(self.labels.tolist()):
            left, top, right, bottom = value["boxes"][row]["box"]
            entries.append(
                {
                    "image_id": self.image if image_id is None else image_id,
                    "category_id": self.vocabulary.category_ids[label],
                    "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                    "score": max(
                        one["score"]
                        for one in interactions
                        if row in (one["person"], one["object"])
                    ),
                    "box": row,
                    "interactions": [
                        {name: part for name, part in one.items() if name != "person"}
                        for one in interactions
                        if one["person"] == row
                    ],
                }
            )
        return entries


def build_result(
    detections: Detections,
    size: tuple[int, int],
    vocabulary: Vocabulary,
    unseen: Collection[int],
    image_input: ImageInput,
) -> HOIResult:
    """The result of an image, with only the boxes that its interactions use.

    Args:
        detections: of the image, in descending order of score.
        size: (width, height) of the upright image, in pixels.
        vocabulary: names of the detections' indices.
        unseen: unseen interactions of the vocabulary.
        image_input: the image.
    """
    hois = detections.hois
    used = np.unique(hois[:, :2])
    used = used[used >= 0]
    # Index -1, a verb without object, reads the additional last entry, which is -1 as well.
    renumbered = np.full(len(detections.boxes) + 1, -1, dtype=np.int64)
    renumbered[used] = np.arange(len(used))
    interactions = _interaction_ids(detections, vocabulary)
    actions = (
        vocabulary.interaction_name(hoi) if hoi >= 0 else vocabulary.verbs[verb].replace("_", " ")
        for hoi, verb in zip(interactions.tolist(), hois[:, 2].tolist(), strict=True)
    )
    labels = detections.labels[used]
    return HOIResult(
        image=detections.image_id,
        size=size,
        boxes=detections.boxes[used],
        labels=labels,
        names=tuple(vocabulary.objects[label] for label in labels.tolist()),
        pairs=renumbered[hois[:, :2]],
        verbs=hois[:, 2],
        actions=tuple(actions),
        scores=detections.scores.astype(np.float32),
        unseen=np.isin(interactions, sorted(unseen)),
        vocabulary=vocabulary,
        image_input=image_input,
    )


def _interaction_ids(detections: Detections, vocabulary: Vocabulary) -> np.ndarray:
    """(K,) interaction indices of the vocabulary, -1 for verbs without object."""
    _, objects, verbs = detections.hois.T
    labels = np.append(detections.labels, 0)[objects]
    return np.where(objects >= 0, vocabulary.interaction_ids[verbs, labels], -1)
