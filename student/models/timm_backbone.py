"""Backbones of timm: convolutional networks, hierarchical transformers and plain ViTs.

`--backbone timm:NAME` takes the feature maps of any model of timm that processes images of any
size. A plain ViT (DINOv2, DINOv3, SigLIP, the image tower of CLIP) has maps of a single stride, its
patch size; other models have maps of the strides 8, 16 and 32 as a ResNet has.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.utils.errors import InputError
from pipeline.utils.weights import architecture_error, shorten_message
from student.models.backbone import PixelStatistics, map_stride

# Beginning of the names of these backbones.
TIMM_PREFIX = "timm:"
# Number of feature maps, and the stride of the finest one of a hierarchical model.
NUM_MAPS, MIN_STRIDE = 3, 8
# Arguments by which models of timm accept images of any size; the first accepted ones are used.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


class TimmBackbone(nn.Module):
    """A model of timm without its classifier, with frozen batch norm.

    Args:
        name: "timm:" and the name of a model, with or without the tag of its weights.

    Attributes:
        num_channels: number of channels of every feature map, by the map's name.
        size_divisible: heights and widths of batches have to be multiples of this, the stride of
            the coarsest map.
        separate_images: whether images of different sizes have to be processed one by one in
            training too, because each position of a map depends on all others, and position
            embeddings on the map's size.
        crops_images: whether `forward` processes images one by one where it is given their sizes.
        untraceable: what depends on an image's size in a way that an exported graph cannot have;
            "" for nothing.

    Raises:
        InputError: timm is missing or has no such model, or the model has no feature maps or needs
            images of a fixed size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        body = cast(Any, create_timm_model(name))
        levels = _list_levels(body)
        if not levels or not hasattr(body, "prune_intermediate_layers"):
            raise InputError(f"--backbone: expected a model with feature maps, found {name}")
        strides = [stride for _, stride in levels]
        self.separate_images = len(set(strides)) == 1
        self.crops_images = True
        self.untraceable = ""
        if getattr(body, "rope", None) is not None:
            self.untraceable = "rotary position embeddings"
        elif any(hasattr(module, "window_size") for module in body.modules()):
            # torch 2.15 is not done after half an hour.
            self.untraceable = "attention windows"
        indices = _select_levels(strides)
        if not indices:
            raise InputError(
                f"--backbone: expected a model with feature maps of a stride of at least"
                f" {MIN_STRIDE}, found {name}"
            )
        # Parameters that no map depends on would have no gradient.
        self._indices = body.prune_intermediate_layers(
            indices, prune_norm=not self.separate_images, prune_head=True
        )
        self.body = body
        names = [
            f"block{index}.stride{strides[index]}"
            if self.separate_images
            else f"stride{strides[index]}"
            for index in indices
        ]
        self.num_channels = {
            key: levels[index][0] for key, index in zip(names, indices, strict=True)
        }
        self.size_divisible = strides[indices[-1]]
        # In checkpoints too, so that a student does not depend on the values of another timm.
        for statistic in ("mean", "std"):
            values = torch.tensor(body.pretrained_cfg[statistic], dtype=torch.float32)
            self.register_buffer(statistic, values)
        for norm in self._batch_norms():
            norm.requires_grad_(False)
        self.train(self.training)
        self._check_maps(name)

    @property
    def statistics(self) -> PixelStatistics:
        """Mean and standard deviation that the model's pixels are normalised by."""
        return PixelStatistics(self.mean, self.std)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Sets the mode of all modules but batch norms, whose statistics are frozen."""
        super().train(mode)
        for norm in self._batch_norms():
            norm.eval()
        return self

    def forward(self, pixels: Tensor, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """Feature maps, at most three; those of a plain ViT are outputs of different blocks.

        Args:
            pixels: (B, 3, H, W) normalised, 0 on padding; H and W are multiples of
                `size_divisible`.
            sizes: (B, 2) heights and widths of the images, multiples of `size_divisible`. With them
                the features of an image are those that it has when it is processed alone.

        Returns:
            (B, C, H / stride, W / stride) by the names of `num_channels`, 0 on the padding where
            sizes are given.
        """
        if sizes is None or not self.crops_images:
            return self._extract(pixels)
        # Attention cannot be masked from outside of the model.
        height, width = pixels.shape[-2:]
        rows = [tuple(row) for row in sizes.tolist()]
        if set(rows) == {(height, width)}:
            return self._extract(pixels)
        alone = [self._extract(pixels[row : row + 1, :, :h, :w]) for row, (h, w) in enumerate(rows)]
        maps = {}
        for name in self.num_channels:
            stride = map_stride(name)
            maps[name] = torch.cat(
                [
                    F.pad(one[name], (0, (width - w) // stride, 0, (height - h) // stride))
                    for one, (h, w) in zip(alone, rows, strict=True)
                ]
            )
        return maps

    def _extract(self, pixels: Tensor) -> dict[str, Tensor]:
        body = cast(Any, self.body)
        maps = body.forward_intermediates(
            pixels, indices=self._indices, norm=self.separate_images, intermediates_only=True
        )
        if not self.separate_images:
            # The scales of the maps differ between models and levels by orders of magnitude. A
            # plain ViT has a norm of its own.
            maps = [_normalise_channels(features) for features in maps]
        return dict(zip(self.num_channels, maps, strict=True))

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    @torch.no_grad()
    def _check_maps(self, name: str) -> None:
        """Checks that an image of an unusual size has maps of the promised shapes."""
        size = 2 * self.size_divisible, 3 * self.size_divisible
        was_training = self.training
        try:
            maps = self.eval()(torch.zeros(1, 3, *size))
            found = {key: list(value.shape[1:]) for key, value in maps.items()}
        # Models refuse sizes by errors of any type.
        except Exception as error:
            raise InputError(
                f"--backbone: expected a model for images of any size, found {name}"
                f" ({shorten_message(error)})"
            ) from None
        self.train(was_training)
        for key, channels in self.num_channels.items():
            stride = map_stride(key)
            expected = [channels, size[0] // stride, size[1] // stride]
            if found[key] != expected:
                raise InputError(
                    f"--backbone: expected feature maps of shape {expected} from {name}, found"
                    f" {found[key]}"
                )


def create_timm_model(name: str, pretrained: bool = False) -> nn.Module:
    """A model of timm for images of any size, by its name with "timm:".

    Args:
        name: see `TimmBackbone`.
        pretrained: download timm's weights for it, or take them from the cache of earlier
            downloads, instead of random weights.

    Raises:
        InputError: timm is missing, or has no such model.
    """
    try:
        import timm
    except ImportError:
        raise InputError(f"the backbone {name} needs the package timm; pip install timm") from None
    model_name = name.removeprefix(TIMM_PREFIX)
    # Names with other prefixes stand for folders and for repositories of a hub.
    if not timm.is_model(model_name) or ":" in model_name:
        similar = get_close_matches(model_name.partition(".")[0], timm.list_models(), cutoff=0.7)
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        raise InputError(
            f"--backbone: expected a model of timm {timm.__version__}, found {name}{hint}"
        )
    try:
        for options in ANY_SIZE:
            try:
                return timm.create_model(model_name, pretrained=pretrained, **options)
            except TypeError:
                if not options:
                    raise
    except RuntimeError as error:
        # An unknown tag.
        raise InputError(
            f"--backbone: expected a model of timm, found {name} ({shorten_message(error)})"
        ) from None
    raise AssertionError("the last options are empty")


def rename_timm_weights(
    body: nn.Module, state: dict[str, Tensor], file: object
) -> dict[str, Tensor]:
    """A state dict with the names of timm's model `body`, from one in a form that timm can convert:
    its own, or for many models that of the original publication or of open_clip.

    Raises:
        InputError: timm cannot convert it; names the file.
    """
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(state if convert is None else convert(dict(state), body))
    # Weights of other models lead to errors of any type.
    except Exception as error:
        raise architecture_error(file, type(body).__name__, error) from None


def _list_levels(body: Any) -> list[tuple[int, int]]:
    """Channels and stride of each output of a model's `forward_intermediates`, as far as known."""
    # A list, or timm's class around one.
    entries = getattr(body, "feature_info", ())
    entries = getattr(entries, "info", entries)
    return [(int(entry["num_chs"]), int(entry["reduction"])) for entry in entries]


def _select_levels(strides: Sequence[int]) -> list[int]:
    """Indices of at most three feature maps, the coarsest or deepest one last."""
    count = len(strides)
    if len(set(strides)) == 1:
        # The ends of the last three quarters of a plain ViT.
        ends = {count * quarter // 4 - 1 for quarter in (2, 3, 4)}
        return sorted(end for end in ends if end >= 0)
    deepest = {stride: index for index, stride in enumerate(strides) if stride >= MIN_STRIDE}
    return sorted(deepest.values())[-NUM_MAPS:]


def _normalise_channels(features: Tensor) -> Tensor:
    """Layer norm without parameters over the channels of a (B, C, h, w) map."""
    channels_last = features.permute(0, 2, 3, 1)
    return F.layer_norm(channels_last, channels_last.shape[-1:]).permute(0, 3, 1, 2)
