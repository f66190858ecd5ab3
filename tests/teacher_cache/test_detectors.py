from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import get_model

from pipeline.errors import InputError
from teacher_cache.detectors import DEFAULT, WORLD, Detector, DetectorConfig, recognise

CPU = torch.device("cpu")
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def images(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="session")
def world_weights(shared_dataset):
    return str(shared_dataset / "detector.safetensors")


@pytest.fixture(scope="session")
def coco_weights(tmp_path_factory):
    """A COCO detector of torchvision's with random weights, in torchvision's own file form."""
    path = tmp_path_factory.mktemp("weights") / "coco.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_model(SMALL, weights=None, weights_backbone=None)
    torch.save(model.state_dict(), path)
    return str(path)


def test_nothing_to_look_at(world_weights, vocabulary):
    assert Detector(DetectorConfig(WORLD, world_weights), vocabulary, CPU)([]) == []


def test_the_worlds_detector(world_weights, vocabulary):
    detector = Detector(DetectorConfig(WORLD, world_weights), vocabulary, CPU)
    found = detector(images(3))
    assert len(found) == 3
    for one in found:
        assert len(one.boxes) == len(one.labels) == len(one.scores) > 0
        assert one.boxes.dtype == one.scores.dtype == np.float32
        assert one.labels.min() >= 0 and one.labels.max() < vocabulary.num_objects
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
    assert detector.name == WORLD


def test_low_scores_are_not_wanted(world_weights, vocabulary):
    everything = Detector(DetectorConfig(WORLD, world_weights, 0.05), vocabulary, CPU)(images(1))[0]
    cut = float(np.median(everything.scores))
    best = Detector(DetectorConfig(WORLD, world_weights, cut), vocabulary, CPU)(images(1))[0]
    kept = everything.scores > cut
    np.testing.assert_array_equal(best.scores, everything.scores[kept])
    np.testing.assert_array_equal(best.boxes, everything.boxes[kept])


def test_categories_become_the_vocabularys_objects(world_weights, vocabulary):
    """The same detector under a vocabulary that counts otherwise and knows fewer things."""
    whole = Detector(DetectorConfig(WORLD, world_weights), vocabulary, CPU)(images(1))[0]
    other = replace(vocabulary, objects=("bike", "person", "chair"), object_ids=(4, 1, 9))
    part = Detector(DetectorConfig(WORLD, world_weights), other, CPU)(images(1))[0]
    ids = np.array(vocabulary.object_ids)[whole.labels]
    kept = np.isin(ids, other.object_ids)
    np.testing.assert_array_equal(np.array(other.object_ids)[part.labels], ids[kept])
    np.testing.assert_array_equal(part.boxes, whole.boxes[kept])


def test_a_torchvision_detector_from_a_file(coco_weights, vocabulary):
    detector = Detector(DetectorConfig(SMALL, coco_weights, 0.0), vocabulary, CPU)
    (found,) = detector(images(1))
    assert detector.name == SMALL
    assert found.boxes.shape == (len(found.labels), 4)
    assert set(found.labels.tolist()) <= set(range(vocabulary.num_objects))


def test_recognise(world_weights, coco_weights, vocabulary):
    assert recognise(Path(world_weights), vocabulary) == WORLD
    assert recognise(Path(coco_weights), vocabulary) == DEFAULT


@pytest.mark.parametrize(
    "name, weights, text",
    [
        ("yolo", None, "--detector: expected world or one of .*retinanet.*, found yolo"),
        (WORLD, None, "--detector-weights: expected a file for the detector world"),
        (WORLD, "absent.safetensors", "absent.safetensors: no such weights file"),
        (SMALL, "COCO_V9", "--detector-weights: expected a file or one of COCO_V1"),
        (SMALL, "{world}", "expected weights of the detector fasterrcnn.*another architecture"),
        (WORLD, "{coco}", "expected weights of the detector world, found another architecture"),
    ],
)
def test_wrong_models(name, weights, text, world_weights, coco_weights, vocabulary):
    files = {"{world}": world_weights, "{coco}": coco_weights}
    with pytest.raises(InputError, match=text) as caught:
        Detector(DetectorConfig(name, files.get(weights, weights)), vocabulary, CPU)
    assert "\n" not in str(caught.value)


def test_weights_are_identified_by_content(world_weights, vocabulary, tmp_path):
    torch.save(load_file(world_weights), tmp_path / "same.pth")
    digests = {
        Detector(DetectorConfig(WORLD, str(path)), vocabulary, CPU).weights_digest
        for path in (world_weights, tmp_path / "same.pth")
    }
    assert len(digests) == 1
