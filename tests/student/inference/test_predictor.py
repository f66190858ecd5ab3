import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.utils.errors import InputError
from student.inference.predictor import Detector

ALL = {"threshold": 0.0, "top": 100}


@pytest.fixture(scope="module")
def detector(toy_checkpoint):
    return Detector.open(toy_checkpoint, device="cpu")


def same(one, other):
    assert one.size == other.size and one.actions == other.actions
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.boxes, other.boxes)


def test_an_empty_list(detector):
    assert detector([]) == []


def test_every_type_of_image_gives_the_same_result(detector, write_image):
    path = write_image("a.png", (96, 128))
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = detector(path, **ALL)
    assert len(expected) and expected.image == str(path)
    for source in (str(path), image, array, tensor, tensor / 255):
        same(detector(source, **ALL), expected)
    assert detector(array).image == "image 0"


def test_results_of_a_list_keep_its_order(detector, write_image):
    sizes = [(128, 128), (64, 96), (128, 128), (640, 100)]
    paths = [write_image(f"{row}.png", size, row) for row, size in enumerate(sizes)]
    listed = detector(paths, batch_size=2, **ALL)
    assert [one.size for one in listed] == sizes
    for path, one in zip(paths, listed, strict=True):
        alone = detector(path, **ALL)
        np.testing.assert_allclose(one.scores, alone.scores, atol=1e-5)
    assert [one.image for one in detector(tuple(paths))] == [str(path) for path in paths]


def test_boxes_refer_to_the_upright_image(detector, write_image):
    path = write_image("upright.png", (128, 64))
    lying = Image.open(path).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(path.with_name("lying.png"), exif=exif)
    assert Image.open(path.with_name("lying.png")).size == (64, 128)
    same(detector(path.with_name("lying.png"), **ALL), detector(path, **ALL))


def test_threshold_and_top(detector, write_image):
    path = write_image("a.png")
    every = detector(path, **ALL)
    least = float(every.scores[3])
    assert len(detector(path, threshold=least, top=100)) == 4
    assert detector(path, threshold=0.0, top=2).actions == every.actions[:2]
    assert (np.diff(every.scores) <= 0).all()


def test_no_interaction_occurs_twice(detector, write_image):
    found = detector(write_image("a.png"), **ALL)
    kinds = list(zip(found.actions, map(tuple, found.pairs.tolist()), strict=True))
    assert len(set(kinds)) == len(kinds)


def test_unseen_actions_are_marked(detector, vocabulary, write_image):
    found = detector(write_image("a.png"), **ALL)
    names = {vocabulary.interaction_name(one) for one in detector.unseen}
    assert found.unseen.tolist() == [action in names for action in found.actions]
    assert found.unseen.any() and not found.unseen.all()


def test_published_checkpoints(published_checkpoint, write_image):
    detector = Detector.open(published_checkpoint, device="cpu", split="ua")
    found = detector(write_image("a.png", (64, 64)), **ALL)
    assert len(found) and detector.unseen and detector.vocabulary.name == "toy"
    assert found.boxes.max() > 32


def test_one_detector_in_many_threads(detector, write_image):
    paths = [write_image(f"{row}.png", (64 + 8 * (row % 2), 64), row) for row in range(8)]
    expected = [detector(path, **ALL) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(lambda p: detector(p, **ALL), paths), expected, strict=True):
            same(one, other)


@pytest.mark.parametrize("thing", [3, None, {"a.jpg"}])
def test_other_types_are_refused(detector, thing):
    with pytest.raises(InputError, match=f"type: expected a path, .*found {type(thing).__name__}"):
        detector(thing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold: expected a score from 0 to 1, found 1.5"),
        ({"threshold": float("nan")}, "threshold: expected a score from 0 to 1, found nan"),
        ({"top": 0}, "top: expected at least 1, found 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
    ],
)
def test_wrong_options(detector, write_image, options, message):
    with pytest.raises(InputError, match=message):
        detector(write_image("a.png"), **options)


def test_an_invalid_image_is_named(detector, write_image):
    with pytest.raises(InputError, match="image 1: array: expected uint8"):
        detector([write_image("a.png"), np.zeros((2, 2))])
    with pytest.raises(InputError, match=r"gone.jpg: no such"):
        detector("gone.jpg")


def test_no_such_device(toy_checkpoint):
    with pytest.raises(InputError, match="--device: expected"):
        Detector.open(toy_checkpoint, device="abacus")


def test_importing_the_package_loads_no_torch():
    code = "import student, sys; assert 'torch' not in sys.modules; student.gone"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("AttributeError: module 'student' has no")
