"""The states of all random generators of a process, to go on with the same numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's (host and device), NumPy's and Python's generators, as plain data."""
    name, keys, *rest = np.random.get_state(legacy=True)
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state(device).tolist() if on_gpu else None,
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_rng_state(states: dict[str, Any], device: torch.device) -> None:
    """Puts back what `rng_state` took; a GPU's state only goes back to a GPU."""
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(states["python"])


def manual_seed(*numbers: int) -> None:
    """Starts torch's generators at a place of their own for these numbers."""
    torch.manual_seed(derive_seed(*numbers))


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
