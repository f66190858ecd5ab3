"""Emulates a CUDA device, so that code for GPUs is tested on a machine that has none.

    with emulated_cuda(["/student/"]) as gpu:
        step()
    gpu.waits.most_common()        # what made the host wait for the device, where, how often
    gpu.kernels.total()            # operators that launch a kernel

A tensor on the device is a wrapper whose C++ device is cuda:0, so that torch takes its branches for
CUDA (autocast's lists, fused optimisers, scalars made on the host), around a host tensor that
computes. Operators given tensors of host and device raise where CUDA's do. A non-blocking copy into
pinned memory holds garbage until the host has waited for it.

Not emulated: time, memory, numerics of CUDA's kernels and their limits of shape and alignment, the
order among streams, tensors on a second device, NCCL, torch.compile, CUDA graphs. The first
`module.to("cuda")` makes new parameters where CUDA moves the present ones.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Private parts of torch are replaced, so each version has to be tried.
TESTED = ("2.14", "2.15")
# Operators whose result is a number, or has a size, that only the device knows.
SIZED_BY_DATA = {
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "nms", "equal"),
    *("is_nonzero", "bincount", "repeat_interleave", "_local_scalar_dense"),
}
# Operators that, unlike others on elements, do not take a scalar tensor of the host.
STRICT = {"clamp", "clamp_", "mse_loss", "smooth_l1_loss", "huber_loss", "cat", "stack"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
NO_KERNEL = {
    *("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "_reshape_alias"),
    *("lift_fresh", "detach", "_local_scalar_dense", "_fused_sdp_choice"),
}
# Smaller pageable copies to the device do not wait.
STAGED_BYTES = 2**16
MIXED = "Expected all tensors to be on the same device, but found two devices, cuda:0 and cpu!"
_active: list[EmulatedCuda] = []


def why_not() -> str | None:
    """Why the device cannot be emulated here; None where it can."""
    if torch.cuda.is_available():
        return "there is a real GPU"
    if not torch.backends.cuda.is_built():
        return "torch is built without CUDA"
    if ".".join(torch.__version__.split(".")[:2]) not in TESTED:
        return f"the emulated GPU was tested with torch {', '.join(TESTED)}"
    return None


class DeviceTensor(Tensor):
    """A tensor on the emulated device; `host` computes in its place."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        with torch.inference_mode(host.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls, host.size(), dtype=host.dtype, device=torch.device("cuda", 0), **layout
            )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _active[-1].__torch_dispatch__(func, types, args, kwargs)

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def _set_data(self, value: DeviceTensor) -> None:
        Tensor.data.__set__(self, value)
        self.host = value.host

    # A module that is converted assigns to its parameters' data.
    data = property(lambda self: Tensor.data.__get__(self), _set_data)
    tolist = property(lambda self: self.cpu().tolist)
    __format__ = property(lambda self: self.cpu().__format__)
    __reduce_ex__ = property(lambda self: self.detach().cpu().__reduce_ex__)
    __repr__ = property(lambda self: partial(repr, self.host))


class EmulatedCuda(TorchDispatchMode):
    """Runs and counts the operators of the threads that enter it.

    Args:
        roots: parts of paths; a wait is named by the innermost line of a file below one of them.

    Attributes:
        waits: what made the host wait, as "kind operator file:line". Kinds: `download` of a
            result; `upload`, a copy that blocks and so waits for all work before it; `sized`, the
            size of a result; `event`; `synchronize`.
        kernels: operators that launch kernels, by name; `upload` are copies that do not wait.
        current: the current device's index. Tensors are on the first device whatever it is.
    """

    def __init__(self, roots: Sequence[str] = ()) -> None:
        super().__init__()
        self.roots, self.current, self._lock = roots, 0, threading.RLock()
        self.waits, self.kernels = Counter[str](), Counter[str]()
        # Targets and values of the copies to the host under way, by the target's identity.
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self.seed(0)

    def seed(self, number: int) -> None:
        """Seeds the device's random generator."""
        self.generator = torch.Generator().manual_seed(int(number) % 2**63).get_state()

    def waits_of(self, *kinds: str) -> int:
        """How often the host waited, for the given kinds or for all."""
        return sum(n for name, n in self.waits.items() if not kinds or name.split()[0] in kinds)

    def wait(self, kind: str, name: str, copies: Iterable[int] | None = None) -> None:
        """Counts a wait of the host, and completes the copies under way, all or the given ones."""
        frame = sys._getframe(1)
        while frame and not any(root in frame.f_code.co_filename for root in self.roots):
            frame = frame.f_back
        file, line = (frame.f_code.co_filename, frame.f_lineno) if frame else ("elsewhere", 0)
        with self._lock:
            self.waits[f"{kind:11} {name:20} {'/'.join(Path(file).parts[-2:])}:{line}"] += 1
            for key in list(self._copies if copies is None else copies):
                target, value = self._copies.pop(key, (None, None))
                if target is not None:
                    target.copy_(value)

    def event(self, **_: Any) -> Any:
        """Stands for `torch.cuda.Event`. Recorded without a stream it is of the current device, and
        completes no copy of another one."""
        made, copies = SimpleNamespace(), []

        def record(stream: Any = None) -> None:
            copies[:] = self._copies if stream is not None or self.current == 0 else []

        made.record, made.synchronize = record, partial(self.wait, "event", "synchronize", copies)
        made.wait = lambda stream=None: None
        return made

    def stream(self, *_: Any, **__: Any) -> Any:
        """Stands for `torch.cuda.Stream`; all work is done in the order in which it is given."""
        return SimpleNamespace(
            wait_stream=lambda other: None,
            wait_event=lambda event: None,
            synchronize=partial(self.wait, "synchronize", "synchronize"),
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, leaves = func._schema.name.partition("::")[2], tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_host = [one for one in tensors if not isinstance(one, DeviceTensor)]
        to_device = [leaf.type == "cuda" for leaf in leaves if isinstance(leaf, torch.device)]
        if len(on_host) == len(tensors) and not any(to_device):
            pin = kwargs.pop("pin_memory", False)
            return _pinned(func(*args, **kwargs)) if pin else func(*args, **kwargs)
        inference = torch.is_inference_mode_enabled() or any(one.is_inference() for one in tensors)
        if inference and func._can_decompose():
            # Without autograd, operators made of others arrive whole.
            with self:
                return func.decompose(*args, **kwargs)
        with self._lock:
            if name in ("_to_copy", "copy_"):
                return self._copy(func, args, kwargs, all(to_device))
            if on_host:
                self._refuse_mixed(name, args, on_host)
            indices = [one for one in args[1] if one is not None] if name in INDEXING else []
            masks = [one for one in indices if one.dtype in (torch.bool, torch.uint8)]
            if name in SIZED_BY_DATA or any(isinstance(one, DeviceTensor) for one in masks):
                self.wait("download" if name == "_local_scalar_dense" else "sized", name)
            self.kernels[name] += not func.is_view and name not in NO_KERNEL
            return self._compute(func, name, args, kwargs)

    def _refuse_mixed(self, name: str, args: Any, on_host: list[Tensor]) -> None:
        """Raises RuntimeError where CUDA does for tensors of the host among those of the device."""
        indices = args[1] if name in INDEXING else []
        values = [one for one in on_host if all(one is not index for index in indices)]
        changes_host = any(one is args[0] for one in on_host) and (name[-1] == "_" or indices)
        if name in STRICT or changes_host or any(one.dim() for one in values):
            raise RuntimeError(f"{MIXED} (in {name})")
        if indices or name == "where":
            self.wait("upload", name)

    def _compute(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs an operator on the tensors' host parts."""
        own, kwargs = tree_map_only(DeviceTensor, lambda one: one.host, (args, kwargs))
        kwargs, narrow = _on_host(kwargs) if "device" in kwargs else kwargs, None
        if name == "_fused_sdp_choice":
            return 0  # Matrix products, not a fused kernel.
        if name in ("_softmax", "_log_softmax") and own[2]:
            own = (own[0].float(), own[1], False)  # CUDA converts within the kernel.
        elif name in ("_softmax_backward_data", "_log_softmax_backward_data"):
            narrow, own = own[3], (*own[:3], own[0].dtype)
        draws = torch.Tag.nondeterministic_seeded in func.tags
        with torch.random.fork_rng(devices=[], enabled=draws):
            torch.set_rng_state(self.generator if draws else torch.get_rng_state())
            result = func(*own, **kwargs)
            self.generator = torch.get_rng_state() if draws else self.generator
        if args and isinstance(args[0], DeviceTensor) and name.endswith("_"):
            return args[0]
        return tree_map_only(Tensor, DeviceTensor, result if narrow is None else result.to(narrow))

    def _copy(self, func: Any, args: Any, kwargs: Any, to_device: bool) -> Any:
        """Copies between host and device, or within the device."""
        target, source = args[:2] if func._schema.name == "aten::copy_" else (None, args[0])
        host = source.host if isinstance(source, DeviceTensor) else source
        to_device = to_device if target is None else isinstance(target, DeviceTensor)
        non_blocking = kwargs.get("non_blocking") or args[2:3] == (True,)
        if to_device and host is not source:
            self.kernels["copy_"] += 1
        elif to_device and non_blocking and (host.nbytes <= STAGED_BYTES or host.is_pinned()):
            self.kernels["upload"] += host.numel() > 0
        elif non_blocking and target is not None and target.is_pinned():
            self._copies[id(target)] = target, host.clone()
            return target.fill_(torch.nan if target.is_floating_point() else 77)
        elif host.numel():
            self.wait("upload" if to_device else "download", "copy_")
        if target is not None:
            (target.host if to_device else target).copy_(host)
            return target
        made = func(host, **_on_host(kwargs))
        return DeviceTensor(made) if to_device else made


def _pinned(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().pinned = True
    return tensor


def _on_host(kwargs: dict[str, Any]) -> dict[str, Any]:
    kept = {name: kwargs[name] for name in kwargs.keys() - {"pin_memory", "non_blocking"}}
    return {**kept, "device": torch.device("cpu")}


@cache
def prepare_torch() -> Any:
    """Lets autograd and optimisers work without a driver, for the rest of the process.

    To be called before the process's first backward pass, in which autograd starts its threads, one
    for every device. torch's CUDA hooks, which they call and which would call the driver, report
    that no device has a context.
    """
    from torch.optim.optimizer import _foreach_supported_types as optimiser_types
    from torch.utils._foreach_utils import _foreach_supported_types as grouped_types

    torch._C._ensureCUDADeviceGuardSet()
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    hooks, pointers = library._ZN2at6detail12getCUDAHooksEv, ctypes.POINTER(ctypes.c_void_p)
    hooks.restype = ctypes.c_void_p
    # AcceleratorHooksInterface.h: two destructors, isBuilt, isAvailable, then hasPrimaryContext.
    slot = ctypes.cast(hooks(), pointers)[0] + 4 * ctypes.sizeof(ctypes.c_void_p)
    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda *_: False)
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(slot & ~4095), 8192, 3)
    ctypes.cast(slot, pointers)[0] = ctypes.cast(callback, ctypes.c_void_p).value
    optimiser_types.append(DeviceTensor)
    grouped_types.append(DeviceTensor)
    return callback


@contextmanager
def emulated_cuda(roots: Sequence[str] = (), devices: int = 1) -> Iterator[EmulatedCuda]:
    """Within this there is a GPU, for this process and its threads; see `why_not`, `prepare_torch`.

    Args:
        roots: see `EmulatedCuda`.
        devices: how many GPUs are reported.
    """
    import torch._dynamo  # Compares some of what is patched here when it is imported.

    prepare_torch()
    gpu, run, cuda = EmulatedCuda(roots), threading.Thread.run, partial(patch.multiple, torch.cuda)
    compatible = torch._has_compatible_shallow_copy_type

    def run_in_mode(thread: threading.Thread) -> None:
        torch._C._set_only_lift_cpu_tensors(True)
        with gpu:
            run(thread)

    def same_kind(one: Any, other: Any) -> bool:
        mixed = isinstance(one, DeviceTensor) != isinstance(other, DeviceTensor)
        return not mixed and compatible(one, other)

    def returning(value: Any) -> Any:
        return lambda *_, **__: value

    yes, nothing = returning(True), returning(None)
    properties = SimpleNamespace(major=9, minor=0, name="emulated", total_memory=2**34)
    changes = (
        cuda(is_available=yes, is_initialized=yes, is_bf16_supported=yes, _lazy_init=nothing),
        cuda(device_count=returning(devices), get_device_properties=returning(properties)),
        cuda(empty_cache=nothing, max_memory_allocated=returning(0)),
        cuda(memory_allocated=returning(0), reset_peak_memory_stats=nothing),
        cuda(current_device=lambda: gpu.current, Event=gpu.event, Stream=gpu.stream),
        cuda(set_device=lambda one: setattr(gpu, "current", torch.device(one).index or 0)),
        cuda(synchronize=lambda device=None: gpu.wait("synchronize", "synchronize")),
        cuda(current_stream=gpu.stream, set_stream=nothing),
        cuda(get_rng_state=lambda _="": gpu.generator.clone(), manual_seed_all=gpu.seed),
        cuda(set_rng_state=lambda state, _="": setattr(gpu, "generator", state.clone())),
        patch.multiple(torch.accelerator, is_available=yes, set_device_index=nothing),
        patch.object(torch.accelerator, "current_device_index", returning(0)),
        patch.object(Tensor, "pin_memory", lambda one: _pinned(one.clone())),
        patch.object(Tensor, "is_pinned", lambda one: hasattr(one.untyped_storage(), "pinned")),
        patch.object(Tensor, "record_stream", nothing),
        patch.object(threading.Thread, "run", run_in_mode),
        patch.object(torch, "_has_compatible_shallow_copy_type", same_kind),
        # Batch norm takes operators that exist on every device.
        torch.backends.cudnn.flags(enabled=False),
    )
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as held:
        for change in changes:
            held.enter_context(change)
        # `torch.tensor(..., device="cuda")` copies where modes see it.
        torch._C._set_only_lift_cpu_tensors(True)
        held.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        _active.append(gpu)
        held.callback(_active.remove, gpu)
        held.enter_context(gpu)
        yield gpu
