import numpy as np
import pytest
import torch

from student.models.probe import MIN_STD, NUM_GEOMETRY, VerbProbe, pair_geometry


def test_geometry_of_a_pair():
    """A human of 10 x 20 pixels, an object of 20 x 10 that overlaps it by 5 x 10."""
    human, thing = (np.array([box], np.float32) for box in ([10, 0, 20, 20], [15, 5, 35, 15]))
    expected = [
        *([0, 0, 0.4, 1], [0.2, 0.25, 1, 0.75]),
        *(np.log(25 / 20), np.log(200 / 200), 50 / 200, 50 / 200),
        *(10 / 10, 0 / 20),
    ]
    expected = np.hstack(expected)
    found = pair_geometry(human, thing)
    assert found.shape == (1, NUM_GEOMETRY) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    moved = pair_geometry(3 * human + 100, 3 * thing + 100)
    np.testing.assert_allclose(moved, found, atol=1e-6)


def test_geometry_of_boxes_without_area_is_finite():
    boxes = np.array([[5, 5, 5, 5], [0, 0, 9, 0]], np.float32)
    assert np.isfinite(pair_geometry(boxes, boxes[::-1])).all()


@pytest.mark.parametrize("hidden_dim", [0, 8])
def test_features_are_standardised_and_a_constant_one_has_no_effect(hidden_dim):
    mean, std = torch.tensor([2.0, -1.0, 7.0]), torch.tensor([4.0, 0.5, 0.0])
    probe = VerbProbe(3, 4, 5, hidden_dim, mean, std)
    assert probe.std.tolist() == [4, 0.5, pytest.approx(MIN_STD)]
    plain = VerbProbe(3, 4, 5, hidden_dim)
    state = probe.state_dict()
    plain.load_state_dict({**state, "mean": torch.zeros(3), "std": torch.ones(3)})
    labels = torch.tensor([0, 3])
    features = torch.tensor([[6.0, -1.0, 7.0], [2.0, 0.0, 7.0]])
    expected = plain(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), labels)
    torch.testing.assert_close(probe(features, labels), expected)
    assert expected.shape == (2, 5)


def test_a_linear_head_adds_the_bias_of_the_object():
    probe = VerbProbe(2, 3, 2, 0)
    with torch.no_grad():
        probe.objects.weight[1] = torch.tensor([5.0, -5.0])
    features = torch.ones(2, 2)
    first, second = probe(features, torch.tensor([0, 1]))
    torch.testing.assert_close(second - first, torch.tensor([5.0, -5.0]))
