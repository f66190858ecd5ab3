import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from student.inference.detector import Detector

ALL = {"threshold": 0.0, "top": 100}


def same(one, other):
    assert one.size == other.size and one.actions == other.actions
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.boxes, other.boxes)


def test_the_representation_is_one_readable_line(toy_detector):
    text = repr(toy_detector)
    assert len(text) < 400 and "\n" not in text
    assert text.startswith(f"Detector('{toy_detector.file}'")
    vocabulary = toy_detector.vocabulary
    for part in (
        toy_detector.predictor.model.config.backbone,
        "queries of type proposals",
        "verb head linear",
        f"vocabulary toy, {vocabulary.num_verbs} verbs, {vocabulary.num_objects} objects",
        "on cpu",
    ):
        assert part in text


def test_every_type_of_image_gives_the_same_result(toy_detector, write_image):
    path = write_image("a.png", (96, 128))
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = toy_detector(path, **ALL)
    assert len(expected) and expected.image == str(path)
    for source in (str(path), image, array, tensor, tensor / 255):
        same(toy_detector(source, **ALL), expected)
    assert toy_detector(array).image == "image 0"


def test_results_of_a_list_keep_its_order(toy_detector, write_image):
    sizes = [(128, 128), (64, 96), (128, 128), (640, 100)]
    paths = [write_image(f"{row}.png", size, row) for row, size in enumerate(sizes)]
    for images in (paths, tuple(paths)):
        listed = toy_detector(images, batch_size=2, **ALL)
        assert [one.size for one in listed] == sizes
        assert [one.image for one in listed] == [str(path) for path in paths]
    assert toy_detector([]) == []


def test_boxes_refer_to_the_upright_image(toy_detector, write_image):
    path = write_image("upright.png", (128, 64))
    lying = Image.open(path).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(path.with_name("lying.png"), exif=exif)
    same(toy_detector(path.with_name("lying.png"), **ALL), toy_detector(path, **ALL))


def test_no_interaction_is_a_result_on_request_only(toy_detector, write_image):
    path = write_image("a.png")
    every = toy_detector(path, no_interaction=True, **ALL)
    left_out = {action for action in every.actions if action.startswith("no interaction")}
    found = toy_detector(path, **ALL)
    assert left_out and not left_out.intersection(found.actions)
    assert found.actions == tuple(one for one in every.actions if one not in left_out)


def test_threshold_top_and_unseen_actions(toy_detector, write_image):
    path = write_image("a.png")
    found = toy_detector(path, **ALL)
    assert (np.diff(found.scores) <= 0).all()
    assert len(set(zip(found.actions, map(tuple, found.pairs.tolist()), strict=True))) == len(found)
    assert len(toy_detector(path, threshold=float(found.scores[3]), top=100)) == 4
    assert toy_detector(path, threshold=0.0, top=2).actions == found.actions[:2]
    names = {toy_detector.vocabulary.interaction_name(hoi) for hoi in toy_detector.unseen}
    assert found.unseen.tolist() == [action in names for action in found.actions]
    assert found.unseen.any() and not found.unseen.all()


def test_one_detector_in_many_threads(toy_detector, write_image):
    paths = [write_image(f"{row}.png", (64 + 8 * (row % 2), 64), row) for row in range(8)]
    expected = [toy_detector(path, **ALL) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda path: toy_detector(path, **ALL), paths)
        for one, other in zip(found, expected, strict=True):
            same(one, other)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (3, {}, "type: expected a path, .*found int"),
        ({"a.jpg"}, {}, "type: expected a path, .*found set"),
        ("gone.jpg", {}, r"gone.jpg: no such"),
        ([np.ones((2, 2, 3), np.uint8), np.zeros((2, 2))], {}, "image 1: array: expected uint8"),
        ([], {"threshold": 1.5}, "threshold: expected a score from 0 to 1, found 1.5"),
        ([], {"threshold": float("nan")}, "threshold: expected a score from 0 to 1, found nan"),
        ([], {"top": 0}, "top: expected at least 1, found 0"),
        ([], {"batch_size": 0}, "batch_size: expected at least 1, found 0"),
    ],
)
def test_wrong_arguments_give_a_one_line_error(toy_detector, images, options, message):
    with pytest.raises(InputError, match=message) as caught:
        toy_detector(images, **options)
    assert "\n" not in str(caught.value)


def test_a_run_has_vocabulary_and_split(toy_checkpoint, vocabulary):
    for path in (toy_checkpoint, str(toy_checkpoint), toy_checkpoint / "checkpoint.pt"):
        opened = Detector.open(path, "cpu")
        assert opened.vocabulary.digest() == vocabulary.digest()
        assert opened.split.name == "ua" and opened.unseen == set(opened.split.unseen) != set()
        assert not opened.predictor.model.training
    assert Detector.open(toy_checkpoint, "cpu", split="full").unseen == frozenset()


def test_a_published_file(published_checkpoint, published_detector, vocabulary, write_image):
    """It takes the shipped vocabulary with its class counts, and a split that is given."""
    assert published_detector.vocabulary.name == "toy"
    assert published_detector.split is None and published_detector.unseen == frozenset()
    opened = Detector.open(published_checkpoint, "cpu", "toy", "ua")
    assert opened.unseen == set(vocabulary.splits["ua"]["unseen"])
    found = opened(write_image("a.png", (64, 64)), **ALL)
    assert len(found) and found.boxes.max() > 32
    shipped = map(load_vocabulary, ("hico-det", "vcoco", "toy"))
    assert len({(one.num_verbs, one.num_objects) for one in shipped}) == 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "published",
            {"vocabulary": "hico-det"},
            "expected 80 objects and 117 verbs, as hico-det has, found 9 and 11",
        ),
        ("toy", {"vocabulary": "hico-det"}, "student of the vocabulary hico-det, found toy"),
        ("toy", {"split": "zz"}, "zz: no such split of toy"),
        ("toy", {"device": "abacus"}, "--device: expected"),
        ("published", {"vocabulary": "gone"}, "gone: no such vocabulary"),
    ],
)
def test_files_that_cannot_be_opened(request, kind, options, message):
    with pytest.raises(InputError, match=message) as caught:
        Detector.open(request.getfixturevalue(f"{kind}_checkpoint"), **options)
    assert "\n" not in str(caught.value)


def test_class_counts_of_no_shipped_vocabulary(published_checkpoint, tmp_path):
    content = torch.load(published_checkpoint, weights_only=True)
    for name in ("weight", "bias"):
        head = content["model"][f"verb_class_embed.{name}"]
        content["model"][f"verb_class_embed.{name}"] = head[:5]
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd.pth: .* 9 and 11 \(toy\), found 9 and 5; give a"):
        Detector.open(tmp_path / "odd.pth")


def test_importing_the_package_loads_no_torch():
    code = "import student, sys; assert 'torch' not in sys.modules; student.gone"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("AttributeError: module 'student' has no")
