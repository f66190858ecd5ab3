"""Small annotations and detections in the world's vocabulary."""

import numpy as np
import pytest

from pipeline.types import Annotation, Detections
from pipeline.vocabulary import load_vocabulary

PERSON, BALL = [0.0, 0.0, 9.0, 19.0], [20.0, 0.0, 29.0, 9.0]


@pytest.fixture(scope="session")
def world():
    return load_vocabulary("world")


@pytest.fixture(scope="session")
def annotate(world):
    """`annotate("a.jpg", ("kick", "ball"), ...)`: every pair a person and an object of its own,
    stacked 100 pixels apart."""

    def build(image_id, *names):
        return Annotation(image_id, *_content(world, names, [0.0] * len(names)))

    return build


@pytest.fixture(scope="session")
def detect(world):
    """`detect("a.jpg", ("kick", "ball", 0.9), ...)`, the same places as `annotate`; a fourth entry
    shifts a detection's two boxes to the right by so many pixels, a fifth names its row."""

    def build(image_id, *found):
        names = [entry[:2] for entry in found]
        shifts = [entry[3] if len(entry) > 3 else 0.0 for entry in found]
        rows = [entry[4] if len(entry) > 4 else row for row, entry in enumerate(found)]
        scores = np.array([entry[2] for entry in found], dtype=np.float32)
        return Detections(image_id, *_content(world, names, shifts, rows), scores)

    return build


def _content(vocabulary, names, shifts, rows=None):
    boxes, labels, hois = [], [], []
    for index, ((verb, label), shift) in enumerate(zip(names, shifts, strict=True)):
        row = index if rows is None else rows[index]
        for box in (PERSON, BALL):
            boxes.append(np.array(box) + np.array([shift, 100 * row] * 2))
        labels += [vocabulary.person, vocabulary.objects.index(label)]
        hois.append((2 * index, 2 * index + 1, vocabulary.verbs.index(verb)))
    return (
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(hois, dtype=np.int64).reshape(-1, 3),
    )
