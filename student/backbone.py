"""From pixels to feature maps."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from student.resnets import RESNETS

FROZEN = ("conv1", "layer1")
WORLD_FROZEN = ("stem", "stage4")


class ResNetBackbone(nn.Module):
    """A torchvision ResNet without its classifier, batch norm frozen, stem and layer1 fixed.

    Args:
        name: `resnet18`, `resnet34`, `resnet50` or `resnet101`.

    Attributes:
        num_channels: channels of every feature map, by its name.
        side_multiple: of the images' heights and widths.
    """

    side_multiple = 1

    def __init__(self, name: str) -> None:
        super().__init__()
        resnet = torchvision.models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d)
        last = resnet.fc.in_features
        self.num_channels = {"stride8": last // 4, "stride16": last // 2, "stride32": last}
        for child in FROZEN:
            resnet.get_submodule(child).requires_grad_(False)
        self.body = IntermediateLayerGetter(
            resnet, {"layer2": "stride8", "layer3": "stride16", "layer4": "stride32"}
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised pixels to maps (B, C, H / stride, W / stride), finest first."""
        return self.body(pixels)


def _world(_: str) -> nn.Module:
    from pipeline.world.backbone import WorldBackbone

    backbone = WorldBackbone(norm=FrozenBatchNorm2d)
    for child in WORLD_FROZEN:
        backbone.get_submodule(child).requires_grad_(False)
    return backbone


# Every builder gives a module with `num_channels`, `side_multiple` and maps by name, finest first.
BUILDERS: dict[str, Callable[[str], nn.Module]] = {
    **dict.fromkeys(RESNETS, ResNetBackbone),
    "world": _world,
}


def build_backbone(name: str) -> nn.Module:
    """The backbone of this name (`config.BACKBONES`), with random weights."""
    return BUILDERS[name](name)
