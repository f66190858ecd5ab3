"""A process's frozen models, loaded once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.devices import configure_device, resolve_device
from pipeline.vocabulary import Vocabulary
from teacher_cache.clip_teacher import ClipConfig, ClipTeacher
from teacher_cache.detectors import Detector, DetectorConfig


@dataclass(frozen=True, eq=False)
class Models:
    """The frozen models of a build; no detector where all boxes are known beforehand."""

    detector: Detector | None
    clip: ClipTeacher


# A process works for one cache at a time; its models stay loaded between shards.
_loaded: dict[tuple[DetectorConfig | None, ClipConfig, str, str], Models] = {}


def load_models(
    detector: DetectorConfig | None, clip: ClipConfig, vocabulary: Vocabulary, device: str
) -> Models:
    """This process's models, loaded when first asked for.

    Args:
        detector, clip: which models.
        vocabulary: of the dataset.
        device: auto, cpu or cuda[:i].

    Raises:
        InputError: no such device, or a model or its weights cannot be loaded.
    """
    # Regions are cut out by matrix products, which rounded factors would move by grey levels.
    where = configure_device(resolve_device(device), clip.precision, exact_products=True)
    key = (detector, clip, vocabulary.digest(), str(where))
    if key not in _loaded:
        _loaded.clear()
        found = None if detector is None else Detector(detector, vocabulary, where)
        _loaded[key] = Models(found, ClipTeacher(clip, where))
    return _loaded[key]


def forget_models() -> None:
    """Frees this process's models and the memory of their GPU, where others do the work."""
    _loaded.clear()
    torch.cuda.empty_cache()
