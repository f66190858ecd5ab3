from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.samples import (
    GAP,
    LONG_SIDE,
    NUM_SAMPLES,
    TITLE_HEIGHT,
    draw_samples,
)
from pipeline.types import Detections


def detections(annotation):
    kept = annotation.hois[annotation.hois[:, 1] >= 0]
    scores = np.linspace(0.9, 0.1, len(kept), dtype=np.float32)
    return Detections(annotation.image_id, annotation.boxes, annotation.labels, kept, scores)


@pytest.mark.parametrize("count", [0, 2, 16])
def test_samples_are_always_the_same_images(dataset, annotations, toy, tmp_path, count):
    chosen = annotations.annotations[:count]
    found = [detections(annotation) for annotation in chosen]
    labelled = sum(len(annotation.hois) > 0 for annotation in chosen)
    drawn = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        records = dataset.records(annotations)[:count]
        draw_samples(folder, records, chosen, found, toy, unseen=(1, 2))
        drawn.append({path.name: path.read_bytes() for path in folder.glob("*")})
        assert {Image.open(path).size for path in folder.glob("*")} <= {
            (2 * LONG_SIDE + GAP, LONG_SIDE + TITLE_HEIGHT)
        }
    assert drawn[0] == drawn[1] and len(drawn[0]) == min(NUM_SAMPLES, labelled)


def test_the_best_detections_are_drawn_and_marked(dataset, annotations, toy, tmp_path):
    chosen = next(annotation for annotation in annotations.annotations if len(annotation.hois))
    records = [record for record in dataset.records(annotations) if record.id == chosen.image_id]
    right = detections(chosen)
    others = right.hois.copy()
    others[:, 2] = (others[:, 2] + 1) % toy.num_verbs
    more = replace(
        right,
        hois=np.vstack([right.hois, others]),
        scores=np.append(right.scores, right.scores / 100),
    )
    images = []
    for name, found in (
        ("right", right),
        ("more", more),
        ("wrong", replace(right, boxes=right.boxes / 4)),
    ):
        draw_samples(tmp_path / name, records, [chosen], [found], toy)
        (path,) = (tmp_path / name).iterdir()
        images.append(np.asarray(Image.open(path)))
    # Both sides have a title, a different one.
    titles = images[0][:TITLE_HEIGHT]
    left, right = titles[:, :LONG_SIDE], titles[:, LONG_SIDE + GAP :]
    assert (left > 200).any() and (right > 200).any() and not np.array_equal(left, right)
    # Low-scoring ones are left out; the ground truth is the same.
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0][:, :LONG_SIDE], images[2][:, :LONG_SIDE])
    assert not np.array_equal(images[0], images[2])
