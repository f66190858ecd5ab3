import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.utils.errors import InputError
from student.inference.images import to_rgb_image

ARRAY = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(ARRAY).permute(2, 0, 1)


@pytest.mark.parametrize(
    "source",
    [
        ARRAY,
        ARRAY[:, ::-1][:, ::-1],
        Image.fromarray(ARRAY),
        Image.fromarray(ARRAY).convert("RGBA"),
        TENSOR,
        TENSOR.float() / 255,
        TENSOR.double() / 255,
    ],
    ids=["array", "strided", "PIL", "RGBA", "uint8", "float", "double"],
)
def test_every_type_gives_the_same_image(source):
    rgb = to_rgb_image(source, "it")
    assert rgb.mode == "RGB" and rgb.size == (30, 20)
    np.testing.assert_array_equal(np.asarray(rgb), ARRAY)


def test_exif_orientation_is_applied():
    rgb = Image.fromarray(ARRAY)
    rgb.getexif()[0x0112] = 6
    assert to_rgb_image(rgb, "it").size == (20, 30)
    assert rgb.size == (30, 20)


def test_floating_point_values_are_rounded_and_clamped():
    rgb = to_rgb_image((TENSOR.float() / 255).half(), "it")
    assert np.abs(np.asarray(rgb).astype(int) - ARRAY).max() <= 1
    rgb = to_rgb_image(torch.tensor([-0.01, 1.01]).expand(3, 1, 2), "it")
    np.testing.assert_array_equal(np.asarray(rgb)[0, :, 0], [0, 255])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "it: type: expected a path, a PIL image, an array or a tensor, found int"),
        (ARRAY[0], "shape (height, width, 3), RGB, found uint8 of shape (30, 3)"),
        (ARRAY[None], "found uint8 of shape (1, 20, 30, 3)"),
        (ARRAY / 255, "found float64 of shape"),
        (ARRAY[:, :0], "found uint8 of shape (20, 0, 3)"),
        (TENSOR.permute(1, 2, 0), "of shape (3, height, width), RGB, found torch.uint8"),
        (TENSOR.int(), "found torch.int32"),
        (TENSOR.float(), "values from 0 to 1, not normalised, found 0 to 255"),
        (TENSOR.float() / 255 * torch.nan, "found nan to nan"),
        (TENSOR[:, :0], "found torch.uint8 of shape (3, 0, 30)"),
        (Image.new("RGB", (0, 5)), "expected at least one pixel, found 0 x 5 pixels"),
        ("gone.jpg", "gone.jpg: no such image"),
    ],
)
def test_other_input_gives_a_one_line_error(source, message):
    with pytest.raises(InputError) as caught:
        to_rgb_image(source, "it")
    assert message in str(caught.value) and "\n" not in str(caught.value)
