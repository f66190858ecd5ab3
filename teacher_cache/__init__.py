"""Phase one: a frozen detector and teacher run on every training image; outputs go to a cache.

`build.py` and `cli.py` make caches with the models of `detectors/` and `teachers/`, the work on one
shard in `extraction/`, and files of `writer/`. `reader/` reads them, `analysis/` shows what they
hold, `maintenance/` checks and changes finished ones, and `toy/` trains the models of the toy
dataset. `open_cache(path)[image_id]` gives the outputs for one image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacher_cache.reader.cache import TeacherCache, open_cache

__all__ = ["TeacherCache", "open_cache"]


def __getattr__(name: str) -> Any:
    # Imported lazily: `eoid-cache --help` must not load h5py.
    if name in __all__:
        from teacher_cache.reader import cache

        return getattr(cache, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
