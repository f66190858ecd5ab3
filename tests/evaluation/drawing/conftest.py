"""A check of the rectangles of labels."""

import numpy as np
import pytest


@pytest.fixture
def assert_apart():
    """`assert_apart(corners, sizes, image_size)`: no overlap with each other or the edge."""

    def check(corners, sizes, image_size):
        ends = corners + sizes
        assert (corners > 0).all() and (ends < image_size).all()
        low, high = np.maximum(corners[:, None], corners), np.minimum(ends[:, None], ends)
        assert (high > low).all(axis=2).sum() == len(corners)

    return check
