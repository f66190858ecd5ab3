"""Weights files and what identifies their content."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import InputError, bad_field
from pipeline.files import sha256_of_chunks
from pipeline.torchscript import is_torchscript, read_torchscript


def load_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, a torch checkpoint or a TorchScript archive; never
    runs code from it.

    Raises:
        InputError: missing, damaged, or not a table of tensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            return read_torchscript(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path}: expected a file of plain tensors, found other data") from None
    # What is neither can raise anything in its reader.
    except Exception as error:
        raise InputError(f"{path}: expected a weights file, found {_first_line(error)}") from None
    if isinstance(loaded, dict):
        for key in ("state_dict", "model"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise bad_field(path, "weights", "tensors by name", type(loaded).__name__)
    return loaded


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and values; the same for every file form."""

    def chunks():
        for name in sorted(state):
            tensor = state[name].detach().cpu().contiguous()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield tensor.reshape(-1).view(torch.uint8).numpy().data

    return sha256_of_chunks(chunks())


def mismatch(file: object, architecture: str, error: Exception) -> InputError:
    """The sentence for weights that do not fit a model."""
    return InputError(
        f"{file}: expected weights of {architecture}, found another architecture's"
        f" ({_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch's first line only names the class; the second says what does not fit.
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
