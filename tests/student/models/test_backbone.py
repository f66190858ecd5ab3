import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from pipeline.toy.backbone import ToyBackbone
from student.config import BACKBONES
from student.models.backbone import RESNETS, build_backbone, identify_resnet


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


@pytest.mark.parametrize("name", ["resnet18", "toy"])
def test_statistics_are_frozen_in_training(name):
    backbone = build_backbone(name).train()
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms and all(norm.eps == 1e-5 for norm in norms)
    before = [buffer.clone() for buffer in backbone.buffers()]
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(*both) for both in zip(before, backbone.buffers(), strict=True))


def unfolded(name):
    """The same backbone as its library has it, norms as operations of their own."""
    if name == "toy":
        return ToyBackbone(norm=FrozenBatchNorm2d), ""
    resnet = torchvision.models.get_model(name, norm_layer=FrozenBatchNorm2d)
    layers = {"layer2": "stride8", "layer3": "stride16", "layer4": "stride32"}
    return IntermediateLayerGetter(resnet, layers), "body."


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "toy"])
def test_folded_norms_give_the_librarys_maps_under_its_names(name):
    plain, prefix = unfolded(name)
    for norm in plain.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.weight.uniform_(0.5, 1.0)
            norm.bias.normal_(std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    backbone = build_backbone(name)
    backbone.load_state_dict({prefix + key: x for key, x in plain.state_dict().items()})
    assert [prefix + key for key in plain.state_dict()] == list(backbone.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, found = plain(image), backbone(image)
    assert list(expected) == list(found)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * value.abs().max())


@pytest.mark.parametrize("name", RESNETS)
def test_parameters_tell_the_resnet(name):
    with torch.device("meta"):
        names = [key.removeprefix("body.") for key in build_backbone(name).state_dict()]
    assert identify_resnet(names) == name
