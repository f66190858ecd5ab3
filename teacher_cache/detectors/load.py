"""Loads detectors by name: of torchvision, of transformers, and users' own by `module:Class`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.datasets.dataset import Dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.plugins import (
    create_object,
    create_own,
    find_class,
    parse_settings,
    resolve_settings,
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
# Detectors of transformers by the prefix of their names.
HUB_DETECTORS: dict[str, type[Detector]] = {
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
    if is_own_class(config.name):
        return _load_own(config, vocabulary, device)
    kind: type[Detector] = TorchvisionDetector
    for prefix, hub_kind in HUB_DETECTORS.items():
        if config.name.startswith(prefix):
            kind = hub_kind
    if kind is not TorchvisionDetector and config.weights is not None:
        raise InputError(
            f"{OPTION}-weights: expected none with {config.name}, which contains weights, found"
            f" {config.weights}"
        )
    arguments = [device, vocabulary, config]
    detector: Detector = create_object(SETTINGS, kind, arguments, dict(config.settings))
    option = OPTION if config.classes is None else "--detector-classes"
    return ObjectDetector(detector, vocabulary, option=option)


def _load_own(
    config: DetectorConfig, vocabulary: Vocabulary, device: torch.device
) -> ObjectDetector:
    for option, value in {"weights": config.weights, "classes": config.classes}.items():
        if value is not None:
            raise InputError(
                f"{OPTION}-{option}: expected none with {config.name}, which has settings"
                f" ({SETTINGS}), found {value if isinstance(value, str) else f'{len(value)} names'}"
            )
    kind = find_class(Detector, config.name)
    detector = create_own(kind, [device, vocabulary], dict(config.settings))
    return ObjectDetector(detector, vocabulary, {"classes": sha256_of_json(list(detector.classes))})


def resolve_detector_settings(name: str, settings: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names and values of a detector's settings, KEY=VALUE, with absolute paths.

    The module of a user's class is imported.

    Raises:
        InputError: a text has another form, or the class cannot be imported.
    """
    values = parse_settings(SETTINGS, settings)
    if is_own_class(name):
        values = resolve_settings(find_class(Detector, name), values)
    return tuple(values.items())


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
