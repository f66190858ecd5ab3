import pytest
import torch
from torch import nn
from torchvision.models import detection, get_model, list_models
from torchvision.ops import FrozenBatchNorm2d

from teacher_cache.detector_files import WITHOUT_EPSILON, adapted, num_classes

NAMES = list_models(module=detection)


def outline(name, **options):
    """A model without numbers, quick to make at full size."""
    with torch.device("meta"):
        return get_model(name, weights=None, weights_backbone=None, **options)


def norms(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 7, 91])
def test_every_architecture_tells_its_number_of_classes(name, classes):
    assert num_classes(outline(name, num_classes=classes).state_dict()) == classes


@pytest.mark.parametrize("state", [{}, {"conv.weight": torch.zeros(3)}])
def test_other_files_get_cocos(state):
    assert num_classes(state) == 91


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_backbone_is_met_with_a_frozen_one(name):
    """As torchvision publishes weights: without counts of batches."""
    plain = outline(name)
    counted = plain.state_dict()
    assert adapted(plain, name, counted) is plain and not norms(plain, FrozenBatchNorm2d)
    uncounted = {key: value for key, value in counted.items() if "num_batches" not in key}
    if len(uncounted) == len(counted):
        return
    before = [module.eps for module in norms(plain, nn.BatchNorm2d)]
    frozen = adapted(outline(name), name, uncounted)
    assert frozen.state_dict().keys() == uncounted.keys()
    found = [module.eps for module in norms(frozen, FrozenBatchNorm2d)]
    assert found == ([0.0] * len(before) if name in WITHOUT_EPSILON else before)
