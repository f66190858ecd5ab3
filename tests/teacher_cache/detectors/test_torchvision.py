from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import get_model, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors import torchvision as detectors
from teacher_cache.detectors.torchvision import (
    COCO80,
    DEFAULT_DETECTOR,
    HICO80,
    TOY,
    TOY_IN_CACHES,
    Detector,
    DetectorConfig,
    detect_objects,
    load_class_names,
    recognise_architecture,
)

CPU = torch.device("cpu")
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
ONE_STAGE = "ssdlite320_mobilenet_v3_large"
KEYPOINTS = "keypointrcnn_resnet50_fpn"
RETINA = "retinanet_resnet50_fpn"


def images(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="session")
def toy_weights(shared_dataset):
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


def test_nothing_to_look_at(toy_weights, vocabulary):
    assert Detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)([]) == []


def test_the_toy_detector(toy_weights, vocabulary):
    detector = Detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)
    found = detector(images(3))
    assert len(found) == 3
    for one in found:
        assert len(one.boxes) == len(one.labels) == len(one.scores) > 0
        assert one.boxes.dtype == one.scores.dtype == np.float32
        assert one.labels.min() >= 0 and one.labels.max() < vocabulary.num_objects
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
    assert detector.name == TOY_IN_CACHES


def test_low_scores_are_not_wanted(toy_weights, vocabulary):
    everything = Detector(DetectorConfig(TOY, toy_weights, 0.05), vocabulary, CPU)(images(1))[0]
    cut = float(np.median(everything.scores))
    best = Detector(DetectorConfig(TOY, toy_weights, cut), vocabulary, CPU)(images(1))[0]
    kept = everything.scores > cut
    np.testing.assert_array_equal(best.scores, everything.scores[kept])
    np.testing.assert_array_equal(best.boxes, everything.boxes[kept])


def test_categories_become_the_vocabularys_objects(toy_weights, vocabulary):
    """The same detector under a vocabulary that counts otherwise and knows fewer things."""
    whole = Detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)(images(1))[0]
    other = replace(vocabulary, objects=("bike", "person", "chair"), category_ids=(4, 1, 9))
    part = Detector(DetectorConfig(TOY, toy_weights), other, CPU)(images(1))[0]
    ids = np.array(vocabulary.category_ids)[whole.labels]
    kept = np.isin(ids, other.category_ids)
    np.testing.assert_array_equal(np.array(other.category_ids)[part.labels], ids[kept])
    np.testing.assert_array_equal(part.boxes, whole.boxes[kept])


def test_a_torchvision_detector_from_a_file(coco_weights, vocabulary):
    detector = Detector(DetectorConfig(SMALL, coco_weights, 0.0), vocabulary, CPU)
    (found,) = detector(images(1))
    assert detector.name == SMALL
    assert found.boxes.shape == (len(found.labels), 4)
    assert set(found.labels.tolist()) <= set(range(vocabulary.num_objects))


@pytest.fixture(scope="session")
def one_stage_weights(tmp_path_factory):
    """A one-stage detector of ten classes, in torch's old file form."""
    path = tmp_path_factory.mktemp("weights") / "one_stage.pth"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_model(ONE_STAGE, weights=None, weights_backbone=None, num_classes=10)
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    return str(path)


def test_a_one_stage_detector_of_the_vocabularys_own_classes(one_stage_weights, vocabulary):
    """Ten classes are the toy dataset's nine ids and the background."""
    detector = Detector(DetectorConfig(ONE_STAGE, one_stage_weights, 0.0), vocabulary, CPU)
    assert detector.missing_objects == ()
    (found,) = detector(images(1))
    assert len(found.labels) > 0 and found.labels.max() < vocabulary.num_objects
    (few,) = Detector(DetectorConfig(ONE_STAGE, one_stage_weights, 0.11), vocabulary, CPU)(
        images(1)
    )
    assert len(few.scores) < len(found.scores) and few.scores.min(initial=1) > 0.11


@pytest.mark.parametrize("name", ["hico-det", "vcoco"])
def test_cocos_labels_are_these_vocabularies_own(coco_weights, name):
    coco = load_vocabulary(name)
    detector = Detector(DetectorConfig(SMALL, coco_weights), coco, CPU)
    assert detector.missing_objects == ()
    names = get_model_weights(SMALL)["COCO_V1"].meta["categories"]
    for category, label in coco.label_by_category_id.items():
        assert coco.objects[label].replace("_", " ") == names[category]


def test_cocos_labels_go_by_name_where_a_vocabulary_counts_otherwise(coco_weights, vocabulary):
    """To COCO 3 is a car; to the toy dataset it is a dog."""
    detector = Detector(DetectorConfig(SMALL, coco_weights, 0.0), vocabulary, CPU)
    assert detector.missing_objects == ("bike", "ball", "box")
    coco = load_vocabulary("hico-det")
    whole = Detector(DetectorConfig(SMALL, coco_weights, 0.0), coco, CPU)(images(1))[0]
    (found,) = detector(images(1))
    known = np.isin([coco.objects[label] for label in whole.labels], vocabulary.objects)
    np.testing.assert_array_equal(found.boxes, whole.boxes[known])
    assert [vocabulary.objects[label] for label in found.labels] == [
        coco.objects[label] for label in whole.labels[known]
    ]


@pytest.fixture
def labels(tmp_path):
    """`labels(name, classes, vocabulary, names=)`: the objects of an architecture's classes, by
    their names, and what it is that names them."""

    def find(name, classes, vocabulary, names=None):
        file = tmp_path / "detector.pth"
        file.touch()
        with torch.device("meta"):
            model = get_model(name, weights=None, weights_backbone=None, num_classes=classes)
        config = DetectorConfig(name, str(file), classes=names)
        found, told = detectors._class_labels(config, model.state_dict(), vocabulary)
        assert len(found) == classes
        return ["" if row < 0 else vocabulary.objects[row] for row in found], told

    return find


def without_ids(vocabulary, objects=None):
    """The vocabulary with ids from 1 on, without gaps."""
    objects = objects or vocabulary.objects
    ids = tuple(range(1, len(objects) + 1))
    return replace(vocabulary, objects=tuple(objects), category_ids=ids)


COCO = load_vocabulary("hico-det")


def test_a_detector_of_people_alone(labels):
    """Two classes, of which torchvision calls one a person."""
    assert labels(KEYPOINTS, 2, COCO) == (["", "person"], None)


@pytest.mark.parametrize("name", [SMALL, ONE_STAGE, RETINA])
@pytest.mark.parametrize("order", [COCO80, HICO80])
@pytest.mark.parametrize("vocabulary", ["hico-det", "vcoco"])
def test_cocos_objects_without_gaps_are_named(labels, name, order, vocabulary):
    names = load_class_names(order)
    assert labels(name, 81, load_vocabulary(vocabulary), names) == (["", *names], names)


def test_a_detector_without_background(labels):
    """RetinaNet and FCOS score all their classes; of others the first one is the background."""
    names = load_class_names(COCO80)
    assert labels(RETINA, 80, COCO, names) == ([*names], names)
    with pytest.raises(InputError, match=r"--detector-classes: expected 79 names.* found 80"):
        labels(SMALL, 80, COCO, names)


@pytest.mark.parametrize("classes", [2, 80, 81, 82, 90, 365])
@pytest.mark.parametrize("vocabulary", [COCO, load_vocabulary("vcoco"), without_ids(COCO)])
def test_classes_that_nobody_names(labels, classes, vocabulary):
    for name in (SMALL, RETINA):
        with pytest.raises(InputError) as caught:
            labels(name, classes, vocabulary)
        line = str(caught.value)
        assert "detector.pth: " in line and "91 classes" in line and f"found {classes} " in line
        assert "--detector-classes coco80|hico80|FILE" in line


def test_a_vocabularys_own_number_of_classes(labels, vocabulary):
    """By its ids where these number as many, else in its own order; never half of them."""
    own = ["", *vocabulary.objects]
    assert labels(SMALL, 10, vocabulary) == (own, None)
    gaps = replace(vocabulary, category_ids=tuple(range(3, 21, 2)))
    by_id = ["" if one < 3 or one % 2 == 0 else own[(one - 1) // 2] for one in range(20)]
    assert labels(SMALL, 20, gaps) == (by_id, None)
    assert labels(SMALL, 10, gaps) == (own, vocabulary.objects)
    for classes in (9, 11, 19, 81):
        with pytest.raises(InputError, match=rf"91 .* 10 of toy.* found {classes} "):
            labels(SMALL, classes, gaps)


def test_named_classes_are_found_under_their_names(toy_weights, vocabulary):
    names = (*vocabulary.objects[:1], *vocabulary.objects[:0:-1])
    plain = Detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)(images(1))[0]
    other = Detector(DetectorConfig(TOY, toy_weights, classes=names), vocabulary, CPU)
    (found,) = other(images(1))
    assert other.classes == names and len(found.labels) > 0
    np.testing.assert_array_equal(found.boxes, plain.boxes)
    assert [vocabulary.objects[label] for label in found.labels] == [
        names[label] for label in plain.labels
    ]


def test_names_that_the_vocabulary_lacks_are_no_objects(labels, vocabulary):
    names = ("zebra", "Dog", "person", "hot_dog", "N/A")
    assert labels(SMALL, 6, vocabulary, names) == (["", "", "dog", "person", "", ""], names)


def test_a_training_checkpoint_of_torchvision(toy_weights, vocabulary, tmp_path):
    """As its reference scripts write them, from several processes or Lightning."""
    state = load_file(toy_weights)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    more = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": Namespace(data_path="/data", output_dir=Path("/runs"), lr=np.float64(0.02)),
        "epoch": 25,
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
    }
    plain = Detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)
    for key, prefix in (("model", ""), ("model", "module."), ("state_dict", "model.")):
        file = tmp_path / "checkpoint.pth"
        torch.save({key: {prefix + name: one for name, one in state.items()}, **more}, file)
        assert recognise_architecture(file, vocabulary) == TOY
        found = Detector(DetectorConfig(TOY, str(file)), vocabulary, CPU)
        assert found.weights_digest == plain.weights_digest and found.classes is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(toy_weights, vocabulary, tmp_path, value):
    state = load_file(toy_weights)
    state["rpn.head.bbox_pred.bias"][2] = value
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"bad\.pth: rpn\.head\.bbox_pred\.bias: .* 1 of "):
        Detector(DetectorConfig(TOY, str(tmp_path / "bad.pth")), vocabulary, CPU)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", KEYPOINTS, SMALL])
def test_nobody_asks_for_masks_and_keypoints(name):
    with torch.device("meta"):
        model = get_model(name, weights=None, weights_backbone=None)
    detectors._disable_unused_heads(model, 0.25)
    assert not model.roi_heads.has_mask() and not model.roi_heads.has_keypoint()
    assert model.roi_heads.score_thresh == 0.25


def test_a_detector_without_people(coco_weights, vocabulary):
    names = tuple("wizard" if name == "person" else name for name in vocabulary.objects)
    other = replace(vocabulary, objects=names)
    other.__dict__["person"] = vocabulary.person
    with pytest.raises(InputError, match="--detector: expected"):
        Detector(DetectorConfig(SMALL, coco_weights), other, CPU)


def test_published_weights_meet_a_frozen_backbone(tmp_path, vocabulary):
    """One digest for torchvision's entry, where batch norm is frozen, and for its file."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_model(SMALL, weights=None, weights_backbone=None)
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "published.pth")
    detector = Detector(DetectorConfig(SMALL, str(tmp_path / "published.pth")), vocabulary, CPU)
    kept = detector._model.state_dict()
    assert kept.keys() == state.keys()
    assert any(isinstance(module, FrozenBatchNorm2d) for module in detector._model.modules())


def test_of_a_huge_picture_a_reduced_copy_is_seen(toy_weights, vocabulary, monkeypatch):
    detector = Detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)
    small = Image.fromarray(images(1)[0])
    large = small.resize((3 * 128, 3 * 128), Image.Resampling.NEAREST)
    monkeypatch.setattr(detectors, "MAX_PIXELS", 128 * 128)
    (wanted,), (found,) = detect_objects(detector, [small]), detect_objects(detector, [large])
    np.testing.assert_allclose(found.boxes, 3 * wanted.boxes, atol=1e-2)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.boxes.dtype == np.float32
    monkeypatch.undo()
    monkeypatch.setattr(detectors, "MAX_SIDE", 128)
    (again,) = detect_objects(detector, [large])
    np.testing.assert_array_equal(again.boxes, found.boxes)


@pytest.mark.parametrize("size", [(20_000, 6), (6, 20_000), (9000, 1), (1, 1), (40, 1000)])
def test_pictures_of_any_shape(toy_weights, vocabulary, size):
    detector = Detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)
    (found,) = detect_objects(detector, [Image.new("RGB", size, (200, 90, 10))])
    assert (found.boxes >= 0).all() and (found.boxes <= [*size, *size]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert len(found.boxes) == len(found.labels) == len(found.scores)


def test_recognise(toy_weights, coco_weights, vocabulary):
    assert recognise_architecture(Path(toy_weights), vocabulary) == TOY
    assert recognise_architecture(Path(coco_weights), vocabulary) == DEFAULT_DETECTOR


def test_without_a_network(vocabulary, tmp_path, monkeypatch, capfd):
    def unreachable(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be downloaded .*no network.*give a file"):
        Detector(DetectorConfig(SMALL), vocabulary, CPU)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "name, weights, text",
    [
        ("yolo", None, r"--detector: expected.*found yolo"),
        (TOY, None, "--detector-weights: expected"),
        (TOY, "absent.safetensors", "absent.safetensors: no such file"),
        (SMALL, "COCO_V9", "--detector-weights: expected a file or one of COCO_V1"),
        (SMALL, "{toy}", r"detector\.safetensors: expected"),
        (TOY, "{coco}", r"coco\.pth: expected"),
    ],
)
def test_wrong_models(name, weights, text, toy_weights, coco_weights, vocabulary):
    files = {"{toy}": toy_weights, "{coco}": coco_weights}
    with pytest.raises(InputError, match=text) as caught:
        Detector(DetectorConfig(name, files.get(weights, weights)), vocabulary, CPU)
    assert "\n" not in str(caught.value)


def test_weights_are_identified_by_content(toy_weights, vocabulary, tmp_path):
    torch.save(load_file(toy_weights), tmp_path / "same.pth")
    digests = {
        Detector(DetectorConfig(TOY, str(path)), vocabulary, CPU).weights_digest
        for path in (toy_weights, tmp_path / "same.pth")
    }
    assert len(digests) == 1
