import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors import base
from teacher_cache.detectors.base import Detector, DetectorConfig, ObjectDetector, is_own_class
from teacher_cache.detectors.load import load_detector

CPU = torch.device("cpu")
BOX = [[1.0, 2.0, 30.0, 40.0]]


class Fixed(Detector):
    """Finds the same in every image."""

    name = "fixed"

    def __init__(self, found=(BOX, [0], [0.5]), classes=("person", "dog"), parts=()):
        super().__init__(CPU, load_vocabulary("toy"))
        self.found, self.classes, self.parts = found, classes, dict(parts)

    def detect(self, images):
        assert all(image.dtype == np.uint8 and image.flags.writeable for image in images)
        return [self.found for _ in images]

    def fingerprint(self):
        return self.parts


def detect(vocabulary, *found, size=(64, 48)):
    (boxes,) = ObjectDetector(Fixed(found), vocabulary).detect([Image.new("RGB", size)])
    assert boxes.boxes.dtype == boxes.scores.dtype == np.float32
    assert boxes.labels.dtype == np.int64
    return boxes


def test_classes_become_objects(vocabulary):
    boxes = BOX * 3
    found = detect(vocabulary, boxes, [1, 0, 1], [0.5, 0.9, 1.0])
    assert [vocabulary.objects[label] for label in found.labels] == ["dog", "person", "dog"]
    np.testing.assert_array_equal(found.boxes, np.float32(boxes))
    assert found.scores.tolist() == [0.5, np.float32(0.9), 1.0]


def test_tensors_and_empty_lists(vocabulary):
    for kind in (torch.float32, torch.bfloat16):
        boxes = torch.tensor(BOX, dtype=kind, requires_grad=True)
        scores = torch.tensor([0.5], dtype=kind)
        assert detect(vocabulary, boxes, torch.tensor([1]), scores).boxes.tolist() == BOX
    assert detect(vocabulary, [], [], []).boxes.shape == (0, 4)
    assert detect(vocabulary, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)).labels.size == 0


def test_boxes_are_clipped_and_those_without_area_left_out(vocabulary):
    boxes = [[-5, 10, 99, 20], [9, 9, 9, 20], [70, 0, 99, 9], [0, 0, np.nan, 9], [0, 0, np.inf, 9]]
    found = detect(vocabulary, boxes, [0] * 5, [0.5] * 5)
    assert found.boxes.tolist() == [[0, 10, 64, 20]]


@pytest.mark.parametrize("found", [([[0, 0, np.nan, 9]], [0], [0.5]), (BOX, [0], [np.nan])])
def test_numbers_that_are_not_finite_are_left_out_with_one_warning(vocabulary, found, caplog):
    detector = ObjectDetector(Fixed(found), vocabulary)
    for _ in range(2):
        (boxes,) = detector.detect([Image.new("RGB", (64, 48))])
        assert len(boxes.boxes) == 0
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "detector fixed" in caplog.text


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint16])
def test_boxes_that_end_before_they_begin_are_left_out_with_a_warning(vocabulary, dtype, caplog):
    # The second box as x, y, width and height.
    boxes = np.array([[5, 5, 9, 9], [30, 20, 10, 15]], dtype)
    found = detect(vocabulary, boxes, [0, 0], [0.5, 0.5])
    assert found.boxes.tolist() == [[5, 5, 9, 9]]
    assert "fixed: found boxes that end left of or above their beginning" in caplog.text


def test_boxes_that_are_shares_of_the_image_are_named(vocabulary, caplog):
    detect(vocabulary, [[0.1, 0.2, 0.5, 1.0], [0.3, 0.1, 0.9, 0.4]], [0, 0], [0.5, 0.5])
    assert "fixed: found boxes within the first pixel" in caplog.text
    caplog.clear()
    detect(vocabulary, [[0, 0, 0, 0], [0, 0, 0, 0]], [0, 0], [0, 0])
    detect(vocabulary, [], [], [])
    assert not caplog.records


@pytest.mark.filterwarnings("error")
def test_boxes_of_any_size_are_clipped(vocabulary):
    found = detect(vocabulary, [[-1e300, 0, 1e300, 9]], [0], [0.5])
    assert found.boxes.tolist() == [[0, 0, 64, 9]]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (([1, 2, 3, 4], [0], [0.5]), r"shapes \(N, 4\).* \(4,\)"),
        ((BOX, [0, 1], [0.5]), r"shapes .* \(2,\)"),
        ((BOX, [], []), r"shapes .* \(0,\)"),
        ((BOX, [2], [0.5]), "whole classes from 0 to 1, found 2"),
        ((BOX, [-1], [0.5]), "whole classes from 0 to 1, found -1"),
        ((BOX, [0.5], [0.5]), "whole classes from 0 to 1, found 0.5"),
        ((BOX, [np.nan], [0.5]), "whole classes from 0 to 1, found nan"),
        ((BOX, ["person"], [0.5]), "numbers, found an array of <U6"),
        (([["a"] * 4], [0], [0.5]), "numbers, found an array of <U1"),
        ((BOX, [0], [50.0]), "scores from 0 to 1, found 50"),
        (
            {"boxes": BOX, "labels": [0], "scores": [0.5]},
            r"\(boxes, classes, scores\), found dict",
        ),
        ((BOX, [0]), r"\(boxes, classes, scores\), found tuple"),
        (5, r"\(boxes, classes, scores\), found int"),
        (([[1, 2], [3]], [0], [1]), r"\(boxes, classes, scores\)"),
    ],
)
def test_other_outputs_are_refused(vocabulary, found, text):
    with pytest.raises(InputError, match=f"detector fixed: detect: expected {text}"):
        ObjectDetector(Fixed(found), vocabulary).detect([Image.new("RGB", (64, 48))])


@pytest.mark.parametrize(("found", "text"), [([], "0"), (None, "NoneType")])
def test_an_image_without_a_result_is_refused(vocabulary, found, text):
    detector = Fixed()
    detector.detect = lambda images: found
    with pytest.raises(InputError, match=f"detections of 2 images, found {text}"):
        ObjectDetector(detector, vocabulary).detect([Image.new("RGB", (8, 8))] * 2)


def test_a_generator_of_results(vocabulary):
    detector = Fixed()
    detector.detect = lambda images: (detector.found for _ in images)
    found = ObjectDetector(detector, vocabulary).detect([Image.new("RGB", (64, 48))] * 2)
    assert [len(each.boxes) for each in found] == [1, 1]


def test_errors_of_the_users_code_are_one_line(vocabulary):
    detector = Fixed()
    detector.detect = lambda images: (1 / 0 for _ in images)
    with pytest.raises(InputError, match=r"detector fixed: detect: .* ZeroDivisionError: .*py:\d"):
        ObjectDetector(detector, vocabulary).detect([Image.new("RGB", (8, 8))])


def test_names_of_classes(vocabulary):
    detector = ObjectDetector(Fixed(classes=("", "Person", "zebra", "dog")), vocabulary)
    assert detector.other_classes == ("zebra",) and detector.spellings == {}
    assert set(vocabulary.objects) - set(detector.missing_objects) == {"person", "dog"}
    with pytest.raises(InputError, match=r"--x: expected a detector that finds people.* zebra$"):
        ObjectDetector(Fixed(classes=("zebra",)), vocabulary, option="--x")


def test_parts_of_the_fingerprint(vocabulary):
    fixed = Fixed(parts={"size": (3, 4)})
    fixed.plugin_settings = {"a": "b", "size": "3"}
    detector = ObjectDetector(fixed, vocabulary, {"classes": "digest"})
    assert detector.fingerprint_parts() == {
        "detector.model": "fixed",
        "detector.classes": "digest",
        "detector.settings.a": "b",
        "detector.size": [3, 4],
    }
    with pytest.raises(InputError, match=r"detector fixed: fingerprint: model: .* reserved"):
        ObjectDetector(Fixed(parts={"model": "b"}), vocabulary)


def test_absolute_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "weights.pth").touch()
    for name, expected in {
        "hf:model": f"hf:{tmp_path}/model",
        "hf:owner/name": "hf:owner/name",
        "hf:detr": "hf:detr",
        "hf-zero-shot:model": f"hf-zero-shot:{tmp_path}/model",
        "hf-zero-shot:owner/name": "hf-zero-shot:owner/name",
        "own.code:Model": f"{tmp_path}/own.code:Model",
        "toy": "toy",
    }.items():
        assert DetectorConfig(name).absolute().name == expected
        assert DetectorConfig(name).absolute().absolute().name == expected
        assert is_own_class(name) == is_own_class(expected) == name.startswith("own")
    assert DetectorConfig("a", "weights.pth").absolute().weights == f"{tmp_path}/weights.pth"
    assert DetectorConfig("a", "COCO_V1").absolute().weights == "COCO_V1"


@pytest.fixture(scope="module")
def toy(vocabulary, shared_dataset):
    weights = str(shared_dataset / "detector.safetensors")
    return load_detector(DetectorConfig("toy", weights), vocabulary, CPU)


def noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_huge_images_are_reduced_for_the_detector(toy, monkeypatch):
    small = noise(128, 128)
    large = small.resize((3 * 128, 3 * 128), Image.Resampling.NEAREST)
    monkeypatch.setattr(base, "MAX_PIXELS", 128 * 128)
    (expected,), (found,) = toy.detect([small]), toy.detect([large])
    np.testing.assert_allclose(found.boxes, 3 * expected.boxes, atol=1e-2)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.boxes.dtype == np.float32
    monkeypatch.undo()
    monkeypatch.setattr(base, "MAX_SIDE", 128)
    (again,) = toy.detect([large])
    np.testing.assert_array_equal(again.boxes, found.boxes)


@pytest.mark.parametrize("size", [(20_000, 6), (6, 20_000), (9000, 1), (1, 1), (40, 1000)])
def test_images_of_any_shape(toy, size):
    (found,) = toy.detect([Image.new("RGB", size, (200, 90, 10))])
    assert (found.boxes >= 0).all() and (found.boxes <= [*size, *size]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert len(found.boxes) == len(found.labels) == len(found.scores)
