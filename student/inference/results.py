"""What the detector found in one picture."""

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
    """People, objects and what the people do with them; K interactions between N boxes.

    All boxes are xyxy in pixels of the upright picture: the EXIF orientation of a file is applied
    before anything else.

    Attributes:
        image: the picture's path, or "picture 3" for the fourth of a list.
        size: (width, height) of the upright picture, in pixels.
        boxes: (N, 4) float32.
        labels: (N,) int64, object indices of the vocabulary; people are objects too.
        names: N object names.
        pairs: (K, 2) int64, rows of `boxes`: the person, and the object or -1 where the verb
            takes none. Several interactions may share a pair.
        verbs: (K,) int64, verb indices of the vocabulary.
        actions: K texts such as "ride horse".
        scores: (K,) float32 from 0 to 1, highest first.
        unseen: (K,) bool, the interaction had no label in training.
        vocabulary: what the indices mean.
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
        """(K, 4) float32, the person's box of every interaction."""
        return self.boxes[self.pairs[:, 0]]

    @property
    def object_boxes(self) -> np.ndarray:
        """(K, 4) float32, the object's box of every interaction; NaN where there is none."""
        found = self.boxes[self.pairs[:, 1]] if len(self.boxes) else np.zeros((0, 4), np.float32)
        return np.where(self.pairs[:, 1:] >= 0, found, np.float32(np.nan))

    def to_dict(self) -> dict[str, Any]:
        """The form of `eoid-predict`'s JSON files, see the README; boxes to a hundredth pixel."""
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
        """Draws people, objects and actions; unseen actions have a star, explained below.

        "No interaction" is not drawn, and of interactions that name nearly the same pair and verb
        only the best one (pairwise NMS). Small pictures are enlarged to 512 pixels.

        Returns:
            A new RGB picture.

        Raises:
            InputError: the picture's file is not there any more.
        """
        shown = self.verbs != self.vocabulary.no_interaction
        detections = Detections(
            image_id=self.image,
            boxes=self.boxes,
            labels=self.labels,
            hois=np.column_stack([self.pairs, self.verbs])[shown],
            scores=self.scores[shown],
        )
        picture = to_rgb_image(self.image_input, self.image)
        unseen = _interaction_ids(self)[self.unseen & shown]
        drawn = draw_detections(
            picture, pairwise_nms(detections), self.vocabulary, set(unseen.tolist())
        )
        return add_legend(drawn) if len(unseen) else drawn

    def to_supervision(self) -> supervision.Detections:
        """The N boxes as `supervision.Detections`, for its annotators, trackers and filters.

        `class_id` are the object indices, `confidence` is the best score of a box's interactions.
        In `data`, an entry for every box: `class_name`; `role`, "person" or "object"; `pair`, equal
        numbers belonging together; `action`, the pair's best one with its score; and `actions`, a
        tuple of (text, score, unseen) for all of the pair's. A box in several pairs is repeated,
        so that every pair has its two boxes.

        Raises:
            ImportError: the package is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from None
        rows, roles, numbers, scores, texts, actions = [], [], [], [], [], []
        for number, (person, target) in enumerate(dict.fromkeys(map(tuple, self.pairs.tolist()))):
            own = np.flatnonzero((self.pairs == (person, target)).all(axis=1))
            for row, role in ((person, "person"), (target, "object")):
                if row >= 0:
                    rows.append(row)
                    roles.append(role)
                    numbers.append(number)
                    scores.append(self.scores[own[0]])
                    texts.append(f"{self.actions[own[0]]} {self.scores[own[0]]:.2f}")
                    actions.append(
                        tuple(
                            (self.actions[k], float(self.scores[k]), bool(self.unseen[k]))
                            for k in own
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
    """The best of a picture's detections, with the boxes that they need.

    Args:
        detections: scores falling.
        size: (width, height) of the upright picture.
        unseen: interactions without a label in training.
        image_input: the picture.
        threshold: least score.
        top: most interactions.
    """
    kept = np.flatnonzero(detections.scores >= threshold)[:top]
    hois = detections.hois[kept]
    used = np.unique(hois[:, :2])
    used = used[used >= 0]
    # The last entry answers for -1, the object of a verb without one.
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
        vocabulary.interaction_name(one) if one >= 0 else vocabulary.verbs[verb].replace("_", " ")
        for one, verb in zip(interactions.tolist(), chosen.verbs.tolist(), strict=True)
    )
    return replace(chosen, actions=tuple(actions), unseen=np.isin(interactions, sorted(unseen)))


def _interaction_ids(found: HOIResult) -> np.ndarray:
    """(K,) the vocabulary's interactions, -1 for verbs without object."""
    targets = found.pairs[:, 1]
    labels = np.append(found.labels, 0)[targets]
    return np.where(targets >= 0, found.vocabulary.interaction_ids[found.verbs, labels], -1)
