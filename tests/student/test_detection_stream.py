import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.types import ImageRecord
from student.augmentation import evaluation_resize
from student.detection_stream import Looked, Unreadable, detect_stream, prepare
from student.predict import predict
from student.ready import ModelSource, ready_model

CPU = torch.device("cpu")
SIZES = [(128, 128), (96, 64), (128, 128), (75, 100), (64, 96), (128, 128), (96, 64), (20, 9)]


@pytest.fixture(params=["world", "published"])
def opened(request, monkeypatch):
    if request.param == "published":
        # A tenth of the size does as well.
        small = v2.Resize(80, max_size=133)
        monkeypatch.setattr("student.ready.evaluation_resize", lambda _: small)
        monkeypatch.setattr("student.predict.evaluation_resize", lambda _: small)
    return ready_model(ModelSource(request.getfixturevalue(f"{request.param}_checkpoint"))).to(CPU)


@pytest.fixture
def paths(make_picture):
    return [make_picture(f"{row}.png", size, row) for row, size in enumerate(SIZES)]


def look(opened, sources, **options):
    answers = list(detect_stream(opened, CPU, sources, options.pop("batch_size", 3), **options))
    assert sorted(one.index for one in answers) == list(range(len(sources)))
    return sorted(answers, key=lambda one: one.index)


def test_no_pictures(opened):
    assert look(opened, []) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_any_mix_of_sizes_in_their_own_pixels(opened, paths, threads):
    for one, path, (width, height) in zip(
        look(opened, paths, threads=threads), paths, SIZES, strict=True
    ):
        assert isinstance(one, Looked) and one.size == (width, height)
        found = one.detections
        assert found.image_id == str(path) and len(found.scores)
        assert (found.boxes >= 0).all() and (found.boxes <= [width, height] * 2).all()
        assert found.boxes[:, 2].max() > width / 2


def test_a_picture_is_answered_the_same_whatever_comes_with_it(opened, paths):
    together = look(opened, paths)
    for index in (0, 3):
        (alone,) = look(opened, [paths[index]])
        other = together[index].detections
        np.testing.assert_array_equal(alone.detections.hois[:20], other.hois[:20])
        np.testing.assert_allclose(alone.detections.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(alone.detections.boxes, other.boxes, atol=1e-3)


def test_finds_what_the_evaluation_finds(opened, paths):
    same = [paths[index] for index in (0, 2, 5)]
    records = [ImageRecord(path.name, path) for path in same]
    expected = predict(opened.model, records, opened.vocabulary, opened.augmentation, CPU)
    for one, other in zip(look(opened, same), expected, strict=True):
        np.testing.assert_array_equal(one.detections.hois, other.hois)
        np.testing.assert_array_equal(one.detections.scores, other.scores)
        np.testing.assert_array_equal(one.detections.boxes, other.boxes)


def test_what_cannot_be_read_stops_nothing(opened, paths):
    paths[1].write_bytes(b"no picture")
    paths[3].unlink()
    answers = look(opened, paths)
    assert [one.index for one in answers if isinstance(one, Unreadable)] == [1, 3]
    assert answers[1].reason.startswith(f"{paths[1]}: expected an image")
    assert answers[3].reason == f"{paths[3]}: no such image"


def test_only_unreadable_ones(opened):
    assert look(opened, ["gone.jpg"]) == [Unreadable(0, "gone.jpg: no such image")]


def test_a_picture_too_thin_to_be_resized(opened):
    (one,) = look(opened, [np.zeros((1, 1400, 3), dtype=np.uint8)])
    assert one == Unreadable(
        0, "picture 0: size: expected sides of at most 1333 to 1, found 1400 x 1 pixels"
    )


def test_prepared_as_at_test_time():
    grey = Image.new("RGB", (400, 300), (124, 116, 104))
    pixels = prepare(grey, evaluation_resize("published"), "grey")
    assert pixels.shape == (3, 800, 1066) and pixels.abs().max() < 0.01
