"""The small convolutional body that the world's detector and student share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]
# The maps of strides 4 and 8 fit together on pictures whose sides are multiples of this.
SIDE_MULTIPLE = 8


def _block(channels_in: int, channels_out: int, stride: int, norm: NormLayer) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        norm(channels_out),
        nn.ReLU(inplace=True),
    )


class WorldBackbone(nn.Module):
    """Feature maps of 128-pixel pictures at strides 4, 8 and 16.

    Args:
        norm: builds the normalisation layer from a channel count; the detector trains with batch
            norm, the student keeps its statistics frozen as DETR does.

    Attributes:
        num_channels: channels of every returned map.
        side_multiple: of the images' heights and widths.
    """

    side_multiple = SIDE_MULTIPLE

    def __init__(self, norm: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _block(12, 32, 1, norm))
        self.stage4 = nn.Sequential(_block(32, 64, 2, norm), _block(64, 64, 1, norm))
        self.stage8 = nn.Sequential(_block(64, 128, 2, norm), _block(128, 128, 1, norm))
        self.stage16 = nn.Sequential(_block(128, 128, 2, norm), _block(128, 128, 1, norm))
        self.lateral4 = nn.Conv2d(64, 96, 2, stride=2)
        self.lateral8 = nn.Conv2d(128, 96, 1)
        self.lateral16 = nn.Conv2d(128, 96, 1)
        self.merge = _block(96, 96, 1, norm)
        self.num_channels = {"stride4": 64, "stride8": 96, "stride16": 128}

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) normalised images -> maps by name, (B, C, H / stride, W / stride)."""
        stride4 = self.stage4(self.stem(images))
        stride8 = self.stage8(stride4)
        stride16 = self.stage16(stride8)
        coarse = nn.functional.interpolate(self.lateral16(stride16), size=stride8.shape[-2:])
        merged = self.merge(self.lateral4(stride4) + self.lateral8(stride8) + coarse)
        return OrderedDict(stride4=stride4, stride8=merged, stride16=stride16)


class SingleMap(nn.Module):
    """A backbone as torchvision's detectors want it: the stride-8 map alone."""

    def __init__(self, body: WorldBackbone) -> None:
        super().__init__()
        self.body = body
        self.out_channels = body.num_channels["stride8"]

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)["stride8"]
