from contextlib import nullcontext

import numpy as np
import pytest
import torch

from pipeline.types import Annotation
from teacher_cache.detectors.torchvision import toy_detector
from teacher_cache.toy.models import DetectorTrainingConfig, _flip, train_detector


@pytest.fixture
def detector():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return toy_detector(9).eval()


def test_it_answers_as_torchvisions_detectors_do(detector):
    detector.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        outputs = detector([torch.rand(3, 128, 128), torch.rand(3, 96, 128)])
    assert len(outputs) == 2
    for output, (height, width) in zip(outputs, ((128, 128), (96, 128)), strict=True):
        assert set(output) == {"boxes", "labels", "scores"}
        count = len(output["scores"])
        assert output["boxes"].shape == (count, 4) and output["labels"].shape == (count,)
        assert count and output["labels"].min() >= 1 and output["labels"].max() <= 9
        assert (output["boxes"] >= 0).all() and (output["boxes"][:, 2] <= width).all()
        assert (output["boxes"][:, 3] <= height).all()


def test_it_is_small(detector):
    assert 1e6 < sum(parameter.numel() for parameter in detector.parameters()) < 2e6


def test_a_flip_takes_the_boxes_along():
    image = torch.zeros(3, 4, 10, dtype=torch.uint8)
    image[:, 1:3, 2:5] = 255
    target = {"boxes": torch.tensor([[2.0, 1, 5, 3]]), "labels": torch.tensor([7])}
    assert _flip(image, target, False)[1] is target
    flipped, moved = _flip(image, target, True)
    assert moved["boxes"].tolist() == [[5, 1, 8, 3]] and moved["labels"].tolist() == [7]
    left, top, right, bottom = moved["boxes"][0].int().tolist()
    assert (flipped[:, top:bottom, left:right] == 255).all()
    assert target["boxes"].tolist() == [[2, 1, 5, 3]]


def test_training_follows_its_generator(vocabulary):
    images = torch.randint(0, 256, (6, 3, 128, 128), dtype=torch.uint8)
    boxes = np.array([[10, 10, 60, 90], [50, 40, 100, 80]], dtype=np.float32)
    labels = np.array([vocabulary.person, 1])
    annotations = [
        Annotation(f"{row}.jpg", boxes, labels, np.zeros((0, 3), dtype=np.int64))
        for row in range(6)
    ]

    def train():
        told = []
        model = train_detector(
            images,
            annotations,
            vocabulary,
            DetectorTrainingConfig(epochs=1, batch_size=2),
            torch.Generator().manual_seed(3),
            torch.device("cpu"),
            nullcontext,
            lambda count, note: told.append((count, note)),
        )
        return model, told

    state = torch.get_rng_state()
    model, told = train()
    assert not model.training and torch.equal(state, torch.get_rng_state())
    assert [count for count, _ in told] == [2, 2, 2]
    again, _ = train()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
