import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from student.backbone import build_backbone
from student.config import BACKBONES


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_promised_channels_and_strides(name):
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert list(maps) == list(backbone.num_channels)
    strides = [int(key.removeprefix("stride")) for key in maps]
    assert strides == sorted(strides)
    for stride, (key, features) in zip(strides, maps.items(), strict=True):
        assert features.shape == (1, backbone.num_channels[key], 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", ["resnet18", "world"])
def test_statistics_are_frozen_in_training(name):
    backbone = build_backbone(name).train()
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms and all(norm.eps == 1e-5 for norm in norms)
    before = [buffer.clone() for buffer in backbone.buffers()]
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(*both) for both in zip(before, backbone.buffers(), strict=True))
