"""Phase two: the end-to-end detector that learns from the teacher cache.

`Detector.open(path)` opens a run, a checkpoint of ours or a published EoID/CDN checkpoint and looks
at pictures; `load_model(path)` gives the bare model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.inference.predictor import Detector
    from student.inference.results import HOIResult
    from student.weights.load import load_model

__all__ = ["Detector", "HOIResult", "load_model"]

LAZY_MODULES = {
    "Detector": "inference.predictor",
    "HOIResult": "inference.results",
    "load_model": "weights.load",
}


def __getattr__(name: str) -> Any:
    # The commands of this package answer --help without loading torch.
    if name in LAZY_MODULES:
        return getattr(import_module(f"student.{LAZY_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
