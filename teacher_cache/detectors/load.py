"""Loads detectors by name: of torchvision, of transformers, and users' own by `module:Class`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.datasets.dataset import Dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.plugins import (
    create_object,
    load_class,
    parse_settings,
    settings_with_digests,
)
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.base import (
    HUB_PREFIX,
    ZERO_SHOT_PREFIX,
    Detector,
    DetectorConfig,
    ObjectDetector,
    is_own_class,
)
from teacher_cache.detectors.torchvision import (
    DEFAULT_DETECTOR,
    TorchvisionDetector,
    recognise_architecture,
)
from teacher_cache.detectors.transformers import TransformersDetector
from teacher_cache.detectors.zero_shot import ZeroShotDetector

OPTION = "--detector"
# How errors name its settings.
SETTINGS = "--detector-set"
MEMBERS = ("name", "classes", "detect", "fingerprint_parts")
# Detectors of transformers by the prefix of their names.
HUB_DETECTORS: dict[str, type] = {
    HUB_PREFIX: TransformersDetector,
    ZERO_SHOT_PREFIX: ZeroShotDetector,
}


def load_detector(
    config: DetectorConfig, vocabulary: Vocabulary, device: torch.device
) -> ObjectDetector:
    """Loads a detector. The code of a user's own class runs, which the user must have named.

    Raises:
        InputError: no such model, weights or class; weights of another architecture or with values
            that are not finite; classes without known names; or none of them is a person.
    """
    settings = parse_settings(SETTINGS, config.settings)
    if is_own_class(config.name):
        return _load_own(config, settings, vocabulary, device)
    kind: type = TorchvisionDetector
    for prefix, hub_kind in HUB_DETECTORS.items():
        if config.name.startswith(prefix):
            kind = hub_kind
    if kind is not TorchvisionDetector and config.weights is not None:
        raise InputError(
            f"{OPTION}-weights: expected none with {config.name}, which contains weights, found"
            f" {config.weights}"
        )
    detector: Detector = create_object(SETTINGS, kind, [config, vocabulary, device], settings)
    option = OPTION if config.classes is None else "--detector-classes"
    return ObjectDetector(detector, vocabulary, option=option)


def _load_own(
    config: DetectorConfig, settings: dict[str, str], vocabulary: Vocabulary, device: torch.device
) -> ObjectDetector:
    for option, value in {"weights": config.weights, "classes": config.classes}.items():
        if value is not None:
            raise InputError(
                f"{OPTION}-{option}: expected none with {config.name}, which has settings"
                f" ({SETTINGS}), found {value if isinstance(value, str) else f'{len(value)} names'}"
            )
    kind = load_class(OPTION, config.name)
    detector: Any = create_object(SETTINGS, kind, [vocabulary, device], settings)
    missing = [name for name in MEMBERS if not hasattr(detector, name)]
    if missing:
        raise InputError(
            f"{OPTION}: expected a class with {', '.join(MEMBERS)}, found {config.name} without"
            f" {', '.join(missing)}"
        )
    parts = {
        **{f"settings.{key}": value for key, value in settings_with_digests(settings).items()},
        "classes": sha256_of_json(list(detector.classes)),
    }
    return ObjectDetector(detector, vocabulary, parts)


def resolve_model(
    name: str | None, weights: str | None, dataset: Dataset
) -> tuple[str, str | None]:
    """Name and weights of the given detector, otherwise of the dataset's own, otherwise of
    torchvision's default one.

    Raises:
        InputError: the dataset's weights file is missing.
    """
    own = dataset.detector
    if weights is None and own is not None:
        if not own.is_file():
            raise InputError(f"{own}: no such weights file, named by {dataset.root}")
        # A detector of another architecture cannot use the dataset's weights.
        if name in (None, recognise_architecture(own, dataset.vocabulary)):
            weights = str(own)
    if name is None and weights is not None and Path(weights).is_file():
        name = recognise_architecture(Path(weights), dataset.vocabulary)
    return name or DEFAULT_DETECTOR, weights
