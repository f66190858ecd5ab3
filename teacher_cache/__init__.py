"""Phase one: outputs of a frozen detector and CLIP, stored in HDF5 shards.

`open_cache(path)[image_id]` gives an image's outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacher_cache.reader.cache import TeacherCache, open_cache

__all__ = ["TeacherCache", "open_cache"]


def __getattr__(name: str) -> Any:
    # The commands of this package answer --help without loading h5py.
    if name in __all__:
        from teacher_cache.reader import cache

        return getattr(cache, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
