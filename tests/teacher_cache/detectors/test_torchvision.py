from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models import detection, get_model, get_model_weights, list_models
from torchvision.ops import FrozenBatchNorm2d

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors import torchvision as detectors
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.class_names import COCO80, HICO80, load_class_names
from teacher_cache.detectors.load import load_detector
from teacher_cache.detectors.torchvision import (
    DEFAULT_DETECTOR,
    TOY,
    ZERO_EPSILON_MODELS,
    match_batch_norm,
    num_classes,
    recognise_architecture,
)

CPU = torch.device("cpu")
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
ONE_STAGE = "ssdlite320_mobilenet_v3_large"
KEYPOINTS = "keypointrcnn_resnet50_fpn"
RETINA = "retinanet_resnet50_fpn"


def images(count):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(each) for each in pixels]


@pytest.fixture(scope="session")
def toy_weights(shared_dataset):
    return str(shared_dataset / "detector.safetensors")


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """`random_weights(name, **options)`: file of a torchvision detector with random weights."""

    def write(name, drop="no such key", **options):
        path = tmp_path_factory.mktemp("weights") / "detector.pth"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = get_model(name, weights=None, weights_backbone=None, **options)
        state = {key: value for key, value in model.state_dict().items() if drop not in key}
        # torch's legacy file format for some.
        torch.save(state, path, _use_new_zipfile_serialization=not options)
        return str(path)

    return write


@pytest.fixture(scope="session")
def coco_weights(random_weights):
    return random_weights(SMALL)


@pytest.fixture
def detect(toy_weights, vocabulary):
    """`detect(count)`: what the toy detector, or another one, finds in so many images of noise."""

    def run(count=1, *config, vocabulary=vocabulary, **options):
        config = config or (TOY, toy_weights)
        detector = load_detector(DetectorConfig(*config, **options), vocabulary, CPU)
        return detector.detect(images(count))

    return run


def test_the_toy_detector(detect, vocabulary):
    assert detect(0) == []
    results = detect(3)
    for one in results:
        assert len(one.boxes) == len(one.labels) == len(one.scores) > 0
        assert one.boxes.dtype == one.scores.dtype == np.float32
        assert one.labels.min() >= 0 and one.labels.max() < vocabulary.num_objects
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
    cut = float(np.median(results[0].scores))
    (best,) = detect(score_threshold=cut)
    kept = results[0].scores > cut
    np.testing.assert_allclose(best.scores, results[0].scores[kept], rtol=1e-5)
    np.testing.assert_allclose(best.boxes, results[0].boxes[kept], atol=1e-3)


def test_category_ids_are_mapped_to_the_vocabularys_objects(detect, vocabulary):
    """With a vocabulary of other ids and fewer objects, the same detector finds a part of them."""
    (all_objects,) = detect()
    other = replace(vocabulary, objects=("bike", "person", "chair"), category_ids=(4, 1, 9))
    (part,) = detect(vocabulary=other)
    ids = np.array(vocabulary.category_ids)[all_objects.labels]
    kept = np.isin(ids, other.category_ids)
    np.testing.assert_array_equal(np.array(other.category_ids)[part.labels], ids[kept])
    np.testing.assert_array_equal(part.boxes, all_objects.boxes[kept])


def test_a_one_stage_detector_with_the_vocabularys_classes(detect, random_weights, vocabulary):
    """Ten classes: nine ids of the toy dataset and the background."""
    weights = random_weights(ONE_STAGE, num_classes=10)
    (found,), (few,) = (detect(1, ONE_STAGE, weights, threshold) for threshold in (0.0, 0.11))
    assert len(found.labels) > 0 and found.labels.max() < vocabulary.num_objects
    assert len(few.scores) < len(found.scores) and few.scores.min(initial=1) > 0.11


@pytest.mark.parametrize("name", ["hico-det", "vcoco"])
def test_coco_detectors_find_all_objects_of_these_vocabularies(coco_weights, name):
    coco = load_vocabulary(name)
    detector = load_detector(DetectorConfig(SMALL, coco_weights), coco, CPU)
    assert detector.missing_objects == ()
    names = get_model_weights(SMALL)["COCO_V1"].meta["categories"]
    for category, label in coco.label_by_category_id.items():
        assert coco.objects[label].replace("_", " ") == names[category]


def test_classes_of_coco_detectors_are_mapped_to_other_vocabularies_by_name(
    detect, coco_weights, vocabulary
):
    """Category 3 is a car in COCO, and a dog in the toy dataset."""
    detector = load_detector(DetectorConfig(SMALL, coco_weights, 0.0), vocabulary, CPU)
    assert (detector.name, detector.missing_objects) == (SMALL, ("bike", "ball", "box"))
    assert recognise_architecture(Path(coco_weights), vocabulary) == DEFAULT_DETECTOR
    coco = load_vocabulary("hico-det")
    (all_objects,) = detect(1, SMALL, coco_weights, 0.0, vocabulary=coco)
    (found,) = detector.detect(images(1))
    known = np.isin([coco.objects[label] for label in all_objects.labels], vocabulary.objects)
    np.testing.assert_array_equal(found.boxes, all_objects.boxes[known])
    assert [vocabulary.objects[label] for label in found.labels] == [
        coco.objects[label] for label in all_objects.labels[known]
    ]


def meta_model(name, **options):
    """A model on the meta device: without values, and therefore created fast."""
    with torch.device("meta"):
        return get_model(name, weights=None, weights_backbone=None, **options)


@pytest.fixture
def labels(tmp_path):
    """Maps the classes of an untrained detector; returns object names, and its class names."""

    def find(name, classes, vocabulary, names=None):
        file = tmp_path / "detector.pth"
        file.touch()
        state = meta_model(name, num_classes=classes).state_dict()
        config = DetectorConfig(name, str(file), classes=names)
        rows, class_names = detectors._class_labels(config, state, vocabulary)
        assert len(rows) == classes
        return ["" if row < 0 else vocabulary.objects[row] for row in rows], class_names

    return find


def with_consecutive_ids(vocabulary):
    return replace(vocabulary, category_ids=tuple(range(1, vocabulary.num_objects + 1)))


COCO = load_vocabulary("hico-det")


def test_a_detector_that_finds_only_people(labels):
    """The names of its two classes are those of torchvision's weights entry."""
    assert labels(KEYPOINTS, 2, COCO) == (["", "person"], None)


@pytest.mark.parametrize("name", [SMALL, ONE_STAGE, RETINA])
@pytest.mark.parametrize("order", [COCO80, HICO80])
@pytest.mark.parametrize("vocabulary", ["hico-det", "vcoco"])
def test_80_coco_classes_with_given_names(labels, name, order, vocabulary):
    names = load_class_names(order)
    assert labels(name, 81, load_vocabulary(vocabulary), names) == (["", *names], names)


def test_a_detector_without_background(labels):
    """RetinaNet and FCOS need no background class; in other detectors it is the first one."""
    names = load_class_names(COCO80)
    assert labels(RETINA, 80, COCO, names) == ([*names], names)
    with pytest.raises(InputError, match=r"--detector-classes: expected 79 names.* found 80"):
        labels(SMALL, 80, COCO, names)


@pytest.mark.parametrize("classes", [2, 80, 81, 82, 90, 365])
@pytest.mark.parametrize("vocabulary", [COCO, load_vocabulary("vcoco"), with_consecutive_ids(COCO)])
def test_classes_of_unknown_names_are_refused(labels, classes, vocabulary):
    for name in (SMALL, RETINA):
        with pytest.raises(InputError) as caught:
            labels(name, classes, vocabulary)
        line = str(caught.value)
        assert "detector.pth: " in line and "91 classes" in line and f"found {classes} " in line
        assert "--detector-classes coco80|hico80|FILE" in line


def test_as_many_classes_as_the_vocabulary_has_ids_or_objects(labels, vocabulary):
    """The former are mapped by id, the latter by order."""
    by_order = ["", *vocabulary.objects]
    assert labels(SMALL, 10, vocabulary) == (by_order, None)
    gaps = replace(vocabulary, category_ids=tuple(range(3, 21, 2)))
    by_id = ["" if one < 3 or one % 2 == 0 else by_order[(one - 1) // 2] for one in range(20)]
    assert labels(SMALL, 20, gaps) == (by_id, None)
    assert labels(SMALL, 10, gaps) == (by_order, vocabulary.objects)
    for classes in (9, 11, 19, 81):
        with pytest.raises(InputError, match=rf"91 .* 10 of toy.* found {classes} "):
            labels(SMALL, classes, gaps)


def test_class_names_that_the_vocabulary_lacks_are_dropped(labels, vocabulary):
    names = ("zebra", "Dog", "person", "hot_dog", "N/A")
    assert labels(SMALL, 6, vocabulary, names) == (["", "", "dog", "person", "", ""], names)


def test_the_toy_detector_for_other_objects():
    with pytest.raises(InputError, match=r"--detector: .* found toy, which finds only person"):
        load_detector(DetectorConfig(TOY), load_vocabulary("hico-det"), torch.device("cpu"))


def test_training_checkpoints(toy_weights, vocabulary, tmp_path):
    """Of torchvision's reference scripts, of DistributedDataParallel and of Lightning."""
    state = load_file(toy_weights)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    other_entries = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": Namespace(data_path="/data", output_dir=Path("/runs"), lr=np.float64(0.02)),
        "epoch": 25,
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
    }
    plain = load_detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)
    for key, prefix in (("model", ""), ("model", "module."), ("state_dict", "model.")):
        file = tmp_path / "checkpoint.pth"
        torch.save(
            {key: {prefix + name: one for name, one in state.items()}, **other_entries}, file
        )
        assert recognise_architecture(file, vocabulary) == TOY
        found = load_detector(DetectorConfig(TOY, str(file)), vocabulary, CPU)
        # Weights are identified by their content.
        assert found.fingerprint_parts() == plain.fingerprint_parts()
        assert found.fingerprint_parts().keys() == {"detector.model", "detector.weights"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(toy_weights, vocabulary, tmp_path, value):
    state = load_file(toy_weights)
    state["rpn.head.bbox_pred.bias"][2] = value
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"bad\.pth: rpn\.head\.bbox_pred\.bias: .* 1 of "):
        load_detector(DetectorConfig(TOY, str(tmp_path / "bad.pth")), vocabulary, CPU)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", KEYPOINTS, SMALL])
def test_mask_and_keypoint_heads_are_disabled(name):
    model = meta_model(name)
    detectors._disable_unused_heads(model, 0.25)
    assert not model.roi_heads.has_mask() and not model.roi_heads.has_keypoint()
    assert model.roi_heads.score_thresh == 0.25


@pytest.mark.parametrize("size", [(96, 64), (300, 200)])
def test_images_are_prepared_as_torchvision_does(toy_weights, vocabulary, size):
    """To the last bit, though pixels are normalised in place and have channels last in memory."""
    detector = load_detector(DetectorConfig(TOY, toy_weights), vocabulary, CPU)._detector
    transform = detector._model.transform
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    found = transform([detectors._to_tensor(pixels, CPU)])[0].tensors
    del transform.normalize
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255
    assert torch.equal(found, transform([image])[0].tensors)


def test_a_detector_without_people(coco_weights, vocabulary):
    names = tuple("wizard" if name == "person" else name for name in vocabulary.objects)
    other = replace(vocabulary, objects=names)
    other.__dict__["person"] = vocabulary.person
    with pytest.raises(InputError, match="--detector: expected"):
        load_detector(DetectorConfig(SMALL, coco_weights), other, CPU)


def test_published_weights_are_loaded_into_frozen_batch_norm(random_weights, vocabulary):
    weights = random_weights(SMALL, drop="num_batches")
    detector = load_detector(DetectorConfig(SMALL, weights), vocabulary, CPU)
    model = detector._detector._model
    assert model.state_dict().keys() == torch.load(weights).keys()
    assert modules_of(model, FrozenBatchNorm2d)


def test_without_a_network(vocabulary, tmp_path, monkeypatch, capfd):
    def unreachable(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be downloaded .*no network.*give a file"):
        load_detector(DetectorConfig(SMALL), vocabulary, CPU)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "name, weights, text",
    [
        ("yolo", None, r"--detector: expected.*found yolo"),
        (TOY, "absent.safetensors", "absent.safetensors: no such file"),
        (SMALL, "COCO_V9", "--detector-weights: expected a file or one of COCO_V1"),
        (SMALL, "{toy}", r"detector\.safetensors: expected"),
        (TOY, "{coco}", r"detector\.pth: expected"),
    ],
)
def test_wrong_models(name, weights, text, toy_weights, coco_weights, vocabulary):
    files = {"{toy}": toy_weights, "{coco}": coco_weights}
    with pytest.raises(InputError, match=text) as caught:
        load_detector(DetectorConfig(name, files.get(weights, weights)), vocabulary, CPU)
    assert "\n" not in str(caught.value)


def modules_of(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", list_models(module=detection))
@pytest.mark.parametrize("classes", [2, 91])
def test_number_of_classes_of_every_architecture(name, classes):
    assert num_classes(meta_model(name, num_classes=classes).state_dict()) == classes


def test_number_of_classes_of_other_files_is_that_of_coco():
    scalar = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(())}
    for state in ({}, {"conv.weight": torch.zeros(3)}, scalar):
        assert num_classes(state) == 91


@pytest.mark.parametrize("name", list_models(module=detection))
def test_checkpoints_of_frozen_batch_norm_get_frozen_batch_norm(name):
    model = meta_model(name)
    state = model.state_dict()
    assert match_batch_norm(model, name, state) is model
    assert not modules_of(model, FrozenBatchNorm2d)
    frozen_state = {key: value for key, value in state.items() if "num_batches" not in key}
    if len(frozen_state) == len(state):
        return
    epsilons = [module.eps for module in modules_of(model, nn.BatchNorm2d)]
    frozen = match_batch_norm(meta_model(name), name, frozen_state)
    assert frozen.state_dict().keys() == frozen_state.keys()
    frozen_epsilons = [module.eps for module in modules_of(frozen, FrozenBatchNorm2d)]
    if name in ZERO_EPSILON_MODELS:
        epsilons = [0.0] * len(epsilons)
    assert frozen_epsilons == epsilons
