import dataclasses
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from evaluation.hico.average_precision import evaluate
from pipeline.types import ImageRecord
from pipeline.utils.errors import InputError
from student.data.transforms import build_evaluation_resize
from student.inference import predict
from student.inference.model import ModelSpec, load_inference_model
from student.inference.predict import (
    Prediction,
    UnreadableImage,
    merge_predictions,
    prefetch_map,
    prepare_image,
)

CPU = torch.device("cpu")
SIZES = [(128, 128), (96, 64), (128, 128), (75, 100), (64, 96), (128, 128), (96, 64), (20, 9)]


@pytest.fixture(params=["toy", "published"])
def loaded(request, monkeypatch):
    if request.param == "published":
        # Smaller than the published size, to be fast.
        monkeypatch.setattr(
            predict, "build_evaluation_resize", lambda _: v2.Resize(80, max_size=133)
        )
    return load_inference_model(
        ModelSpec(request.getfixturevalue(f"{request.param}_checkpoint"))
    ).to(CPU)


@pytest.fixture
def paths(write_image):
    return [write_image(f"{row}.png", size, row) for row, size in enumerate(SIZES)]


def predict_sources(loaded, sources, **options):
    results = list(loaded.stream(sources, options.pop("batch_size", 3), **options))
    assert sorted(one.index for one in results) == list(range(len(sources)))
    return sorted(results, key=lambda one: one.index)


def test_no_images(loaded):
    assert predict_sources(loaded, []) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_any_mix_of_sizes_gives_boxes_in_original_pixels(loaded, paths, threads):
    for one, path, (width, height) in zip(
        predict_sources(loaded, paths, threads=threads), paths, SIZES, strict=True
    ):
        assert isinstance(one, Prediction) and one.size == (width, height)
        found = one.detections
        assert found.image_id == str(path) and len(found.scores)
        assert (found.boxes >= 0).all() and (found.boxes <= [width, height] * 2).all()
        assert found.boxes[:, 2].max() > width / 2


def test_predictions_do_not_depend_on_other_images(loaded, paths):
    together = predict_sources(loaded, paths)
    for index in (0, 3):
        (alone,) = predict_sources(loaded, [paths[index]])
        other = together[index].detections
        np.testing.assert_array_equal(alone.detections.hois[:20], other.hois[:20])
        np.testing.assert_allclose(alone.detections.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(alone.detections.boxes, other.boxes, atol=1e-3)


def test_unreadable_images_do_not_end_the_stream(loaded, paths):
    paths[1].write_bytes(b"no image")
    paths[3].unlink()
    results = predict_sources(loaded, paths)
    assert [one.index for one in results if isinstance(one, UnreadableImage)] == [1, 3]
    assert results[1].reason.startswith(f"{paths[1]}: expected an image")
    assert results[3].reason == f"{paths[3]}: no such image"


def test_only_unreadable_images(loaded):
    assert predict_sources(loaded, ["gone.jpg"]) == [UnreadableImage(0, "gone.jpg: no such image")]


def test_an_image_too_thin_to_be_resized(loaded):
    (one,) = predict_sources(loaded, [np.zeros((1, 1400, 3), dtype=np.uint8)])
    assert one == UnreadableImage(
        0, "image 0: size: expected sides of at most 1333 to 1, found 1400 x 1 pixels"
    )


def test_prepare_image_resizes_as_for_evaluation():
    grey = Image.new("RGB", (400, 300), (124, 116, 104))
    pixels = prepare_image(grey, build_evaluation_resize("published"), "grey")
    assert pixels.shape == (3, 800, 1066) and pixels.dtype == torch.uint8
    assert pixels[:, 0, 0].tolist() == [124, 116, 104]


@pytest.mark.parametrize("threads", [0, 1])
def test_predicted_records_keep_order_and_ids(loaded, paths, threads):
    records = [ImageRecord(f"named {row}", path) for row, path in enumerate(paths)]
    found = loaded.predict(records, threads=threads, batch_size=3)
    assert [one.image_id for one in found] == [record.id for record in records]
    for one, (width, height) in zip(found, SIZES, strict=True):
        assert len(one.scores) and (one.boxes <= [width, height] * 2).all()
    assert loaded.predict([]) == []


@pytest.mark.parametrize("threads", [0, 1])
def test_an_unreadable_record_gives_a_one_line_error(loaded, paths, threads):
    paths[1].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1.png: expected") as caught:
        loaded.predict([ImageRecord(path.name, path) for path in paths], threads=threads)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("window", "expected"), [(1024, [3, 3, 2]), (4, [2, 2, 1, 3])])
def test_images_of_one_size_share_batches(loaded, write_image, monkeypatch, window, expected):
    monkeypatch.setattr(predict, "SORT_WINDOW", window)
    shapes = [(96, 64), (64, 64), (96, 64), (64, 64), (64, 64), (96, 64), (96, 64), (96, 64)]
    batches, forward = [], loaded.model.forward

    def counted(images):
        batches.append(len(images[0]))
        return forward(images)

    monkeypatch.setattr(loaded.model, "forward", counted)
    paths = [write_image(f"{row}.png", size, row) for row, size in enumerate(shapes)]
    assert {one.index for one in predict_sources(loaded, paths)} == set(range(8))
    assert batches == expected


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_prefetch_map_keeps_the_order(threads, count):
    assert list(prefetch_map(lambda n: n * n, range(count), threads)) == [
        n * n for n in range(count)
    ]


@pytest.mark.parametrize(("threads", "ahead"), [(0, 0), (2, 0), (2, 3)])
def test_prefetch_map_limits_results_ahead(threads, ahead):
    computed = []
    stream = prefetch_map(computed.append, range(100), threads, ahead)
    next(stream)
    stream.close()
    assert 1 <= len(computed) <= threads + ahead + 1


def test_prefetch_map_raises_errors_and_ends_its_threads():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(prefetch_map(lambda n: 1 // n, [1, 1, 0, 1], 2))
    assert threading.active_count() == before


def test_merging_no_predictions():
    assert merge_predictions([], []) == []
    assert merge_predictions([[], []], []) == []


@pytest.fixture
def predictions(detect):
    return [detect(f"{i}.jpg", *[("kick", "ball", 0.9 - i / 10)] * i) for i in range(5)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_merging_any_number_of_processes(predictions, ranks):
    ids = [item.image_id for item in predictions]
    parts = [predictions[rank::ranks] for rank in range(ranks)]
    assert merge_predictions(reversed(parts), ids) == predictions


def test_merging_an_image_of_two_processes(predictions, annotate, toy):
    ids = [item.image_id for item in predictions]
    truth = [annotate(name, ("kick", "ball")) for name in ids]
    copy = dataclasses.replace(predictions[1], boxes=predictions[1].boxes.copy())
    merged = merge_predictions([predictions[:3], [*predictions[3:], copy]], ids)
    assert merged == predictions
    once, twice = evaluate(truth, merged, toy), evaluate(truth, predictions, toy)
    assert once.mean_ap() == twice.mean_ap()


@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_merging_refuses_different_predictions(predictions, field):
    other = dataclasses.replace(predictions[2], **{field: getattr(predictions[2], field) * 0.5})
    with pytest.raises(InputError, match=r"2\.jpg: expected"):
        merge_predictions([predictions, [other]], [item.image_id for item in predictions])


def test_merging_names_a_missing_image(predictions):
    ids = [item.image_id for item in predictions]
    with pytest.raises(InputError, match=r"all 5 images, found none for 2, the first being 1\.jpg"):
        merge_predictions(
            [predictions[:1], predictions[3:4], predictions[4:], predictions[2:2], predictions[3:]],
            ids,
        )


def test_merging_names_an_unexpected_image(predictions):
    with pytest.raises(InputError, match=r"found 1 others, the first being 4\.jpg"):
        merge_predictions([predictions], [item.image_id for item in predictions[:4]])
