"""Phase two: training and inference of the student, an end-to-end HOI detector.

The student is trained on annotations and cached teacher predictions. `Detector.open(path)` opens a
run, a student checkpoint or a published EoID/CDN checkpoint for inference; `load_model(path)`
returns the model alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.inference.detector import Detector
    from student.inference.results import HOIResult
    from student.weights.load import load_model

__all__ = ["Detector", "HOIResult", "load_model"]

LAZY_MODULES = {
    "Detector": "inference.detector",
    "HOIResult": "inference.results",
    "load_model": "weights.load",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `--help` of the commands does not load torch.
    if name in LAZY_MODULES:
        return getattr(import_module(f"student.{LAZY_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
