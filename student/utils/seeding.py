"""Random seeds, and saving and restoring the states of all random generators of a process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of the generators of torch (CPU and `device`), NumPy and Python, as plain data."""
    name, keys, *rest = np.random.get_state(legacy=True)
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state(device).tolist() if on_gpu else None,
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_rng_state(states: dict[str, Any], device: torch.device) -> None:
    """Restores the states of `rng_state`; the state of a GPU only if `device` is a GPU."""
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(states["python"])


def manual_seed(*numbers: int) -> None:
    """Seeds torch's generators with the seed derived from several numbers."""
    torch.manual_seed(derive_seed(*numbers))


def derive_seed(*numbers: int) -> int:
    """Derives one 64-bit seed from several numbers; different numbers give independent seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
