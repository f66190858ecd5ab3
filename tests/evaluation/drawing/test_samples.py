from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.samples import GAP, LONG_SIDE, NUM_SAMPLES, draw_samples, top_detections
from pipeline.types import Detections


def detections(annotation, scores=None):
    kept = annotation.hois[annotation.hois[:, 1] >= 0]
    scores = np.full(len(kept), 0.5, dtype=np.float32) if scores is None else scores
    return Detections(annotation.image_id, annotation.boxes, annotation.labels, kept, scores)


@pytest.mark.parametrize("count", [0, 2, 16])
def test_samples_are_always_the_same_images(dataset, annotations, toy, tmp_path, count):
    chosen = annotations.annotations[:count]
    records = dataset.records(annotations)[:count]
    names = []
    for folder in ("first", "second"):
        found = [detections(annotation) for annotation in chosen]
        draw_samples(tmp_path / folder, records, chosen, found, toy, unseen=(1, 2))
        names.append(sorted(path.name for path in tmp_path.glob(f"{folder}/*")))
    labelled = sum(len(annotation.hois) > 0 for annotation in chosen)
    assert names[0] == names[1] and len(names[0]) == min(NUM_SAMPLES, labelled)
    for path in tmp_path.glob("first/*"):
        image = Image.open(path)
        assert image.size == (2 * LONG_SIDE + GAP, LONG_SIDE)
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_correct_and_wrong_ones_are_drawn_differently(dataset, annotations, toy, tmp_path):
    chosen = [next(annotation for annotation in annotations.annotations if len(annotation.hois))]
    records = [record for record in dataset.records(annotations) if record.id == chosen[0].image_id]
    right = detections(chosen[0])
    wrong = replace(right, boxes=right.boxes / 4)
    for name, found in (("right", right), ("wrong", wrong)):
        draw_samples(tmp_path / name, records, chosen, [found], toy)
    first, second = (next((tmp_path / name).iterdir()) for name in ("right", "wrong"))
    left = (0, 0, LONG_SIDE, LONG_SIDE)
    images = [np.asarray(Image.open(path).crop(left)) for path in (first, second)]
    assert np.array_equal(*images) and first.read_bytes() != second.read_bytes()


def test_top_detections(annotations):
    chosen = next(annotation for annotation in annotations.annotations if len(annotation.hois) > 2)
    found = detections(chosen, np.linspace(0.1, 0.9, (chosen.hois[:, 1] >= 0).sum()))
    best = top_detections(found, 2)
    assert best.scores.tolist() == sorted(best.scores.tolist(), reverse=True)
    assert best.scores[0] == found.scores[-1] and len(best.hois) <= 2
