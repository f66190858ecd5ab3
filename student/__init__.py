"""Phase two: the end-to-end detector that learns from the teacher cache.

`load_model(path)` opens a run, a checkpoint of ours or a published EoID/CDN checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.checkpoints import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # The commands of this package answer --help without loading torch.
    if name in __all__:
        from student import checkpoints

        return getattr(checkpoints, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
