"""From pixels to feature maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from student.models.padding import mask_padding

# By torchvision's name: the kind of block and blocks in each of the four stages.
RESNETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}


def identify_resnet(names: Collection[str]) -> str | None:
    """The ResNet with these parameters, as torchvision names them; None when it is another."""
    found = find_resnet_blocks(names)
    return next((name for name, blocks in RESNETS.items() if blocks == found), None)


def find_resnet_blocks(names: Collection[str]) -> tuple[str, tuple[int, ...]]:
    """Kind and number per stage of the blocks that these parameters belong to."""
    kind = "bottleneck" if "layer1.0.conv3.weight" in names else "basic"
    return kind, tuple(count_layers(names, f"layer{stage}.") for stage in (1, 2, 3, 4))


def count_layers(names: Collection[str], prefix: str) -> int:
    """How many numbered layers follow this prefix."""
    found = {
        int(match[1]) for name in names if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))
    }
    return max(found) + 1 if found else 0


FROZEN_LAYERS = ("conv1", "layer1")
TOY_FROZEN = ("stem", "stage4")
# What makes the toy backbone's finer maps and nothing else.
TOY_MULTISCALE_ONLY = ("lateral4", "lateral8", "lateral16", "merge")


class FoldedBasicBlock(BasicBlock):
    """torchvision's block of two convolutions, its frozen batch norms folded into them."""

    def forward(self, x: Tensor, input_stride: int = 1, sizes: Tensor | None = None) -> Tensor:
        """(B, C, h, w) of stride `input_stride` to (B, C', h / stride, w / stride)."""
        out = self.relu(folded_conv_bn(mask_padding(x, input_stride, sizes), self.conv1, self.bn1))
        out = folded_conv_bn(
            mask_padding(out, input_stride * self.stride, sizes), self.conv2, self.bn2
        )
        return self.relu(out.add_(_shortcut(self, x)))


class FoldedBottleneck(Bottleneck):
    """torchvision's block of three convolutions, its frozen batch norms folded into them."""

    def forward(self, x: Tensor, input_stride: int = 1, sizes: Tensor | None = None) -> Tensor:
        """(B, C, h, w) of stride `input_stride` to (B, C', h / stride, w / stride)."""
        out = self.relu(folded_conv_bn(x, self.conv1, self.bn1))
        out = self.relu(
            folded_conv_bn(mask_padding(out, input_stride, sizes), self.conv2, self.bn2)
        )
        out = folded_conv_bn(out, self.conv3, self.bn3)
        return self.relu(out.add_(_shortcut(self, x)))


RESNET_BLOCKS = {"basic": FoldedBasicBlock, "bottleneck": FoldedBottleneck}


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    return (
        x
        if block.downsample is None
        else folded_conv_bn(x, block.downsample[0], block.downsample[1])
    )


class ResNetBackbone(nn.Module):
    """A torchvision ResNet without its classifier, batch norm frozen, stem and layer1 fixed.

    Args:
        name: one of `RESNETS`.

    Attributes:
        num_channels: channels of every feature map, by its name.
        size_divisible: of the images' heights and widths.
    """

    size_divisible = 1

    def __init__(self, name: str) -> None:
        super().__init__()
        kind, depths = RESNETS[name]
        resnet = ResNet(RESNET_BLOCKS[kind], list(depths), norm_layer=FrozenBatchNorm2d)
        last = resnet.fc.in_features
        self.num_channels = {"stride8": last // 4, "stride16": last // 2, "stride32": last}
        for child in FROZEN_LAYERS:
            resnet.get_submodule(child).requires_grad_(False)
        del resnet.avgpool, resnet.fc
        self.body = resnet

    def forward(self, pixels: Tensor, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised pixels to maps (B, C, H / stride, W / stride), finest first.

        Args:
            pixels: 0 on padding.
            sizes: (B, 2) heights and widths of the images, to answer each as if alone; None lets
                padding be seen, as in the published model.
        """
        body, maps, stride = self.body, {}, 4
        x = body.relu(folded_conv_bn(pixels, body.conv1, body.bn1))
        # No value is below 0 here, so that zeros do not win either.
        x = body.maxpool(mask_padding(x, 2, sizes))
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in layer:
                x = block(x, stride, sizes)
                stride *= block.stride
            maps[f"stride{stride}"] = x
        del maps["stride4"]
        return maps


class FoldedConvNormActivation(nn.Sequential):
    """Convolution, frozen batch norm and what follows, under their names in the sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the sequence gives."""
        return self[2](folded_conv_bn(x, self[0], self[1]))


def _toy(_: str) -> nn.Module:
    from pipeline.toy.backbone import ToyBackbone

    backbone = ToyBackbone(norm=FrozenBatchNorm2d, mask_padding=mask_padding)
    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Sequential) and isinstance(child[1], FrozenBatchNorm2d):
                setattr(parent, name, FoldedConvNormActivation(*child))
    for frozen in TOY_FROZEN:
        backbone.get_submodule(frozen).requires_grad_(False)
    return backbone


# Every builder gives a module with `num_channels`, `size_divisible` and maps by name, finest first;
# it takes pixels, and sizes of images as `ResNetBackbone` does.
BACKBONE_BUILDERS: dict[str, Callable[[str], nn.Module]] = {
    **dict.fromkeys(RESNETS, ResNetBackbone),
    "toy": _toy,
}


def build_backbone(name: str, multiscale: bool = True) -> nn.Module:
    """The backbone of this name (`config.BACKBONES`), with random weights.

    Args:
        multiscale: maps beside the coarsest one are looked at. What only serves these is not
            trained otherwise: processes that train together wait for every trained parameter's
            gradient.
    """
    backbone = BACKBONE_BUILDERS[name](name)
    if name == "toy" and not multiscale:
        for part in TOY_MULTISCALE_ONLY:
            backbone.get_submodule(part).requires_grad_(False)
    return backbone


def folded_conv_bn(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """Convolution and frozen batch norm in one pass over the feature map.

    The norm's factor and shift are constants, so that they can go into the weights, which are
    small, instead of the map, which is large. Gradients reach the convolution's own weights.

    Args:
        x: (B, C, h, w).
        convolution: an `nn.Conv2d` without bias.
        norm: the `FrozenBatchNorm2d` behind it.
    """
    assert isinstance(norm, FrozenBatchNorm2d)
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return functional.conv2d(
        x,
        convolution.weight * factor.view(-1, 1, 1, 1),
        norm.bias - norm.running_mean * factor,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
