"""Backbones: ResNets with frozen batch norm, and the toy dataset's small network.

Models of timm are in `student.models.timm_backbone`.

The published student has a ResNet-50 of which only the stride-32 map is used. Frozen batch norms
are folded into the convolutions before them, and zero padding can be re-applied after every layer,
so that an image's features don't depend on the batch that it is in.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from copy import deepcopy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from student.models.padding import mask_padding

# Kind of block and number of blocks in each of the four stages, by torchvision's name.
RESNETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}
# Layers that are not trained, as in DETR.
FROZEN_LAYERS = ("conv1", "layer1")
TOY_FROZEN = ("stem", "stage4")
# Layers of the toy backbone that serve only its stride-8 map.
TOY_MULTISCALE_ONLY = ("lateral4", "lateral8", "lateral16", "merge")


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of the channels of pixels from 0 to 1, three values each."""

    mean: Tensor | tuple[float, ...]
    std: Tensor | tuple[float, ...]


IMAGENET = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pixel_statistics(backbone: nn.Module) -> PixelStatistics:
    """Mean and standard deviation that a backbone's pixels are normalised by."""
    return cast(PixelStatistics, getattr(backbone, "statistics", IMAGENET))


def map_stride(name: str) -> int:
    """The stride of a feature map, from its name."""
    return int(name.rpartition("stride")[2])


def proposal_map(names: Collection[str]) -> str:
    """Name of the feature map that a proposal head reads: stride 8; the last without such a one."""
    return "stride8" if "stride8" in names else list(names)[-1]


def identify_resnet(names: Collection[str]) -> str | None:
    """Name of the ResNet in `RESNETS` that has these parameter names; None where there is none."""
    found = find_resnet_blocks(names)
    return next((name for name, blocks in RESNETS.items() if blocks == found), None)


def find_resnet_blocks(names: Collection[str]) -> tuple[str, tuple[int, ...]]:
    """Kind of block and number of blocks in each stage, from torchvision's parameter names."""
    kind = "bottleneck" if "layer1.0.conv3.weight" in names else "basic"
    return kind, tuple(count_layers(names, f"layer{stage}.") for stage in (1, 2, 3, 4))


def count_layers(names: Collection[str], prefix: str) -> int:
    """Number of layers `prefix0`, `prefix1`, ... that these parameter names belong to."""
    found = {
        int(match[1]) for name in names if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))
    }
    return max(found) + 1 if found else 0


class FoldedBasicBlock(BasicBlock):
    """torchvision's `BasicBlock` with its frozen batch norms folded into the convolutions."""

    def forward(self, x: Tensor, input_stride: int = 1, sizes: Tensor | None = None) -> Tensor:
        """Maps (B, C, h, w) of stride `input_stride` to (B, C', h / stride, w / stride)."""
        out = self.relu(folded_conv_bn(mask_padding(x, input_stride, sizes), self.conv1, self.bn1))
        out = folded_conv_bn(
            mask_padding(out, input_stride * self.stride, sizes), self.conv2, self.bn2
        )
        return self.relu(out.add_(_shortcut(self, x)))


class FoldedBottleneck(Bottleneck):
    """torchvision's `Bottleneck` with its frozen batch norms folded into the convolutions."""

    def forward(self, x: Tensor, input_stride: int = 1, sizes: Tensor | None = None) -> Tensor:
        """Maps (B, C, h, w) of stride `input_stride` to (B, C', h / stride, w / stride).

        Only the 3x3 convolution reads neighbouring cells, so only its input is masked.
        """
        out = self.relu(folded_conv_bn(x, self.conv1, self.bn1))
        out = self.relu(
            folded_conv_bn(mask_padding(out, input_stride, sizes), self.conv2, self.bn2)
        )
        out = folded_conv_bn(out, self.conv3, self.bn3)
        return self.relu(out.add_(_shortcut(self, x)))


RESNET_BLOCKS = {"basic": FoldedBasicBlock, "bottleneck": FoldedBottleneck}


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    return folded_conv_bn(x, block.downsample[0], block.downsample[1])


class ResNetBackbone(nn.Module):
    """A torchvision ResNet without its classifier, with frozen batch norm, stem and layer1.

    Args:
        name: a key of `RESNETS`.

    Attributes:
        num_channels: number of channels of every feature map, by the map's name.
        size_divisible: heights and widths of batches have to be multiples of this.
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
        """Feature maps of the strides 8, 16 and 32.

        Args:
            pixels: (B, 3, H, W) normalised, 0 on padding.
            sizes: (B, 2) heights and widths of the images. With them the features of an image are
                those that it has when it is processed alone. Without them activations on padding
                leak into the image, as in the published model.

        Returns:
            (B, C, H / stride, W / stride) by "stride8", "stride16" and "stride32", in this order.
        """
        body, maps, stride = self.body, {}, 4
        x = body.relu(folded_conv_bn(pixels, body.conv1, body.bn1))
        # Max pooling pads with -inf, but after ReLU no value is below 0, so zeros do the same.
        x = body.maxpool(mask_padding(x, 2, sizes))
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in layer:
                x = block(x, stride, sizes)
                stride *= block.stride
            maps[f"stride{stride}"] = x
        del maps["stride4"]
        return maps


class FoldedConvNormActivation(nn.Sequential):
    """Convolution, frozen batch norm and activation, with the parameter names of the sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return self[2](folded_conv_bn(x, self[0], self[1]))


def build_backbone(name: str, multiscale: bool = True) -> nn.Module:
    """A backbone with random weights: a `ResNetBackbone`, or a module with its attributes.

    `multiscale` tells whether maps other than the coarsest one are used.

    Raises:
        InputError: the model of timm cannot be used, see `TimmBackbone`.
    """
    if name in RESNETS:
        return ResNetBackbone(name)
    if name != "toy":
        from student.models.timm_backbone import TimmBackbone

        return TimmBackbone(name)
    from pipeline.toy.backbone import ToyBackbone

    backbone = ToyBackbone(norm=FrozenBatchNorm2d, mask_padding=mask_padding)
    for parent in list(backbone.modules()):
        for child_name, child in parent.named_children():
            if isinstance(child, nn.Sequential) and isinstance(child[1], FrozenBatchNorm2d):
                setattr(parent, child_name, FoldedConvNormActivation(*child))
    # DistributedDataParallel waits for a gradient of every trained parameter.
    for frozen in TOY_FROZEN if multiscale else TOY_FROZEN + TOY_MULTISCALE_ONLY:
        backbone.get_submodule(frozen).requires_grad_(False)
    return backbone


@torch.no_grad()
def measure_norm_statistics(backbone: nn.Module, pixels: Tensor) -> int:
    """Sets means and variances of the frozen batch norms to those of some images.

    A backbone with random weights needs this. With the initial means of 0 and variances of 1, its
    features are nearly the same for every image, and the student learns nothing for a long time.

    Args:
        pixels: (B, 3, H, W) normalised, without padding, with sides of at least 64.

    Returns:
        The number of batch norms; without any, nothing is computed.
    """
    copy = deepcopy(backbone)
    measured: dict[str, nn.BatchNorm2d] = {}
    # A batch norm in train mode normalises by the statistics of the batch and, without momentum,
    # stores them. Models of timm have batch norms in eval mode instead of frozen ones.
    for name, norm in list(copy.named_modules()):
        if isinstance(norm, FrozenBatchNorm2d):
            measured[name] = nn.BatchNorm2d(len(norm.weight), norm.eps, momentum=None)
            copy.set_submodule(name, measured[name])
        elif isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
            measured[name] = norm.train()
    if measured:
        copy(pixels)
    for name, found in measured.items():
        norm = backbone.get_submodule(name)
        for statistic in ("running_mean", "running_var"):
            norm.get_buffer(statistic).copy_(found.get_buffer(statistic))
    return len(measured)


def folded_conv_bn(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """Convolution without bias and frozen batch norm in one pass over the (B, C, h, w) map.

    The norm's scale and shift are constants and multiply the small weights instead of the large
    map. Gradients reach the convolution's own weights. Other norms (`measure_norm_statistics`) are
    called.
    """
    if isinstance(norm, nn.BatchNorm2d):
        return norm(convolution(x))
    assert isinstance(norm, FrozenBatchNorm2d)
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return F.conv2d(
        x,
        convolution.weight * scale.view(-1, 1, 1, 1),
        norm.bias - norm.running_mean * scale,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
