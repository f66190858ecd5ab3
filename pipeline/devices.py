"""Where models run, and in which arithmetic."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.errors import InputError


def resolve_device(name: str) -> torch.device:
    """A device from `auto|cpu|cuda[:i]`; auto takes the first GPU when there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: expected auto, cpu or cuda[:i], found {name}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: expected auto, cpu or cuda[:i], found {name}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: {name} asked for, {torch.cuda.device_count()} GPUs found")
    return device


def set_float32(device: torch.device, precision: str) -> None:
    """Lets a GPU multiply float32 numbers as TF32 (10 bits of mantissa), unless the precision is
    "float32"."""
    if device.type == "cuda":
        allowed = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is quicker than float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def spare_cores(workers: int | None, most: int = 8, processes: int = 1) -> int:
    """The number of worker processes to start.

    Args:
        workers: as asked for; None for the cores that the model leaves, which needs two.
        most: upper bound of the default.
        processes: how many processes with workers of their own share the machine.
    """
    if workers is not None:
        return workers
    return max(0, min(most, (os.cpu_count() or 1) // processes - 2))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision.

    Args:
        device: where the work is done.
        precision: "float32", "tf32" (see `set_float32`), "bfloat16", "float16", or "auto":
            bfloat16 where the hardware is quick at it.
    """
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    if precision in ("float32", "tf32"):
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
