"""EoID: zero-shot human-object interaction detection. The public Python interface.

    import eoid

    detector = eoid.Detector.open("demo/seed-0/ua/distilled")  # a run, a checkpoint, or "toy"
    result = detector("photo.jpg", threshold=0.3, top=10)
    print(result.actions, result.scores, result.human_boxes, result.object_boxes)
    result.draw().save("drawn.jpg")

`Detector` detects interactions in images. `load_model` returns the bare PyTorch model of a run or
checkpoint. `open_dataset` and `open_cache` open a dataset folder and a teacher cache.
`load_vocabulary` reads verbs, objects and interactions. All other modules are implementation.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.datasets.dataset import open_dataset
    from pipeline.vocabulary import load_vocabulary
    from student.inference.detector import Detector
    from student.weights.load import load_model
    from teacher_cache.reader.cache import open_cache

    __version__: str

__all__ = [
    "Detector",
    "__version__",
    "load_model",
    "load_vocabulary",
    "open_cache",
    "open_dataset",
]

_MODULES = {
    "Detector": "student.inference.detector",
    "load_model": "student.weights.load",
    "load_vocabulary": "pipeline.vocabulary",
    "open_cache": "teacher_cache.reader.cache",
    "open_dataset": "pipeline.datasets.dataset",
}


def __getattr__(name: str) -> Any:
    # Importing this module loads neither torch nor h5py; the first use of a name does.
    if name == "__version__":
        # It takes longer to import than all the rest.
        from importlib.metadata import version

        return version("eoid")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


# Entry points of the commands. They are here and not in the commands' modules, whose imports take a
# moment, in which Ctrl-C would end in a traceback.
def _data() -> None:
    _run("pipeline.cli")


def _cache() -> None:
    _run("teacher_cache.cli")


def _train() -> None:
    _run("student.cli")


def _eval() -> None:
    _run("evaluation.cli")


def _predict() -> None:
    _run("student.inference.cli")


def _run(module: str) -> None:
    try:
        import_module(module).main()
    except KeyboardInterrupt:
        print(f"{sys.argv[0].rpartition('/')[2]}: interrupted", file=sys.stderr)
        sys.exit(130)
