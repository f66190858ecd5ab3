"""Devices, precision and worker processes: choice of the GPU, TF32, autocast, usable CPU cores."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger

logger = get_logger(__name__)

# Parameter of glibc's `mallopt`: the largest number of heaps.
M_ARENA_MAX = -8


def resolve_device(name: str) -> torch.device:
    """The device that `auto|cpu|cuda[:i]` names; auto is the first GPU, or the CPU without GPUs.

    Raises:
        InputError: the name is not valid, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: expected auto, cpu or cuda[:i], found {name}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: expected auto, cpu or cuda[:i], found {name}")
    if device.type == "cpu":
        logger.debug("device: cpu")
        return device
    # Without an index the device would be the calling thread's current GPU.
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        usable = f"one of the {count} GPUs" if count else "cpu, as torch can use no GPU here"
        raise InputError(f"--device: expected {usable}, found {name}")
    logger.debug(f"device: {device}")
    return device


def configure_device(
    device: torch.device, precision: str, exact_matmul: bool = False
) -> torch.device:
    """Sets torch's settings for a device and precision that are global to the process or thread.

    Every entry point calls it as soon as device and precision are known, before it loads a model.

    Args:
        device: becomes the calling thread's current GPU, on which CUDA creates contexts, pinned
            memory and events. Threads that are started later use the first GPU by default.
        precision: see `autocast`. With "float32", matrix products and convolutions on a GPU are
            exact; all others allow TF32, which rounds the factors to 10 bits of mantissa.
        exact_matmul: allow TF32 for convolutions only.

    Returns:
        The device.
    """
    if device.type == "cuda":
        # Padded batches have another size in every step, which fragments segments of fixed sizes.
        # torch reads the variable at the first CUDA allocation.
        if "PYTORCH_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(device)
        allow_tf32 = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32 and not exact_matmul
        torch.backends.cudnn.allow_tf32 = allow_tf32
    else:
        _use_one_heap()
    return device


def _use_one_heap() -> None:
    """Makes threads that start from now on allocate from the main thread's heap, with glibc.

    Heaps of other threads return large blocks to the system at once, so that every layer's
    activations are new pages, which the kernel clears first: 6 % of encoding on a CPU.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        # Other C libraries have no such function.
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the host to a device; the host does not wait for a GPU.

    A GPU reads pinned memory on its own. torch keeps pinned blocks and gives a block out again when
    the copy from it is done, so that new ones are pinned only at the beginning.
    """
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def copy_to_host_async(tensor: Tensor) -> Callable[[], Tensor]:
    """Starts copying a tensor to the host while the device continues to work.

    Returns:
        A function that waits for the copy and returns it; for a tensor on the CPU, it returns the
        tensor itself.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    # By default the event would be recorded on the thread's current GPU, which may be another one.
    event.record(torch.cuda.current_stream(tensor.device))

    def resolve() -> Tensor:
        event.synchronize()
        return host

    return resolve


@contextmanager
def convert_out_of_memory(what: Callable[[], str]) -> Iterator[None]:
    """Converts out-of-memory errors of a GPU to an `InputError`.

    Args:
        what: returns what needed the memory, for instance "batch_size 16, images of 800 x 1333".

    Raises:
        InputError: the GPU ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(". ".join(str(error).split(". ")[:2]).split())
        raise InputError(
            f"--device: expected work that fits the GPU's memory, found {what()} ({reason})"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU lacks memory."""
    # cuBLAS and cuDNN report it by their own status names.
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def to_numpy(values: Any) -> np.ndarray:
    """An array on the host of a tensor of any device or of what numpy converts.

    Raises:
        ValueError: numpy cannot convert it.
    """
    if isinstance(values, Tensor):
        # numpy has no bfloat16.
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has hardware support that makes bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def default_num_workers(workers: int | None, most: int = 16, processes: int = 1) -> int:
    """The number of worker processes to start: the user's setting, or by default all usable cores
    except two, which the model needs, divided by the processes on this machine that start workers.
    """
    if workers is not None:
        return workers
    share = num_usable_cores() // processes
    # Several processes usually have a GPU each, so at least one core of each can read data.
    least = 1 if processes > 1 and share > 1 else 0
    return max(least, min(most, share - 2))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context manager for mixed precision.

    Args:
        device: device of the computation.
        precision: "float32", "tf32" (see `configure_device`), "bfloat16", "float16", or "auto" for
            bfloat16 if the device supports it in hardware and float32 otherwise.
    """
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    if precision in ("float32", "tf32"):
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def num_usable_cores() -> int:
    """Number of CPU cores this process may use, by its affinity and its control groups' quotas."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(int, _cpu_quotas())]))


def _cpu_quotas() -> Iterator[float]:
    """CPU quotas, in cores, of this process's control group and of all groups above it."""
    try:
        groups = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        # Version 2 of control groups has a single tree and lists no controllers; version 1 has one
        # tree per set of controllers. "unified" is version 2's tree on systems that have both.
        trees = ["", "unified"]
        if controllers:
            trees = [controllers, "cpu"] if "cpu" in controllers.split(",") else []
        for tree in trees:
            own_group = PurePath(path.lstrip("/"))
            for group in (own_group, *own_group.parents):
                yield from _quota(CGROUPS / tree / group)


def _quota(group: Path) -> Iterator[float]:
    """CPU quota of a control group in cores; yields nothing without a limit."""
    files = ((group / "cpu.max",), (group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"))
    for names in files:
        with suppress(OSError, ValueError):
            quota, period = (int(n) for file in names for n in file.read_text().split())
            if quota > 0:
                yield quota / period
