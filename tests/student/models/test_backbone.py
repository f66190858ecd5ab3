import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from pipeline.toy.backbone import ToyBackbone
from student.config import BACKBONES
from student.models.backbone import (
    RESNETS,
    build_backbone,
    count_layers,
    find_resnet_blocks,
    folded_conv_bn,
    identify_resnet,
)


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
    """The backbone as in its library, with separate batch norms."""
    if name == "toy":
        return ToyBackbone(norm=FrozenBatchNorm2d), ""
    resnet = torchvision.models.get_model(name, norm_layer=FrozenBatchNorm2d)
    layers = {"layer2": "stride8", "layer3": "stride16", "layer4": "stride32"}
    return IntermediateLayerGetter(resnet, layers), "body."


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "toy"])
def test_folded_backbone_equals_the_librarys(name):
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
def test_identify_resnet_of_built_backbones(name):
    with torch.device("meta"):
        names = [key.removeprefix("body.") for key in build_backbone(name).state_dict()]
    assert identify_resnet(names) == name


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ([], 0),
        (["layers.0.bias", "layers.1.bias", "layers.1.weight"], 2),
        (["layers.10.bias"], 11),
        (["others.3.bias", "layers.x.bias", "layers.4"], 0),
    ],
)
def test_count_layers(names, count):
    assert count_layers(names, "layers.") == count


def names(blocks, last):
    return [
        f"layer{stage}.{block}.{last}.weight"
        for stage, count in enumerate(blocks, 1)
        for block in range(count)
    ]


@pytest.mark.parametrize(
    ("blocks", "last", "name"),
    [
        ((2, 2, 2, 2), "conv2", "resnet18"),
        ((3, 4, 6, 3), "conv2", "resnet34"),
        ((3, 4, 6, 3), "conv3", "resnet50"),
        ((3, 4, 23, 3), "conv3", "resnet101"),
        ((3, 8, 36, 3), "conv3", None),
        ((2, 2, 2, 0), "conv2", None),
    ],
)
def test_find_resnet_blocks(blocks, last, name):
    assert identify_resnet(names(blocks, last)) == name
    kind = "bottleneck" if last == "conv3" else "basic"
    assert find_resnet_blocks(names(blocks, last)) == (kind, blocks)


@pytest.fixture
def norm():
    """A frozen batch norm of six channels with random statistics."""
    layer = FrozenBatchNorm2d(6)
    for name, buffer in layer.named_buffers():
        buffer.copy_(torch.rand(6) + 0.5 if name in ("weight", "running_var") else torch.randn(6))
    return layer


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"padding": 2, "dilation": 2}],
)
def test_folded_conv_bn_equals_convolution_and_norm(norm, options):
    convolution = nn.Conv2d(4, 6, 3, bias=False, **options)
    x = torch.randn(2, 4, 9, 11, requires_grad=True)
    found, expected = folded_conv_bn(x, convolution, norm), norm(convolution(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    for wrt in (x, convolution.weight):
        gradients = [
            torch.autograd.grad((y * weight).sum(), wrt, retain_graph=True)[0]
            for y in (found, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_folded_conv_bn_without_images(norm):
    assert (
        folded_conv_bn(torch.zeros(0, 4, 5, 5), nn.Conv2d(4, 6, 3, bias=False), norm).shape[0] == 0
    )


def test_half_precision_maps_stay_half_precision(norm):
    convolution = nn.Conv2d(4, 6, 1, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert folded_conv_bn(torch.randn(1, 4, 5, 5), convolution, norm).dtype == torch.bfloat16


def test_folding_needs_a_frozen_norm_and_no_bias(norm):
    x = torch.zeros(1, 4, 5, 5)
    with pytest.raises(AssertionError):
        folded_conv_bn(x, nn.Conv2d(4, 6, 1), norm)
    with pytest.raises(AssertionError):
        folded_conv_bn(x, nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6))
