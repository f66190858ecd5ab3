import math

import pytest
import torch

from student.models.transformer import SinePositionEncoding


def test_features_of_a_place_by_the_formula():
    encoding = SinePositionEncoding(8)(torch.zeros(1, 1, 2, 4), None)
    assert encoding.shape == (1, 8, 2, 4)
    y, x = 2 * math.pi * 1 / 2, 2 * math.pi * 3 / 4
    expected = [
        wave(place / length)
        for place in (y, x)
        for length in (1.0, 100.0)
        for wave in (math.sin, math.cos)
    ]
    torch.testing.assert_close(encoding[0, :, 0, 2], torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_padding_does_not_move_the_places(size):
    height, width = size
    encode = SinePositionEncoding(16)
    padding = torch.ones(1, 6, 7, dtype=torch.bool)
    padding[0, :height, :width] = False
    padded = encode(torch.zeros(1, 1, 6, 7), padding)[..., :height, :width]
    torch.testing.assert_close(padded, encode(torch.zeros(1, 1, height, width), None))
    assert torch.isfinite(padded).all()
