import numpy as np
import pytest
from PIL import Image

from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.teachers import regions
from teacher_cache.teachers.regions import (
    RegionMode,
    crop_regions_pil,
    union_regions,
    whole_image_region,
)

SIZE = 64


@pytest.fixture
def image():
    rng = np.random.default_rng(4)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return coarse.resize((160, 120), Image.Resampling.BICUBIC)


def pairs(humans, objects):
    count = len(humans)
    return Pairs(
        human_boxes=np.array(humans, dtype=np.float32).reshape(-1, 4),
        object_boxes=np.array(objects, dtype=np.float32).reshape(-1, 4),
        object_labels=np.zeros(count, dtype=np.int64),
        human_scores=np.ones(count, dtype=np.float32),
        object_scores=np.ones(count, dtype=np.float32),
        sources=np.ones(count, dtype=np.uint8),
    )


def test_no_pairs_have_no_regions():
    boxes, rows = union_regions(pairs([], []))
    assert boxes.shape == (0, 4) and rows.shape == (0,)


def test_equal_unions_are_kept_once_in_order_of_need():
    a, b, c = [0, 0, 9, 9], [5, 5, 20, 30], [2, 2, 3, 3]
    boxes, rows = union_regions(pairs([a, a, b, a], [b, c, a, [1, 1, 2, 2]]))
    assert boxes.tolist() == [[0, 0, 20, 30], [0, 0, 9, 9]]
    assert rows.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "box",
    [
        [10, 20, 90, 60],
        [10.5, 20.5, 91.5, 60.49],
        [30, 5, 50, 118],
        [0, 0, 160, 120],
        [7, 7, 20, 20],
    ],
)
def test_padded_regions_equal_pils_own_steps(image, box):
    """Crop, paste into the middle of a black square, resize."""
    crop = image.crop(box)
    side = max(crop.size)
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    wanted = np.asarray(square.resize((SIZE, SIZE), Image.BICUBIC))
    (found,) = crop_regions_pil(image, np.array([box], dtype=np.float32), SIZE, RegionMode())
    assert found.shape == (SIZE, SIZE, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_stretch_fills_the_square(image):
    (found,) = crop_regions_pil(image, np.array([[20, 30, 140, 50]]), SIZE, RegionMode("stretch"))
    wanted = np.asarray(image.crop((20, 30, 140, 50)).resize((SIZE, SIZE), Image.BICUBIC))
    np.testing.assert_array_equal(found, wanted)


def test_context_grows_the_box_and_stops_at_the_edge(image):
    mode = RegionMode.parse("context=2")
    found = crop_regions_pil(image, np.array([[60, 40, 80, 60], [0, 0, 10, 10]]), SIZE, mode)
    grown = crop_regions_pil(
        image, np.array([[50, 30, 90, 70], [0, 0, 15, 15]]), SIZE, RegionMode()
    )
    np.testing.assert_array_equal(found[0], grown[0])
    np.testing.assert_array_equal(found[1], grown[1])


@pytest.mark.parametrize("box", [[10, 10, 10, 10], [159.9, 119.9, 160, 120], [50.2, 3, 50.4, 80]])
def test_a_region_is_at_least_a_pixel(image, box):
    (found,) = crop_regions_pil(image, np.array([box]), SIZE, RegionMode())
    assert found.shape == (SIZE, SIZE, 3)


def plain(image, box, mode, context=1.0, size=SIZE, filter_=Image.Resampling.BICUBIC):
    """PIL's own crop, padding and resize, one after the other."""
    left, top, right, bottom = box
    if context != 1:
        across, down = (right - left) * (context - 1) / 2, (bottom - top) * (context - 1) / 2
        left, top, right, bottom = left - across, top - down, right + across, bottom + down
    left, right = (min(max(x, 0), image.width) for x in (left, right))
    top, bottom = (min(max(y, 0), image.height) for y in (top, bottom))
    left, top = min(round(left), image.width - 1), min(round(top), image.height - 1)
    crop = image.crop((left, top, max(round(right), left + 1), max(round(bottom), top + 1)))
    if mode != "stretch":
        side = max(crop.size)
        square = Image.new("RGB", (side, side))
        square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
        crop = square
    return np.asarray(crop.resize((size, size), filter_))


@pytest.mark.parametrize("mode", ["pad", "stretch", "context=1.2", "context=7"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("seed", range(3))
def test_any_box_equals_pils_own_steps(mode, interpolation, seed):
    """Boxes inside and far outside, of a pixel and of a mile."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    corners = rng.uniform(-60, 190, (40, 2)) * rng.choice([1, 1, 1, 1e4], (40, 1))
    sides = rng.choice([0, 0.4, 1, 30, 90, 1e6], (40, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    parsed = RegionMode.parse(mode)
    found = crop_regions_pil(image, boxes, SIZE, parsed, interpolation)
    for box, region in zip(boxes.astype(np.float64).tolist(), found, strict=True):
        filter_ = regions.RESAMPLING_FILTERS[interpolation]
        wanted = plain(image, box, parsed.name, parsed.context, filter_=filter_)
        assert np.abs(region.astype(int) - wanted).max() <= 1, box


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (300, 299)])
@pytest.mark.parametrize("at_once", [1, 1000, 2**24])
def test_bands_change_no_pixel(monkeypatch, shape, at_once):
    monkeypatch.setattr(regions, "MAX_PIXELS", at_once)
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image, box = Image.fromarray(noise), [0, 0, shape[1], shape[0]]
    (found,) = crop_regions_pil(image, np.array([box]), SIZE, RegionMode())
    np.testing.assert_array_equal(found, plain(image, box, "pad"))


def test_a_panorama_needs_no_square_of_its_length():
    """Its square would take 14 GB."""
    image = Image.new("RGB", (60_000, 3), (255, 255, 255))
    (found,) = crop_regions_pil(image, np.array([[0, 0, 60_000, 3]]), 32, RegionMode())
    assert found.shape == (32, 32, 3) and found.max() < 3


def test_the_whole_image_is_one_region():
    boxes, rows = whole_image_region(pairs([[0, 0, 9, 9]] * 3, [[1, 1, 2, 2]] * 3), (40, 30))
    assert boxes.tolist() == [[0, 0, 40, 30]] and rows.tolist() == [0, 0, 0]
    boxes, rows = whole_image_region(pairs([], []), (40, 30))
    assert boxes.shape == (0, 4) and rows.shape == (0,)


@pytest.mark.parametrize("text", ["pad", "stretch", "context=1.2"])
def test_modes(text):
    assert RegionMode.parse(text).name == text


def test_one_mode_has_one_name():
    assert RegionMode.parse("context=1.20") == RegionMode.parse("context=1.2")


@pytest.mark.parametrize("text", ["", "crop", "context", "context=", "context=0.5", "context=nan"])
def test_unknown_modes(text):
    with pytest.raises(InputError, match="--region: expected pad, stretch or context=F"):
        RegionMode.parse(text)
