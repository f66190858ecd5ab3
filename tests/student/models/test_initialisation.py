"""Random weights follow DETR's rules: the distribution of every group of parameters."""

import math
import re

import pytest
import torch

from student.config import ModelConfig

UNIFORM_KURTOSIS, NORMAL_KURTOSIS = 1.8, 3.0


def xavier(weight):
    return math.sqrt(2 / sum(weight.shape)), UNIFORM_KURTOSIS


def default(weight):
    """torch's default for linear layers and convolutions."""
    return 1 / math.sqrt(3 * weight[0].numel()), UNIFORM_KURTOSIS


def kaiming(weight):
    """Kaiming's normal distribution by the number of outputs, for ReLU."""
    return math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel())), NORMAL_KURTOSIS


# The first pattern that a name matches holds. Standard deviation and kurtosis, or a constant.
RULES = {
    r"backbone\..*conv\d|backbone\..*downsample\.0": kaiming,
    r"(encoder|decoder)\..*norm.*weight": 1.0,
    r"(encoder|decoder)\..*norm.*bias": 0.0,
    r"attention\.(in_proj_bias|out_proj\.bias)": 0.0,
    r"(encoder|decoder)\..*weight": xavier,
    r"query_source\.embedding": lambda _: (1.0, NORMAL_KURTOSIS),
    r"(head|input_projection)\..*weight|head\.\d+\.weight|input_projection\.weight": default,
}


@pytest.fixture(scope="module")
def published(build):
    return dict(build(ModelConfig()).named_parameters())


def test_every_parameter_has_its_rule(published):
    biases = {name for name in published if name.endswith("bias")}
    assert all(any(re.search(rule, name) for rule in RULES) for name in published.keys() - biases)


@pytest.mark.parametrize("rule", RULES)
def test_distribution_of_a_group(published, rule):
    earlier = list(RULES)[: list(RULES).index(rule)]
    group = {
        name: value.detach().double()
        for name, value in published.items()
        if re.search(rule, name) and not any(re.search(other, name) for other in earlier)
    }
    assert group
    if isinstance(RULES[rule], float):
        assert all((value == RULES[rule]).all() for value in group.values())
        return
    # All parameters of the group in units of their standard deviations.
    scaled = [value.flatten() / RULES[rule](value)[0] for value in group.values()]
    kurtosis = RULES[rule](next(iter(group.values())))[1]
    for name, values in zip(group, scaled, strict=True):
        # Six standard errors of mean and standard deviation.
        error = 6 / math.sqrt(len(values))
        assert abs(values.mean()) < error and abs(values.std() - 1) < error, name
    joined = torch.cat(scaled)
    assert (joined**4).mean() == pytest.approx(kurtosis, abs=6 * math.sqrt(24 / len(joined)))


def test_biases_of_linear_layers(published):
    """Biases that DETR leaves as torch draws them."""
    for name, bias in published.items():
        is_left = re.search(r"linear\d|head", name) or name.startswith("input_projection")
        if name.endswith("bias") and is_left and "norm" not in name:
            weight = published[name.removesuffix("bias") + "weight"]
            assert 0 < bias.abs().max() <= 1 / math.sqrt(weight[0].numel()), name
