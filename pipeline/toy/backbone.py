"""Small convolutional backbone of the toy detector and the toy student."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]
PaddingMaskFn = Callable[[Tensor, int, Tensor | None], Tensor]
# With sides that are multiples of this, feature maps of strides 4 and 8 can be added.
SIZE_DIVISIBLE = 8


def _block(channels_in: int, channels_out: int, stride: int, norm: NormLayer) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        norm(channels_out),
        nn.ReLU(inplace=True),
    )


def _keep_padding(features: Tensor, stride: int, sizes: Tensor | None) -> Tensor:
    return features


class ToyBackbone(nn.Module):
    """Backbone for images of about 128 pixels, with feature maps of strides 4, 8 and 16.

    The map of stride 8 merges all three strides, like a feature pyramid.

    Args:
        norm: builds a normalisation layer for a number of channels: batch norm for the detector,
            frozen batch norm for the student, as in DETR.
        mask_padding: called with a feature map, its stride and the images' sizes; returns the input
            of the next convolution, for instance with zeros in the padding.

    Attributes:
        num_channels: number of channels of every feature map, by name.
        size_divisible: heights and widths of the images must be multiples of this.
    """

    size_divisible = SIZE_DIVISIBLE

    def __init__(
        self, norm: NormLayer = nn.BatchNorm2d, mask_padding: PaddingMaskFn = _keep_padding
    ) -> None:
        super().__init__()
        self._mask_padding = mask_padding
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _block(12, 32, 1, norm))
        self.stage4 = nn.Sequential(_block(32, 64, 2, norm), _block(64, 64, 1, norm))
        self.stage8 = nn.Sequential(_block(64, 128, 2, norm), _block(128, 128, 1, norm))
        self.stage16 = nn.Sequential(_block(128, 128, 2, norm), _block(128, 128, 1, norm))
        self.lateral4 = nn.Conv2d(64, 96, 2, stride=2)
        self.lateral8 = nn.Conv2d(128, 96, 1)
        self.lateral16 = nn.Conv2d(128, 96, 1)
        self.merge = _block(96, 96, 1, norm)
        self.num_channels = {"stride4": 64, "stride8": 96, "stride16": 128}

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> OrderedDict[str, Tensor]:
        """Computes the feature maps of a batch.

        Args:
            images: (B, 3, H, W) normalised; H and W are multiples of `size_divisible`.
            sizes: (B, 2) heights and widths of the images without padding, for `mask_padding`.

        Returns:
            (B, C, H / stride, W / stride) feature maps by name.
        """
        stride4 = self._stage(self.stage4, self.stem(images), 2, sizes)
        stride8 = self._stage(self.stage8, stride4, 4, sizes)
        stride16 = self._stage(self.stage16, stride8, 8, sizes)
        coarse = nn.functional.interpolate(self.lateral16(stride16), size=stride8.shape[-2:])
        summed = self.lateral4(stride4) + self.lateral8(stride8) + coarse
        merged = self.merge(self._mask_padding(summed, 8, sizes))
        return OrderedDict(stride4=stride4, stride8=merged, stride16=stride16)

    def _stage(
        self, stage: nn.Sequential, features: Tensor, stride: int, sizes: Tensor | None
    ) -> Tensor:
        """Applies the two blocks of a stage; the first one halves the resolution."""
        halved = stage[0](self._mask_padding(features, stride, sizes))
        return stage[1](self._mask_padding(halved, 2 * stride, sizes))


class SingleFeatureMap(nn.Module):
    """The map of stride 8 of a `ToyBackbone`, in the interface of torchvision's detectors."""

    def __init__(self, body: ToyBackbone) -> None:
        super().__init__()
        self.body = body
        self.out_channels = body.num_channels["stride8"]

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)["stride8"]
