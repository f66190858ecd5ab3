import numpy as np
import pytest
import torch

from pipeline.splits import load_split
from pipeline.types import Annotation, Detections
from pipeline.utils.errors import InputError
from student.engine.evaluate import Validator, split_validation
from student.utils.distributed import Execution


@pytest.mark.parametrize(
    ("wanted", "size", "count"), [(0, 9, 0), (0.25, 16, 4), (0.001, 16, 1), (3, 9, 3), (1, 9, 1)]
)
def test_held_out_images_are_not_trained_on(wanted, size, count):
    trained, held = split_validation(wanted, size, seed=4)
    assert len(held) == count and sorted(trained + held) == list(range(size))
    assert (trained, held) == split_validation(wanted, size, seed=4)
    assert not 1 < count < size or held != split_validation(wanted, size, seed=5)[1]


@pytest.mark.parametrize("wanted", [9, 10, 0.999])
def test_something_is_left_to_train_on(wanted):
    with pytest.raises(InputError, match="val_size: expected fewer than the 9 training images"):
        split_validation(wanted, 9, seed=0)


def detections(annotation):
    """Everything that is labelled, and nothing else."""
    kept = annotation.hois[annotation.hois[:, 1] >= 0]
    scores = np.linspace(0.9, 0.5, len(kept), dtype=np.float32)
    return Detections(annotation.image_id, annotation.boxes, annotation.labels, kept, scores)


class FixedPredictor:
    """A predictor that returns given detections."""

    def __init__(self, found):
        self.found = found

    def to(self, device):
        return self

    def predict(self, *_):
        return self.found


def test_unseen_labels_do_not_affect_the_score(dataset, annotations, vocabulary, tmp_path):
    """A model that detects everything and one without unseen actions score the same."""
    split = load_split(vocabulary, "ua")
    chosen = annotations.annotations[:8]
    records = dataset.records(annotations)[:8]
    held = Validator(records, chosen, split, vocabulary)
    distilled = np.flatnonzero(split.distilled_verbs)
    assert any(np.isin(one.hois[:, 2], distilled).any() for one in chosen)
    assert not any(np.isin(one.hois[:, 2], distilled).any() for one in held.annotations)
    scores = []
    for known in (chosen, held.annotations):
        found = [detections(one) for one in known]
        execution = Execution(torch.device("cpu"))
        scores.append(held.evaluate(FixedPredictor(found), execution, tmp_path / "drawn"))
    first, second = scores
    assert first["seen"] == second["seen"] == 1.0
    assert len(list((tmp_path / "drawn").iterdir())) == 4


def test_images_without_labels_score_nothing(dataset, annotations, vocabulary, tmp_path):
    split, record = load_split(vocabulary, "ua"), dataset.records(annotations)[0]
    nothing = np.zeros((0, 3), dtype=np.int64)
    empty = Annotation(record.id, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), nothing)
    held = Validator([record], [empty], split, vocabulary)
    predictor = FixedPredictor([detections(empty)])
    assert held.evaluate(predictor, Execution(torch.device("cpu")), tmp_path / "drawn") == {}
    assert not (tmp_path / "drawn").exists()
