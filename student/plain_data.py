"""What a checkpoint may hold beside tensors: values that are nothing but data."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import PosixPath
from typing import Any

import numpy as np

# Training scripts save their arguments, paths among them, and their best scores, as numpy has them.
_SCALAR: Any = np.float64(0).__reduce__()[0]
PLAIN: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    # Before Python 3.13 and from it on.
    (PosixPath, "pathlib.PosixPath"),
    (PosixPath, "pathlib._local.PosixPath"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "?")),
    # Before numpy 2 and from it on.
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def what_is_wrong(error: Exception) -> str:
    """Why torch's reader of plain data refused a file, in a few words."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return f"an object of {found[1]}, which may run code"
    return (str(error) or type(error).__name__).splitlines()[0][:120]
