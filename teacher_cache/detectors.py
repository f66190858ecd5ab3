"""The frozen detector that proposes people and objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary
from pipeline.weights import load_weights, mismatch, weights_digest
from teacher_cache.pairing import FoundBoxes
from teacher_cache.world_models.detector import world_detector

WORLD = "world"
DEFAULT = "fasterrcnn_resnet50_fpn_v2"
COCO_CLASSES = 91


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector.

    Attributes:
        name: a detection model of torchvision, or "world".
        weights: a weights file or the name of a weights entry of torchvision; None takes the
            model's default entry.
        lowest_score: detections below this are not wanted.
    """

    name: str
    weights: str | None = None
    lowest_score: float = 0.05


class Detector:
    """A torchvision detection model with the vocabulary's object numbering.

    Args:
        config: which detector.
        vocabulary: its category ids are the detector's labels.
        device: where to run.

    Attributes:
        name: the architecture.
        weights_digest: identifies the weights.

    Raises:
        InputError: no such model, weights entry or file, or weights of another architecture.
    """

    def __init__(self, config: DetectorConfig, vocabulary: Vocabulary, device: torch.device):
        model = _world(config, vocabulary) if config.name == WORLD else _torchvision(config)
        # Two-stage detectors keep the threshold in their second stage. Lower scores never
        # suppress higher ones, so cutting them early changes nothing but time.
        holder = getattr(model, "roi_heads", model)
        if hasattr(holder, "score_thresh"):
            holder.score_thresh = config.lowest_score
        self.name = config.name
        self.weights_digest = weights_digest(model.state_dict())
        # Channels last spares the convolutions a reordering of every map, here and on GPUs.
        self._model = model.eval().to(device).to(memory_format=torch.channels_last)
        self._device = device
        self._labels = np.full(max(vocabulary.object_ids) + 1, -1, dtype=np.int64)
        for category, label in vocabulary.label_of_id.items():
            self._labels[category] = label

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[FoundBoxes]:
        """Detects in a batch.

        Args:
            images: (h, w, 3) uint8 RGB arrays.

        Returns:
            The vocabulary's objects in every image, boxes in its own pixels.
        """
        if not images:
            return []
        tensors = [_tensor(image).to(self._device) for image in images]
        return [self._translate(output) for output in self._model(tensors)]

    def _translate(self, output: dict[str, Tensor]) -> FoundBoxes:
        boxes, categories, scores = (
            output[name].detach().cpu().numpy() for name in ("boxes", "labels", "scores")
        )
        known = categories < len(self._labels)
        labels = np.where(known, self._labels[np.where(known, categories, 0)], -1)
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        keep = (labels >= 0) & (sides > 0)
        return FoundBoxes(
            boxes[keep].astype(np.float32), labels[keep], scores[keep].astype(np.float32)
        )


def recognise(weights: Path, vocabulary: Vocabulary) -> str:
    """The architecture of a weights file without a name: the world's, told by its tensor names,
    or else torchvision's usual one.

    Raises:
        InputError: not a weights file.
    """
    names = world_detector(max(vocabulary.object_ids)).state_dict().keys()
    return WORLD if load_weights(weights).keys() == names else DEFAULT


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy()).float().div_(255)


def _world(config: DetectorConfig, vocabulary: Vocabulary) -> nn.Module:
    if config.weights is None:
        raise InputError("--detector-weights: expected a file for the detector world, found none")
    model = world_detector(max(vocabulary.object_ids))
    return _filled(model, load_weights(Path(config.weights)), config)


def _torchvision(config: DetectorConfig) -> nn.Module:
    names = list_models(module=detection)
    if config.name not in names:
        raise InputError(
            f"--detector: expected {WORLD} or one of {', '.join(names)}, found {config.name}"
        )
    if config.weights is not None and Path(config.weights).is_file():
        state = load_weights(Path(config.weights))
        model = get_model(
            config.name, weights=None, weights_backbone=None, num_classes=_num_classes(state)
        )
        return _filled(model, state, config)
    entries = get_model_weights(config.name)
    entry = config.weights or "DEFAULT"
    if entry not in entries.__members__:
        raise InputError(
            f"--detector-weights: expected a file or one of"
            f" {', '.join(entries.__members__)} for {config.name}, found {entry}"
        )
    try:
        return get_model(config.name, weights=entries[entry])
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--detector-weights: {config.name} {entry} cannot be fetched ({error}); give a file"
        ) from None


def _num_classes(state: dict[str, Tensor]) -> int:
    """How many classes a checkpoint was made for; 91 where its form does not say."""
    predictor = state.get("roi_heads.box_predictor.cls_score.weight")
    return COCO_CLASSES if predictor is None else len(predictor)


def _filled(model: nn.Module, state: dict[str, Tensor], config: DetectorConfig) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise mismatch(config.weights, f"the detector {config.name}", error) from None
    return model
