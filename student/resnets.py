"""The ResNets that can be a backbone, and how to tell one from the names of its parameters."""

from __future__ import annotations

import re
from collections.abc import Collection

# By torchvision's name: the kind of block and blocks in each of the four stages.
RESNETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}


def resnet_of(names: Collection[str]) -> str | None:
    """The ResNet with these parameters, as torchvision names them; None when it is another."""
    found = resnet_blocks(names)
    return next((name for name, blocks in RESNETS.items() if blocks == found), None)


def resnet_blocks(names: Collection[str]) -> tuple[str, tuple[int, ...]]:
    """Kind and number per stage of the blocks that these parameters belong to."""
    kind = "bottleneck" if "layer1.0.conv3.weight" in names else "basic"
    return kind, tuple(count_layers(names, f"layer{stage}.") for stage in (1, 2, 3, 4))


def count_layers(names: Collection[str], prefix: str) -> int:
    """How many numbered layers follow this prefix."""
    found = {
        int(match[1]) for name in names if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))
    }
    return max(found) + 1 if found else 0
