"""Weights files: read without running code from them, checked, and identified by content.

Known formats are checkpoints of torch.save, safetensors, and TorchScript archives (OpenAI's CLIP).
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, identify_file, sha256_of_chunks

# Training scripts also save their arguments (with paths) and scores (as numpy values), which are
# plain data. Both module names are needed: before and since Python 3.13 and numpy 2.
_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "U", "S")
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    SimpleNamespace,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in _DTYPES),
]
for _module in ("pathlib", "pathlib._local"):
    SAFE_GLOBALS += [
        (PosixPath, f"{_module}.PosixPath"),
        (PureWindowsPath, f"{_module}.WindowsPath"),
    ]
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    SAFE_GLOBALS += [
        (np.float64(0).__reduce__()[0], f"{_module}.scalar"),
        (np.zeros(1).__reduce__()[0], f"{_module}._reconstruct"),
    ]
# Keys under which training scripts save the state dict.
STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")
# Prefixes that DataParallel, torch.compile and Lightning add to all names.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
# Limit of the header's length in safetensors itself.
MAX_SAFETENSORS_HEADER = 100_000_000
# First bytes of other files that are often found in place of a checkpoint, and what to do.
CHECKPOINT_SIGNATURES = (
    (rb"\s*[{\[]", "JSON text"),
    (rb"\x89HDF", "an HDF5 file; save the model's tensors with torch.save or safetensors"),
    (rb"\x93NUMPY", "a NumPy array; save the model's tensors with torch.save or safetensors"),
)
# Messages of torch.load(weights_only=True) for an object that is not allowed, for a truncated file
# and for a pickle that torch did not write.
UNSAFE_GLOBAL = re.compile(r"GLOBAL ([\w.]*\w)\b|<class '([\w.]+)'>|<built-in function (\w+)>")
TRUNCATED = re.compile("(?i)truncated|EOF|index out of range|incomplete|header ?length")
NOT_TORCH = re.compile("magic number|Unsupported operand")
DOWNLOAD_HINT = "copy or download it again"
STATE_DICT_HINT = (
    "where you trust this file, save the tensors alone: torch.save(model.state_dict(), FILE)"
)


def read_checkpoint(path: Path | str) -> Any:
    """Reads a weights file without running code from it. The file's name does not matter.

    Returns:
        The content of a torch checkpoint that consists of plain data, or the tensors by name of a
        safetensors file or a TorchScript archive.

    Raises:
        InputError: the file is missing, damaged or of another kind; says what it is and how to
            convert it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: expected a weights file, found a folder")
    try:
        with open(path, "rb") as file:
            length, brace = file.read(8), file.read(1)
        # safetensors begins with the length of its header, a JSON object.
        if brace == b"{" and int.from_bytes(length, "little") <= MAX_SAFETENSORS_HEADER:
            return load_file(path)
        if _is_torchscript(path):
            return _read_torchscript(path)
        with (
            # An open file instead of the path, because torch treats some file names specially.
            open(path, "rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(SAFE_GLOBALS),
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    # The readers raise all kinds of errors on other files.
    except Exception as error:
        found = _describe_unreadable(path, error)
        raise InputError(f"{path}: expected a weights file, found {found}") from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a weights file (see `read_checkpoint`), without prefixes of wrappers.

    Raises:
        InputError: the file is missing or damaged, or contains no state dict.
    """
    return strip_wrapper_prefixes(check_state_dict(read_checkpoint(path), path))


def select_state_dict(content: Any) -> Any:
    """The state dict inside a checkpoint's content; the content itself without such a key."""
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content


def check_state_dict(content: Any, file: object) -> dict[str, Tensor]:
    """The state dict of a checkpoint's content, with the names of the file.

    Raises:
        InputError: the content is not a mapping of names to tensors.
    """
    state = select_state_dict(content)
    if not isinstance(state, Mapping):
        raise bad_field(file, "content", "tensors by name", _type_name(state))
    for name, value in state.items():
        if not isinstance(value, Tensor):
            convert = "convert it with torch.as_tensor or leave it out"
            raise bad_field(file, str(name), "a tensor", f"{_type_name(value)}; {convert}")
    return {str(name): value for name, value in state.items()}


def strip_wrapper_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without prefixes of wrappers, unless names would be equal without them."""
    stripped = {strip_prefixes(name): value for name, value in state.items()}
    return stripped if len(stripped) == len(state) else dict(state)


def strip_prefixes(name: str, prefixes: tuple[str, ...] = WRAPPER_PREFIXES) -> str:
    """A tensor's name without the prefixes of wrappers."""
    while prefix := next(filter(name.startswith, prefixes), None):
        name = name.removeprefix(prefix)
    return name


def save_half(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a state dict as a safetensors file, floats in half precision.

    Scalars, such as the logarithm of CLIP's logit scale, keep their precision.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and value.dim():
            tensors[name] = value.half()
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def check_finite(state: Mapping[str, Tensor], file: object) -> None:
    """Refuses weights with NaN or infinite values, as a diverged training leaves them.

    Raises:
        InputError: a tensor has such values.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            found = f"{int((~finite).sum())} of {tensor.numel()} that are NaN or infinite"
            raise bad_field(file, name, "finite numbers", found)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of names, dtypes, shapes and values; independent of the file format."""

    def chunks():
        for name in sorted(state):
            tensor = state[name].detach().cpu().contiguous()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield tensor.reshape(-1).view(torch.uint8).numpy().data

    return sha256_of_chunks(chunks())


def architecture_error(file: object, architecture: str, error: Exception) -> InputError:
    """The error for weights of another architecture than expected."""
    return InputError(
        f"{file}: expected weights of {architecture}, found another architecture's"
        f" ({shorten_message(error)})"
    )


def _describe_unreadable(path: Path, error: Exception) -> str:
    """Describes in one line a file that could not be read, and what to do about it."""
    if isinstance(error, OSError) and error.filename == str(path):
        return f"an unreadable file ({error.strerror})"
    with open(path, "rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if not head:
        return f"an empty file; {DOWNLOAD_HINT}"
    if what := identify_file(path, CHECKPOINT_SIGNATURES):
        return what
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return f"a zip archive truncated after {size} bytes; {DOWNLOAD_HINT}"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("/data.pkl") for name in names):
            shown = ", ".join(names[:3])
            return f"a zip archive that is not a checkpoint ({shown or 'empty'}); unpack it first"
    if unsafe := UNSAFE_GLOBAL.search(str(error)):
        name = next(filter(None, unsafe.groups()))
        return f"an object of {name}, which may run code; {STATE_DICT_HINT}"
    if isinstance(error, EOFError) or TRUNCATED.search(str(error)):
        return f"a checkpoint truncated after {size} bytes; {DOWNLOAD_HINT}"
    if head.startswith(b"\x80") and NOT_TORCH.search(str(error)):
        return f"a pickle that torch.save did not write; {STATE_DICT_HINT}"
    if not head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        return f"an unknown kind of file that begins with {head[:16]!r}"
    return f"a damaged file ({shorten_message(error)}); {DOWNLOAD_HINT}"


def _type_name(value: Any) -> str:
    kind = type(value)
    plain = kind.__module__ in ("builtins", "collections")
    return kind.__name__ if plain else f"{kind.__module__}.{kind.__name__}"


def shorten_message(error: Exception) -> str:
    """An error's message in one short line; the name of its type without a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first line of torch's message names the class only, the second one the mismatch.
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


TORCHSCRIPT_NAMESPACE = "__torch__"


class _ScriptModule:
    """Stands for every module class of an archive; holds the attributes only."""


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, that is a zip archive with `constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, with the names of its state dict.

    torch.jit.load would run code from the archive, so its data are unpickled with replaced classes.

    Raises:
        pickle.UnpicklingError: the archive contains other objects than modules, tensors and plain
            values.
        zipfile.BadZipFile, KeyError, ValueError, RuntimeError: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(index) as file:
            root = _TorchScriptUnpickler(file, archive, index.removesuffix(".pkl")).load()
    return dict(_iter_tensors(root, ""))


class _TorchScriptUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == TORCHSCRIPT_NAMESPACE:
            return _ScriptModule
        known = _ALLOWED_GLOBALS.get((module, name))
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


# Replacements of the functions that an archive's pickle calls.
def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _first_argument(value: Any, *_: Any) -> Any:
    return value


STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_ALLOWED_GLOBALS: dict[tuple[str, str], Callable[..., Any] | torch.dtype] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.jit._pickle", "restore_type_tag"): _first_argument,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _first_argument
        for kind in ("int", "bool", "double", "tensor")
    },
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", f"{name}Storage"): kind for name, kind in STORAGE_DTYPES.items()},
}


def _iter_tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _ScriptModule):
            yield from _iter_tensors(value, f"{prefix}{name}.")
