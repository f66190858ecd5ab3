import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.types import ImageRecord
from pipeline.utils.errors import InputError
from student.data.transforms import build_evaluation_resize
from student.inference import predict
from student.inference.model import ModelSpec, load_inference_model
from student.inference.predict import ImageError, Prediction, prefetch_map, prepare_image

CPU = torch.device("cpu")
SIZES = [(128, 128), (96, 64), (128, 128), (75, 100), (64, 96), (128, 128), (96, 64), (20, 9)]


@pytest.fixture(params=["toy", "published"])
def loaded(request, monkeypatch):
    if request.param == "published":
        # A tenth of the size does as well.
        monkeypatch.setattr(
            predict, "build_evaluation_resize", lambda _: v2.Resize(80, max_size=133)
        )
    return load_inference_model(
        ModelSpec(request.getfixturevalue(f"{request.param}_checkpoint"))
    ).to(CPU)


@pytest.fixture
def paths(write_image):
    return [write_image(f"{row}.png", size, row) for row, size in enumerate(SIZES)]


def look(loaded, sources, **options):
    answers = list(loaded.stream(sources, options.pop("batch_size", 3), **options))
    assert sorted(one.index for one in answers) == list(range(len(sources)))
    return sorted(answers, key=lambda one: one.index)


def test_no_pictures(loaded):
    assert look(loaded, []) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_any_mix_of_sizes_in_their_own_pixels(loaded, paths, threads):
    for one, path, (width, height) in zip(
        look(loaded, paths, threads=threads), paths, SIZES, strict=True
    ):
        assert isinstance(one, Prediction) and one.size == (width, height)
        found = one.detections
        assert found.image_id == str(path) and len(found.scores)
        assert (found.boxes >= 0).all() and (found.boxes <= [width, height] * 2).all()
        assert found.boxes[:, 2].max() > width / 2


def test_a_picture_is_answered_the_same_whatever_comes_with_it(loaded, paths):
    together = look(loaded, paths)
    for index in (0, 3):
        (alone,) = look(loaded, [paths[index]])
        other = together[index].detections
        np.testing.assert_array_equal(alone.detections.hois[:20], other.hois[:20])
        np.testing.assert_allclose(alone.detections.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(alone.detections.boxes, other.boxes, atol=1e-3)


def test_what_cannot_be_read_stops_nothing(loaded, paths):
    paths[1].write_bytes(b"no picture")
    paths[3].unlink()
    answers = look(loaded, paths)
    assert [one.index for one in answers if isinstance(one, ImageError)] == [1, 3]
    assert answers[1].reason.startswith(f"{paths[1]}: expected an image")
    assert answers[3].reason == f"{paths[3]}: no such image"


def test_only_unreadable_ones(loaded):
    assert look(loaded, ["gone.jpg"]) == [ImageError(0, "gone.jpg: no such image")]


def test_a_picture_too_thin_to_be_resized(loaded):
    (one,) = look(loaded, [np.zeros((1, 1400, 3), dtype=np.uint8)])
    assert one == ImageError(
        0, "picture 0: size: expected sides of at most 1333 to 1, found 1400 x 1 pixels"
    )


def test_prepared_as_at_test_time():
    grey = Image.new("RGB", (400, 300), (124, 116, 104))
    pixels = prepare_image(grey, build_evaluation_resize("published"), "grey")
    assert pixels.shape == (3, 800, 1066) and pixels.dtype == torch.uint8
    assert pixels[:, 0, 0].tolist() == [124, 116, 104]


@pytest.mark.parametrize("threads", [0, 1])
def test_records_are_answered_in_order_under_their_names(loaded, paths, threads):
    records = [ImageRecord(f"named {row}", path) for row, path in enumerate(paths)]
    found = loaded.predict(records, threads=threads, batch_size=3)
    assert [one.image_id for one in found] == [record.id for record in records]
    for one, (width, height) in zip(found, SIZES, strict=True):
        assert len(one.scores) and (one.boxes <= [width, height] * 2).all()
    assert loaded.predict([]) == []


@pytest.mark.parametrize("threads", [0, 1])
def test_an_unreadable_record_is_one_line(loaded, paths, threads):
    paths[1].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1.png: expected") as caught:
        loaded.predict([ImageRecord(path.name, path) for path in paths], threads=threads)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("window", "expected"), [(1024, [3, 3, 2]), (4, [2, 2, 1, 3])])
def test_pictures_of_one_size_share_batches(loaded, write_image, monkeypatch, window, expected):
    monkeypatch.setattr(predict, "SORT_WINDOW", window)
    shapes = [(96, 64), (64, 64), (96, 64), (64, 64), (64, 64), (96, 64), (96, 64), (96, 64)]
    batches, forward = [], loaded.model.forward

    def counted(images):
        batches.append(len(images[0]))
        return forward(images)

    monkeypatch.setattr(loaded.model, "forward", counted)
    paths = [write_image(f"{row}.png", size, row) for row, size in enumerate(shapes)]
    assert {one.index for one in look(loaded, paths)} == set(range(8))
    assert batches == expected


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_all_items_in_order(threads, count):
    assert list(prefetch_map(lambda n: n * n, range(count), threads)) == [
        n * n for n in range(count)
    ]


@pytest.mark.parametrize(("threads", "ahead"), [(0, 0), (2, 0), (2, 3)])
def test_only_a_few_items_are_made_before_somebody_asks(threads, ahead):
    made = []
    stream = prefetch_map(made.append, range(100), threads, ahead)
    next(stream)
    stream.close()
    assert 1 <= len(made) <= threads + ahead + 1


def test_an_error_reaches_who_asks_and_the_threads_end():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(prefetch_map(lambda n: 1 // n, [1, 1, 0, 1], 2))
    assert threading.active_count() == before
