"""The tensors of a TorchScript archive, read without running what else is in it.

CLIP's original checkpoints come in this form. `torch.jit.load` would compile and run the archive's
own code. Its tensors stand in `data.pkl`, a pickle of nested modules, and `data/`; the reader here
takes modules as bags of attributes, tensors as tensors, and refuses any other object.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
COMPILED = "__torch__"


class _Module:
    """A module of the archive: nothing but its attributes."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip of torch's that holds constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive, named as in its state dict.

    Raises:
        pickle.UnpicklingError: it holds objects other than modules, tensors and plain values.
        zipfile.BadZipFile, KeyError, ValueError, RuntimeError: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(index) as file:
            root = _Reader(file, archive, index.removesuffix(".pkl")).load()
    return dict(_tensors(root, ""))


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == COMPILED:
            return _Module
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} in a TorchScript archive")
        return known

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, *_ = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}/{key}"))
            empty = torch.empty(0, dtype=kind)
            self._storages[key] = torch.frombuffer(content, dtype=kind) if content else empty
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _first(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Callable[..., Any] | torch.dtype] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", name): kind for name, kind in STORAGES.items()},
}


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
