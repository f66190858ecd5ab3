"""The frozen detector that proposes people and objects."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from pipeline.boxes import clip_boxes
from pipeline.devices import start_download
from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary
from pipeline.weights import check_finite, load_weights, mismatch, weights_digest
from teacher_cache.detector_files import (
    COCO80,
    COCO_CLASSES,
    HICO80,
    adapted,
    has_background,
    is_coco,
    labels_of_ids,
    labels_of_names,
    num_classes,
)
from teacher_cache.pairing import FoundBoxes
from teacher_cache.world_models.detector import world_detector

WORLD = "world"
DEFAULT = "fasterrcnn_resnet50_fpn_v2"
# Of torchvision's weights entries: the usual one's name, and where they name their classes.
DEFAULT_ENTRY, NAMES = "DEFAULT", "categories"
# Every detector shrinks a picture to about a megapixel. Giving it more than these costs memory, at
# 27 bytes for every pixel, and shows it nothing.
MOST_PIXELS = 2**25
LONGEST_SIDE = 2**13
# Of a picture longer than that times its other side they would leave no pixel.
LONGEST_SHAPE = 32


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector.

    Attributes:
        name: a detection model of torchvision, or "world".
        weights: a weights file or the name of a weights entry of torchvision; None takes the
            model's default entry.
        lowest_score: detections below this are not wanted.
        classes: names of its classes in their order, without the background; None where torchvision
            or the vocabulary tells what they are.
    """

    name: str
    weights: str | None = None
    lowest_score: float = 0.05
    classes: tuple[str, ...] | None = None


class Detector:
    """A torchvision detection model with the vocabulary's object numbering.

    Args:
        config: which detector.
        vocabulary: what its labels become.
        device: where to run.

    Attributes:
        name: the architecture.
        weights_digest: identifies the weights.
        classes: names of its classes where neither torchvision nor the vocabulary's ids tell
            what these are, else None.
        unknown: the vocabulary's objects that it cannot find.

    Raises:
        InputError: no such model, weights entry or file, weights of another architecture or of a
            training that diverged, classes that nobody names, or a detector that knows no people.
    """

    def __init__(self, config: DetectorConfig, vocabulary: Vocabulary, device: torch.device):
        model = _world(config, vocabulary) if config.name == WORLD else _torchvision(config)
        self.name = config.name
        state = model.state_dict()
        check_finite(state, config.weights or config.name)
        self.weights_digest = weights_digest(state)
        self._labels, self.classes = _labels(config, state, vocabulary)
        found = set(self._labels.tolist())
        if vocabulary.person not in found:
            option = "--detector" if self.classes is None else "--detector-classes"
            raise InputError(f"{option}: expected one that finds people, found {config.name}")
        self.unknown = tuple(
            name for label, name in enumerate(vocabulary.objects) if label not in found
        )
        _only_boxes(model, config.lowest_score)
        # Channels last spares the convolutions a reordering of every map, here and on GPUs.
        self._model = model.eval().to(device).to(memory_format=torch.channels_last)
        self._device = device

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
        outputs = self._model([_tensor(image, self._device) for image in images])
        # All in one table, for which the host waits once.
        table = torch.cat(
            [
                torch.cat([output["boxes"] for output in outputs]),
                *(
                    torch.cat([output[name] for output in outputs])[:, None]
                    for name in ("scores", "labels")
                ),
            ],
            dim=1,
        )
        counts = [len(output["boxes"]) for output in outputs]
        found = start_download(table)().numpy()
        return [self._translate(rows) for rows in np.split(found, np.cumsum(counts)[:-1])]

    def _translate(self, rows: np.ndarray) -> FoundBoxes:
        """Of an image's (N, 6) box, score and category."""
        boxes, scores, labels = rows[:, :4], rows[:, 4], self._labels[rows[:, 5].astype(np.int64)]
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        keep = (labels >= 0) & (sides > 0) & np.isfinite(boxes).all(axis=1)
        return FoundBoxes(
            boxes[keep].astype(np.float32), labels[keep], scores[keep].astype(np.float32)
        )


def detect(detector: Detector, images: Sequence[Image.Image]) -> list[FoundBoxes]:
    """Detects in a batch of RGB pictures, of which it may see reduced or widened copies."""
    factors = [_factor(image) for image in images]
    seen = [_seen(image, factor) for image, factor in zip(images, factors, strict=True)]
    found = []
    for one, factor, image in zip(detector(seen), factors, images, strict=True):
        boxes = clip_boxes(one.boxes * factor, image.size)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        found.append(FoundBoxes(boxes[inside], one.labels[inside], one.scores[inside]))
    return found


def _factor(image: Image.Image) -> int:
    by_pixels = math.sqrt(image.width * image.height / MOST_PIXELS)
    return math.ceil(max(by_pixels, max(image.size) / LONGEST_SIDE, 1))


def _seen(image: Image.Image, factor: int) -> np.ndarray:
    """What the detector sees: reduced by a factor, and with black added to something too long."""
    if factor > 1:
        image = image.reduce(factor)
    least = math.ceil(max(image.size) / LONGEST_SHAPE)
    if min(image.size) < least:
        wide = Image.new("RGB", (max(image.width, least), max(image.height, least)))
        wide.paste(image, (0, 0))
        image = wide
    return np.asarray(image)


def recognise(weights: Path, vocabulary: Vocabulary) -> str:
    """The architecture of a weights file without a name: the world's, told by its tensor names,
    or else torchvision's usual one.

    Raises:
        InputError: not a weights file.
    """
    names = world_detector(max(vocabulary.object_ids)).state_dict().keys()
    return WORLD if load_weights(weights).keys() == names else DEFAULT


def _tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """(3, h, w) float32 from 0 to 1 on the device, which gets a quarter of that."""
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    return pixels.float().div_(255)


def _labels(
    config: DetectorConfig, state: Mapping[str, Tensor], vocabulary: Vocabulary
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """What the detector's C classes are.

    Returns:
        (C,) int64, the object of each class, -1 where there is none; and the names that tell it,
        without the background, where neither torchvision nor the vocabulary's ids do.

    Raises:
        InputError: other names than classes, or as many classes as nobody names.
    """
    names, classes = config.classes, num_classes(state)
    if names is None:
        if config.name != WORLD and not _is_file(config):
            entry = get_model_weights(config.name)[config.weights or DEFAULT_ENTRY]
            return labels_of_names(entry.meta[NAMES], vocabulary), None
        # COCO's 80 objects without the gaps of its ids stand in any order.
        own, ambiguous = vocabulary.num_objects + 1, is_coco(vocabulary)
        if classes == max(vocabulary.object_ids) + 1 and not (ambiguous and classes == own):
            return labels_of_ids(classes, vocabulary), None
        for entry in () if config.name == WORLD else get_model_weights(config.name):
            if len(entry.meta[NAMES]) == classes:
                return labels_of_names(entry.meta[NAMES], vocabulary), None
        if classes != own or ambiguous:
            known = f"{COCO_CLASSES} classes in COCO's numbering"
            known += "" if ambiguous else f" or {own} of {vocabulary.name}"
            raise InputError(
                f"{config.weights}: expected a detector of {known}, or --detector-classes"
                f" {COCO80}|{HICO80}|FILE for the names of others, found {classes} classes"
            )
        names = vocabulary.objects
    if len(names) == classes - 1:
        return labels_of_names(("", *names), vocabulary), names
    if len(names) == classes and not has_background(state):
        return labels_of_names(names, vocabulary), names
    raise InputError(
        f"--detector-classes: expected {classes - 1} names, for {config.weights or config.name} has"
        f" as many classes beside the background, found {len(names)}"
    )


def _only_boxes(model: nn.Module, lowest_score: float) -> None:
    """Spares a model what nobody asks for: masks, keypoints and low scores."""
    for extra in ("mask", "keypoint"):
        if getattr(getattr(model, "roi_heads", None), f"{extra}_roi_pool", None) is not None:
            setattr(model.roi_heads, f"{extra}_roi_pool", None)
    # Two-stage detectors keep the threshold in their second stage. Lower scores never suppress
    # higher ones, so cutting them early changes nothing but time.
    holder = getattr(model, "roi_heads", model)
    holder.score_thresh = lowest_score


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
    if _is_file(config):
        state = load_weights(Path(str(config.weights)))
        model = get_model(
            config.name, weights=None, weights_backbone=None, num_classes=num_classes(state)
        )
        return _filled(adapted(model, config.name, state), state, config)
    entries = get_model_weights(config.name)
    entry = config.weights or DEFAULT_ENTRY
    if entry not in entries.__members__:
        raise InputError(
            f"--detector-weights: expected a file or one of"
            f" {', '.join(entries.__members__)} for {config.name}, found {entry}"
        )
    try:
        # torch tells on stderr that it fetches, where only what goes wrong should stand.
        with redirect_stderr(sys.stdout):
            return get_model(config.name, weights=entries[entry])
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--detector-weights: {config.name} {entry} cannot be fetched"
            f" ({' '.join(str(error).split())[:160]}); give a file"
        ) from None


def _is_file(config: DetectorConfig) -> bool:
    return config.weights is not None and Path(config.weights).is_file()


def _filled(model: nn.Module, state: dict[str, Tensor], config: DetectorConfig) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise mismatch(config.weights, f"the detector {config.name}", error) from None
    return model
