import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.types import ImageRecord
from pipeline.utils.errors import InputError
from student.data.transforms import build_evaluation_resize
from student.inference import batch_predictor
from student.inference.batch_predictor import (
    Prediction,
    UnreadableImage,
    prefetch_map,
    prepare_image,
)

SIZES = [(128, 128), (96, 64), (128, 128), (75, 100), (64, 96), (20, 9)]


@pytest.fixture
def predictor(each_detector, monkeypatch):
    if each_detector.predictor.train.augmentation == "published":
        # Smaller than the published size, to be fast.
        smaller = v2.Resize(80, max_size=133)
        monkeypatch.setattr(batch_predictor, "build_evaluation_resize", lambda _: smaller)
    return each_detector.predictor


@pytest.fixture
def paths(write_image):
    return [write_image(f"{row}.png", size, row) for row, size in enumerate(SIZES)]


def predict(predictor, sources, threads=0):
    results = list(predictor.stream(sources, 3, threads))
    assert sorted(one.index for one in results) == list(range(len(sources)))
    return sorted(results, key=lambda one: one.index)


@pytest.mark.parametrize("threads", [0, 2])
def test_any_mix_of_sizes_gives_boxes_in_original_pixels(predictor, paths, threads):
    assert predict(predictor, []) == []
    for one, path, (width, height) in zip(
        predict(predictor, paths, threads), paths, SIZES, strict=True
    ):
        assert isinstance(one, Prediction) and one.size == (width, height)
        found = one.detections
        assert found.image_id == str(path) and len(found.scores)
        assert (found.boxes >= 0).all() and (found.boxes <= [width, height] * 2).all()
        assert found.boxes[:, 2].max() > width / 2


def test_unreadable_images_do_not_end_the_stream(predictor, paths):
    paths[1].write_bytes(b"no image")
    paths[3].unlink()
    thin = np.zeros((1, 1400, 3), dtype=np.uint8)
    results = predict(predictor, [*paths, thin])
    reasons = {one.index: one.reason for one in results if isinstance(one, UnreadableImage)}
    assert reasons.keys() == {1, 3, 6}
    assert reasons[1].startswith(f"{paths[1]}: expected an image")
    assert reasons[3] == f"{paths[3]}: no such image"
    assert reasons[6] == "image 6: size: expected sides of at most 1333 to 1, found 1400 x 1 pixels"


def test_prepare_image_resizes_as_for_evaluation():
    grey = Image.new("RGB", (400, 300), (124, 116, 104))
    pixels = prepare_image(grey, build_evaluation_resize("published"), "grey")
    assert pixels.shape == (3, 800, 1066) and pixels.dtype == torch.uint8
    assert pixels[:, 0, 0].tolist() == [124, 116, 104]


def test_predicted_records_keep_order_and_ids(predictor, paths):
    records = [ImageRecord(f"named {row}", path) for row, path in enumerate(paths)]
    found = predictor.predict(records, threads=1, batch_size=3)
    assert [one.image_id for one in found] == [record.id for record in records]
    for one, expected in zip(found, predict(predictor, paths), strict=True):
        np.testing.assert_array_equal(one.scores, expected.detections.scores)
    paths[1].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1.png: expected"):
        predictor.predict(records)


@pytest.mark.parametrize(("window", "expected"), [(1024, [3, 3, 2]), (4, [2, 2, 1, 3])])
def test_images_of_one_size_share_batches(toy_detector, write_image, monkeypatch, window, expected):
    monkeypatch.setattr(batch_predictor, "SORT_WINDOW", window)
    shapes = [(96, 64), (64, 64), (96, 64), (64, 64), (64, 64), (96, 64), (96, 64), (96, 64)]
    batches, model = [], toy_detector.predictor.model
    forward = model.forward

    def counted(images):
        batches.append(len(images[0]))
        return forward(images)

    monkeypatch.setattr(model, "forward", counted)
    paths = [write_image(f"{row}.png", size, row) for row, size in enumerate(shapes)]
    found = list(toy_detector.predictor.stream(paths, 3))
    assert batches == expected
    assert sorted(one.index for one in found) == list(range(8))


@pytest.mark.parametrize(("threads", "ahead"), [(0, 0), (1, 0), (3, 0), (2, 3)])
def test_prefetch_map(threads, ahead):
    """Results are in order, and a limited number of them is computed ahead."""
    assert list(prefetch_map(abs, range(20), threads, ahead)) == list(range(20))
    assert list(prefetch_map(abs, [], threads, ahead)) == []
    computed, before = [], threading.active_count()
    stream = prefetch_map(computed.append, range(100), threads, ahead)
    next(stream)
    stream.close()
    assert 1 <= len(computed) <= threads + ahead + 1
    with pytest.raises(ZeroDivisionError):
        list(prefetch_map(lambda n: 1 // n, [1, 1, 0, 1], threads, ahead))
    assert threading.active_count() == before
