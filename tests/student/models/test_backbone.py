from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.v2 import functional as TF

from pipeline.images import read_image
from pipeline.toy.backbone import ToyBackbone
from student.config import BACKBONES
from student.data.transforms import normalise
from student.models.backbone import build_backbone, measure_norm_statistics

PHOTOGRAPHS = Path(__file__).parents[2] / "data/photos/images"


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
    expected, found = plain(image), backbone(image)
    assert list(expected) == list(found)
    for key, value in expected.items():
        scale = float(value.detach().abs().max())
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4 * scale)
    for maps in (expected, found):
        sum(value.square().mean() for value in maps.values()).backward()
    gradients = {prefix + key: parameter.grad for key, parameter in plain.named_parameters()}
    for key, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            scale = float(gradients[key].abs().max())
            torch.testing.assert_close(
                parameter.grad, gradients[key], rtol=1e-2, atol=1e-3 * scale, msg=key
            )


def test_measured_statistics_are_those_of_batch_norms():
    """Features equal those of the library's network with batch norms in train mode."""
    backbone, pixels = build_backbone("resnet18"), torch.randn(4, 3, 128, 128) + 1
    library = torchvision.models.resnet18()
    weights = {key.removeprefix("body."): x for key, x in backbone.state_dict().items()}
    assert not library.load_state_dict(weights, strict=False).unexpected_keys
    measure_norm_statistics(backbone, pixels)
    with torch.no_grad():
        expected = IntermediateLayerGetter(library.train(), {"layer2": "stride8"})(pixels)
        found = backbone(pixels)
    # Batch norms normalise by the biased variance and store the unbiased one.
    torch.testing.assert_close(found["stride8"], expected["stride8"], rtol=0.01, atol=0.01)
    assert all(isinstance(x, FrozenBatchNorm2d) for x in backbone.modules() if hasattr(x, "eps"))


@pytest.mark.parametrize("name", BACKBONES)
def test_random_backbones_with_measured_statistics_tell_images_apart(name, photographs):
    backbone = build_backbone(name)

    def similarity():
        """Mean cosine between the features of different images."""
        with torch.no_grad():
            features = functional.normalize(list(backbone(photographs).values())[-1].flatten(1))
        cosines = features @ features.T
        return float(cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean())

    before = similarity()
    measure_norm_statistics(backbone, photographs)
    assert before > 0.7 and similarity() < 0.6


@pytest.fixture(scope="module")
def photographs():
    """(8, 3, 96, 96) normalised photographs."""
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))[:8]
    images = [TF.pil_to_tensor(read_image(file).resize((96, 96))) for file in files]
    return normalise(torch.stack(images))
