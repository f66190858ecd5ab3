import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from teacher_cache.teachers import regions as resampling
from teacher_cache.teachers.regions import (
    MAX_REGIONS,
    RegionMode,
    crop_regions,
    crop_regions_pil,
    resample_regions,
)


def picture(rng, width, height):
    """Smooth shapes with hard-edged specks, whose overshoot has to be cut off as PIL does."""
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height))).copy()
    pixels[rng.random((height, width)) < 0.1] = 255
    return pixels


def whole_boxes(rng, width, height, count):
    """Boxes inside the picture, the whole of it and a single pixel among them."""
    ends = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(-1, 4)
    boxes = (ends * [width, height, width, height]).astype(np.int64)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    boxes[:2] = [[0, 0, width, height], [width - 1, height - 1, width, height]]
    return boxes


def test_no_regions():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert resample_regions(image, np.zeros((0, 4), np.int64), 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("width", "height", "size"), [(320, 240, 64), (33, 250, 96), (40, 30, 112), (1, 1, 32)]
)
def test_regions_equal_pils_to_a_grey_level(seed, width, height, size):
    rng = np.random.default_rng(seed)
    pixels, boxes = picture(rng, width, height), whole_boxes(rng, width, height, 12)
    wanted = np.stack(crop_regions_pil(Image.fromarray(pixels), boxes, size, RegionMode()))
    found = resample_regions(torch.from_numpy(pixels).permute(2, 0, 1), boxes, size)
    difference = np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - wanted)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 2e-3


def test_many_regions_keep_their_order():
    rng = np.random.default_rng(5)
    image = torch.from_numpy(picture(rng, 50, 40)).permute(2, 0, 1)
    boxes = whole_boxes(rng, 50, 40, 2 * MAX_REGIONS + 3)
    together = resample_regions(image, boxes, 16)
    for place in (0, MAX_REGIONS, len(boxes) - 1):
        alone = resample_regions(image, boxes[place : place + 1], 16)
        assert (together[place].int() - alone[0].int()).abs().max() <= 1


class LargestResult(TorchDispatchMode):
    """Size in bytes of the largest tensor that any operator made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.nbytes)
        return result


@pytest.mark.parametrize(("width", "height"), [(300, 200), (3, 9000), (9000, 3), (1, 1)])
def test_memory_is_bounded_by_bytes(monkeypatch, width, height):
    rng = np.random.default_rng(2)
    image = torch.from_numpy(picture(rng, width, height)).permute(2, 0, 1)
    boxes = whole_boxes(rng, width, height, 5)
    expected = resample_regions(image, boxes, 24)
    monkeypatch.setattr(resampling, "MAX_BYTES", 200_000)
    with LargestResult() as largest:
        found = resample_regions(image, boxes, 24)
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 5e-3
    # The picture's own pixels, as numbers, come on top.
    assert largest.bytes <= max(200_000, 4 * image.numel())


@pytest.mark.parametrize("mode", ["pad", "stretch", "context=1.4"])
@pytest.mark.parametrize(("width", "height"), [(320, 240), (90, 300), (30, 20), (1, 1)])
def test_cut_regions_equal_pils_to_a_grey_level(mode, width, height):
    rng = np.random.default_rng(3)
    image = Image.fromarray(picture(rng, width, height))
    boxes = whole_boxes(rng, width, height, 20).astype(np.float32) + 0.3
    found = crop_regions(image, boxes, 48, RegionMode.parse(mode), torch.device("cpu"))
    wanted = np.stack(crop_regions_pil(image, boxes, 48, RegionMode.parse(mode)))
    difference = np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - wanted)
    assert found.dtype == torch.uint8 and difference.max() <= 1
    assert (difference > 0).mean() < 5e-3


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("at_once", [1000, 20_000, 2**24])
@pytest.mark.parametrize(("width", "height"), [(9, 900), (150, 400), (900, 9)])
def test_long_regions_equal_pils_to_a_grey_level(
    monkeypatch, interpolation, at_once, width, height
):
    """However little may be held at once: towers go other ways than their black squares."""
    monkeypatch.setattr(resampling, "MAX_PIXELS", at_once)
    rng = np.random.default_rng(7)
    image = Image.fromarray(picture(rng, width, height))
    boxes = whole_boxes(rng, width, height, 12).astype(np.float32)
    mode, cpu = RegionMode(), torch.device("cpu")
    found = crop_regions(image, boxes, 32, mode, cpu, interpolation)
    wanted = np.stack(crop_regions_pil(image, boxes, 32, mode, interpolation))
    assert np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - wanted).max() <= 1
