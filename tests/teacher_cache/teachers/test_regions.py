import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import images
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from teacher_cache.teachers import regions
from teacher_cache.teachers.regions import (
    RegionMode,
    crop_regions,
    crop_regions_pil,
    union_regions,
    whole_image_region,
)

SIZE = 64


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


def test_equal_union_boxes_become_one_region():
    a, b, c = [0, 0, 9, 9], [5, 5, 20, 30], [2, 2, 3, 3]
    boxes, rows = union_regions(pairs([a, a, b, a], [b, c, a, [1, 1, 2, 2]]))
    assert boxes.tolist() == [[0, 0, 20, 30], [0, 0, 9, 9]]
    assert rows.tolist() == [0, 1, 0, 1]


def test_the_whole_image_is_one_region():
    boxes, rows = whole_image_region(pairs([[0, 0, 9, 9]] * 3, [[1, 1, 2, 2]] * 3), (40, 30))
    assert boxes.tolist() == [[0, 0, 40, 30]] and rows.tolist() == [0, 0, 0]


@pytest.mark.parametrize("find", [union_regions, lambda empty: whole_image_region(empty, (40, 30))])
def test_without_pairs_there_are_no_regions(find):
    boxes, rows = find(pairs([], []))
    assert boxes.shape == (0, 4) and rows.shape == (0,)


def reference_crop(image, box, mode, context=1.0, size=SIZE, filter_=Image.Resampling.BICUBIC):
    """Crop, padding and resize as separate steps of PIL."""
    left, top, right, bottom = box
    if context != 1:
        dx, dy = (right - left) * (context - 1) / 2, (bottom - top) * (context - 1) / 2
        left, top, right, bottom = left - dx, top - dy, right + dx, bottom + dy
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
def test_regions_of_any_box_equal_separate_steps_of_pil(mode, interpolation):
    """Boxes inside and far outside the image, very small and very large ones."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    corners = rng.uniform(-60, 190, (90, 2)) * rng.choice([1, 1, 1, 1e4], (90, 1))
    sides = rng.choice([0, 0.4, 1, 30, 90, 1e6], (90, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    parsed = RegionMode.parse(mode)
    found = crop_regions_pil(image, boxes, SIZE, parsed, interpolation)
    for box, region in zip(boxes.astype(np.float64).tolist(), found, strict=True):
        filter_ = regions.RESAMPLING_FILTERS[interpolation]
        expected = reference_crop(image, box, parsed.name, parsed.context, filter_=filter_)
        assert np.abs(region.astype(int) - expected).max() <= 1, box


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (300, 299)])
@pytest.mark.parametrize("max_pixels", [1, 1000, 2**24])
def test_resizing_in_bands_changes_no_pixel(monkeypatch, shape, max_pixels):
    monkeypatch.setattr(regions, "MAX_PIXELS", max_pixels)
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image, box = Image.fromarray(noise), [0, 0, shape[1], shape[0]]
    (found,) = crop_regions_pil(image, np.array([box]), SIZE, RegionMode())
    np.testing.assert_array_equal(found, reference_crop(image, box, "pad"))


def test_a_panorama_is_resized_without_its_padded_square():
    """The square would take 10 GB."""
    image = Image.new("RGB", (60_000, 3), (255, 255, 255))
    (found,) = crop_regions_pil(image, np.array([[0, 0, 60_000, 3]]), 32, RegionMode())
    assert found.shape == (32, 32, 3) and found.max() < 3


@pytest.mark.parametrize("text", ["", "crop", "context", "context=", "context=0.5", "context=nan"])
def test_unknown_region_modes(text):
    assert RegionMode.parse("context=1.20").name == "context=1.2"
    with pytest.raises(InputError, match="--region: expected pad, stretch or context=F"):
        RegionMode.parse(text)


def random_pixels(rng, width, height):
    """Smooth noise with white pixels, where the cubic kernel overshoots and values are clipped."""
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height))).copy()
    pixels[rng.random((height, width)) < 0.1] = 255
    return pixels


def random_boxes(rng, width, height, count):
    """Integer boxes inside the image; the first is the whole image, the second one pixel."""
    ends = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(-1, 4)
    boxes = (ends * [width, height, width, height]).astype(np.int64)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    boxes[:2] = [[0, 0, width, height], [width - 1, height - 1, width, height]]
    return boxes


@pytest.mark.parametrize("mode", ["pad", "stretch", "context=1.4"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("max_pixels", [1000, 20_000, 2**24])
@pytest.mark.parametrize("size", [(320, 240), (1, 1), (9, 900), (150, 400), (900, 9)])
def test_cropped_regions_differ_from_pil_by_one_grey_level_at_most(
    monkeypatch, mode, interpolation, max_pixels, size
):
    """For any limit of pixels, which determines how tall, narrow regions are resized."""
    monkeypatch.setattr(regions, "MAX_PIXELS", max_pixels)
    rng = np.random.default_rng(3)
    image = Image.fromarray(random_pixels(rng, *size))
    boxes = random_boxes(rng, *size, 12).astype(np.float32) + 0.3
    region, cpu = RegionMode.parse(mode), torch.device("cpu")
    found = crop_regions(image, boxes, 48, region, cpu, interpolation)
    expected = np.stack(crop_regions_pil(image, boxes, 48, region, interpolation))
    difference = np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - expected)
    assert found.dtype == torch.uint8 and difference.max() <= 1
    assert (difference > 0).mean() < 2e-2


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (900, 9), (9, 900)])
def test_regions_of_large_images_are_cropped_in_bands_without_a_difference(monkeypatch, size):
    rng = np.random.default_rng(5)
    image = Image.fromarray(random_pixels(rng, *size))
    boxes = random_boxes(rng, *size, 30).astype(np.float32)
    arguments = (image, boxes, 24, RegionMode(), torch.device("cpu"))
    expected = crop_regions(*arguments)
    monkeypatch.setattr(images, "LARGE_IMAGE_PIXELS", 1000)
    for pixels in (1, 900, 10**6):
        monkeypatch.setattr(images, "BAND_PIXELS", pixels)
        assert torch.equal(crop_regions(*arguments), expected)
