"""From pixels to feature maps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from student.folding import folded
from student.resnets import RESNETS

FROZEN = ("conv1", "layer1")
WORLD_FROZEN = ("stem", "stage4")
# What makes the world's finer maps and nothing else.
WORLD_FINER = ("lateral4", "lateral8", "lateral16", "merge")


class FoldedBasicBlock(BasicBlock):
    """torchvision's block of two convolutions, its frozen batch norms folded into them."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h / stride, w / stride)."""
        out = self.relu(folded(x, self.conv1, self.bn1))
        out = folded(out, self.conv2, self.bn2)
        return self.relu(out.add_(_shortcut(self, x)))


class FoldedBottleneck(Bottleneck):
    """torchvision's block of three convolutions, its frozen batch norms folded into them."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h / stride, w / stride)."""
        out = self.relu(folded(x, self.conv1, self.bn1))
        out = self.relu(folded(out, self.conv2, self.bn2))
        out = folded(out, self.conv3, self.bn3)
        return self.relu(out.add_(_shortcut(self, x)))


BLOCKS = {"basic": FoldedBasicBlock, "bottleneck": FoldedBottleneck}


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    return x if block.downsample is None else folded(x, block.downsample[0], block.downsample[1])


class ResNetBackbone(nn.Module):
    """A torchvision ResNet without its classifier, batch norm frozen, stem and layer1 fixed.

    Args:
        name: one of `RESNETS`.

    Attributes:
        num_channels: channels of every feature map, by its name.
        side_multiple: of the images' heights and widths.
    """

    side_multiple = 1

    def __init__(self, name: str) -> None:
        super().__init__()
        kind, depths = RESNETS[name]
        resnet = ResNet(BLOCKS[kind], list(depths), norm_layer=FrozenBatchNorm2d)
        last = resnet.fc.in_features
        self.num_channels = {"stride8": last // 4, "stride16": last // 2, "stride32": last}
        for child in FROZEN:
            resnet.get_submodule(child).requires_grad_(False)
        del resnet.avgpool, resnet.fc
        self.body = resnet

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised pixels to maps (B, C, H / stride, W / stride), finest first."""
        body = self.body
        stem = body.maxpool(body.relu(folded(pixels, body.conv1, body.bn1)))
        stride8 = body.layer2(body.layer1(stem))
        stride16 = body.layer3(stride8)
        return {"stride8": stride8, "stride16": stride16, "stride32": body.layer4(stride16)}


class FoldedBlock(nn.Sequential):
    """Convolution, frozen batch norm and what follows, under their names in the sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the sequence gives."""
        return self[2](folded(x, self[0], self[1]))


def _world(_: str) -> nn.Module:
    from pipeline.world.backbone import WorldBackbone

    backbone = WorldBackbone(norm=FrozenBatchNorm2d)
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Sequential) and isinstance(child[1], FrozenBatchNorm2d):
                setattr(parent, name, FoldedBlock(*child))
    for frozen in WORLD_FROZEN:
        backbone.get_submodule(frozen).requires_grad_(False)
    return backbone


# Every builder gives a module with `num_channels`, `side_multiple` and maps by name, finest first.
BUILDERS: dict[str, Callable[[str], nn.Module]] = {
    **dict.fromkeys(RESNETS, ResNetBackbone),
    "world": _world,
}


def build_backbone(name: str, finer: bool = True) -> nn.Module:
    """The backbone of this name (`config.BACKBONES`), with random weights.

    Args:
        finer: maps beside the coarsest one are looked at. What only serves these is not trained
            otherwise: processes that train together wait for every trained parameter's gradient.
    """
    backbone = BUILDERS[name](name)
    if name == "world" and not finer:
        for part in WORLD_FINER:
            backbone.get_submodule(part).requires_grad_(False)
    return backbone
