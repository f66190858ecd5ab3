"""Where models run, and in which arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path, PurePath

import torch
from torch import Tensor

from pipeline.utils.errors import InputError


def resolve_device(name: str) -> torch.device:
    """A device from `auto|cpu|cuda[:i]`; auto takes the first GPU when there is one.

    Raises:
        InputError: no such device here.
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
        return device
    # Without an index it would be whatever GPU is the current one of a thread.
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        raise InputError(f"--device: {name} asked for, {torch.cuda.device_count()} GPUs found")
    return device


def configure_device(
    device: torch.device, precision: str, exact_matmul: bool = False
) -> torch.device:
    """Sets everything that torch keeps per process or thread about where and how to compute.

    Every entry point calls it once its device and precision are known, before it loads a model.

    Args:
        device: becomes the calling thread's current GPU, on which CUDA makes contexts, pinned
            memory and events; threads that are started later begin at the first one.
        precision: see `autocast`. "float32" keeps it for all products and convolutions on a GPU;
            the others let them round their factors to TF32 (10 bits of mantissa).
        exact_matmul: only convolutions may round.

    Returns:
        The device.
    """
    if device.type == "cuda":
        # Padded batches differ in size from step to step: segments of fixed sizes would fill up
        # with gaps. Read when CUDA allocates for the first time.
        if "PYTORCH_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(device)
        rounded = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = rounded and not exact_matmul
        torch.backends.cudnn.allow_tf32 = rounded
    return device


def copy_to_host_async(tensor: Tensor) -> Callable[[], Tensor]:
    """Copies a tensor to the host, beside the device's further work.

    Returns:
        Waits for the tensor's own work alone and gives the copy; of a tensor that is on the host,
        the tensor itself.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    # Without a stream it would be the current one of the thread's current GPU.
    event.record(torch.cuda.current_stream(tensor.device))

    def arrived() -> Tensor:
        event.synchronize()
        return host

    return arrived


@contextmanager
def convert_out_of_memory(what: Callable[[], str]) -> Iterator[None]:
    """Turns a GPU's lack of memory into one line.

    Args:
        what: says what took the memory, for instance "batch_size 16, images of 800 x 1333".

    Raises:
        InputError: the GPU's memory was not enough.
    """
    try:
        yield
    except RuntimeError as error:
        # Libraries of CUDA that lack memory say so in their own names.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        reason = " ".join(". ".join(str(error).split(". ")[:2]).split())
        raise InputError(
            f"--device: expected work that fits the GPU's memory, found {what()} ({reason})"
        ) from None


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is quicker than float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def default_num_workers(workers: int | None, most: int = 16, processes: int = 1) -> int:
    """The number of worker processes to start.

    Args:
        workers: as asked for; None for the cores that the model leaves, which needs two.
        most: upper bound of the default.
        processes: how many processes with workers of their own share the machine.
    """
    if workers is not None:
        return workers
    share = num_usable_cores() // processes
    # Processes that share a machine mostly have a GPU each, and their cores are for reading.
    least = 1 if processes > 1 and share > 1 else 0
    return max(least, min(most, share - 2))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision.

    Args:
        device: where the work is done.
        precision: "float32", "tf32" (see `configure_device`), "bfloat16", "float16", or "auto":
            bfloat16 where the hardware is quick at it.
    """
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    if precision in ("float32", "tf32"):
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def num_usable_cores() -> int:
    """How many cores this process may use: its affinity, cut by its control groups' quotas."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(int, _cpu_quotas())]))


def _cpu_quotas() -> Iterator[float]:
    """Cores' worth of time that control groups allow, of this process's group and all above it."""
    try:
        groups = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree and no controllers here; version 1 one tree for each set of them.
        trees = ["", "unified"]
        if controllers:
            trees = [controllers, "cpu"] if "cpu" in controllers.split(",") else []
        for tree in trees:
            place = PurePath(path.lstrip("/"))
            for group in (place, *place.parents):
                yield from _quota(CGROUPS / tree / group)


def _quota(group: Path) -> Iterator[float]:
    """A control group's CPU time per wall time; nothing where it sets no limit."""
    files = ((group / "cpu.max",), (group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"))
    for names in files:
        with suppress(OSError, ValueError):
            quota, period = (int(n) for file in names for n in file.read_text().split())
            if quota > 0:
                yield quota / period
