"""`HOIResult`, the interactions detected in one image, and `select_top`, which makes it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from evaluation.drawing.interactions import add_legend, draw_detections
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
        image = to_rgb_image(self.image_input, self.image)
        unseen = _interaction_ids(self)[self.unseen & shown]
        drawn = draw_detections(
            image, pairwise_nms(detections), self.vocabulary, set(unseen.tolist())
        )
        return add_legend(drawn) if len(unseen) else drawn

    def to_supervision(self) -> supervision.Detections:
        """Converts to `supervision.Detections`, with one row per box of every pair.

        A box of several pairs is repeated. `class_id` holds object indices and `confidence` the
        highest score of the pair. `data` holds for every row: `class_name`; `role`, "person" or
        "object"; `pair`, the index of the pair; `action`, the pair's best action with its score;
        and `actions`, a tuple of (name, score, unseen) with all actions of the pair.

        Raises:
            ImportError: the package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from None
        rows, roles, numbers, scores, texts, actions = [], [], [], [], [], []
        for number, (person, target) in enumerate(dict.fromkeys(map(tuple, self.pairs.tolist()))):
            of_pair = np.flatnonzero((self.pairs == (person, target)).all(axis=1))
            for row, role in ((person, "person"), (target, "object")):
                if row >= 0:
                    rows.append(row)
                    roles.append(role)
                    numbers.append(number)
                    scores.append(self.scores[of_pair[0]])
                    texts.append(f"{self.actions[of_pair[0]]} {self.scores[of_pair[0]]:.2f}")
                    actions.append(
                        tuple(
                            (self.actions[k], float(self.scores[k]), bool(self.unseen[k]))
                            for k in of_pair
                        )
                    )
        listed = np.empty(len(actions), dtype=object)
        listed[:] = actions
        index = np.array(rows, dtype=np.int64)
        return supervision.Detections(
            xyxy=self.boxes[index].reshape(-1, 4),
            class_id=self.labels[index],
            confidence=np.array(scores, dtype=np.float32),
            data={
                "class_name": np.array([self.names[row] for row in rows], dtype=str),
                "role": np.array(roles, dtype=str),
                "pair": np.array(numbers, dtype=np.int64),
                "action": np.array(texts, dtype=str),
                "actions": listed,
            },
        )


def select_top(
    detections: Detections,
    size: tuple[int, int],
    vocabulary: Vocabulary,
    unseen: Collection[int],
    image_input: ImageInput,
    threshold: float,
    top: int,
) -> HOIResult:
    """The highest-scoring interactions of an image, with only the boxes that they use.

    Args:
        detections: of the image, in descending order of score.
        size: (width, height) of the upright image, in pixels.
        vocabulary: names of the detections' indices.
        unseen: unseen interactions of the vocabulary.
        image_input: the image.
        threshold: minimum score.
        top: maximum number of interactions.
    """
    kept = np.flatnonzero(detections.scores >= threshold)[:top]
    hois = detections.hois[kept]
    used = np.unique(hois[:, :2])
    used = used[used >= 0]
    # Index -1, a verb without object, reads the additional last entry, which is -1 as well.
    renumbered = np.full(len(detections.boxes) + 1, -1, dtype=np.int64)
    renumbered[used] = np.arange(len(used))
    labels = detections.labels[used]
    chosen = HOIResult(
        image=detections.image_id,
        size=size,
        boxes=detections.boxes[used],
        labels=labels,
        names=tuple(vocabulary.objects[label] for label in labels.tolist()),
        pairs=renumbered[hois[:, :2]],
        verbs=hois[:, 2],
        actions=(),
        scores=detections.scores[kept].astype(np.float32),
        unseen=np.zeros(0, dtype=bool),
        vocabulary=vocabulary,
        image_input=image_input,
    )
    interactions = _interaction_ids(chosen)
    actions = (
        vocabulary.interaction_name(hoi) if hoi >= 0 else vocabulary.verbs[verb].replace("_", " ")
        for hoi, verb in zip(interactions.tolist(), chosen.verbs.tolist(), strict=True)
    )
    return replace(chosen, actions=tuple(actions), unseen=np.isin(interactions, sorted(unseen)))


def _interaction_ids(result: HOIResult) -> np.ndarray:
    """(K,) interaction indices of the vocabulary, -1 for verbs without object."""
    objects = result.pairs[:, 1]
    labels = np.append(result.labels, 0)[objects]
    return np.where(objects >= 0, result.vocabulary.interaction_ids[result.verbs, labels], -1)
