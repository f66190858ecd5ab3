"""`Detector`: the interface of all detectors, and `ObjectDetector`, which a build uses.

A detector names its classes and finds boxes. `ObjectDetector` does what is the same for all of
them: it reduces very large images, maps the classes to the vocabulary's objects, clips boxes, and
drops those without area.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.boxes import clip_boxes
from pipeline.images import to_array
from pipeline.utils.devices import to_numpy
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.logging import get_logger
from pipeline.utils.plugins import (
    Plugin,
    absolute_class_name,
    describe_plugin,
    fingerprint_parts,
    is_class_name,
    user_errors,
)
from pipeline.utils.schema import convert
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.class_names import is_object_name, match_class_names
from teacher_cache.detectors.pairing import ObjectBoxes

logger = get_logger(__name__)

# Before the name or folder of a model of transformers: with classes of its own, and one that finds
# what texts name.
HUB_PREFIX, ZERO_SHOT_PREFIX = "hf:", "hf-zero-shot:"
# Detectors resize their input to about a megapixel, so larger images than these only take memory:
# 27 bytes per pixel as uint8, float32 and normalised.
MAX_PIXELS = 2**25
MAX_SIDE = 2**13
# The resizing limits the longer side; of images that are longer, nothing of the other side is left.
MAX_ASPECT_RATIO = 32

# Kinds of numpy's types that are real numbers.
NUMBER_KINDS = "fiu"
# Boxes (N, 4), classes (N,) and scores (N,) of one image; see `Detector.detect`.
Detections = tuple[np.ndarray | Tensor, np.ndarray | Tensor, np.ndarray | Tensor]


class Detector(Plugin):
    """A frozen detection model.

    A subclass needs the method `detect` and the attribute `classes`, and usually a `name`. Its
    constructor gets the device and the vocabulary, which it passes to this one, and the settings of
    `--detector-set KEY=VALUE` as keyword arguments, converted to the types in its signature.

    Attributes:
        classes: names of its classes, in the order of the numbers that `detect` returns. Names that
            are no object of the vocabulary, or empty, are left out.
        vocabulary: of the dataset.
    """

    plugin_kind = "detector"
    classes: Sequence[str] = ()

    def __init__(self, device: torch.device, vocabulary: Vocabulary) -> None:
        super().__init__(device)
        self.vocabulary = vocabulary

    @abstractmethod
    def detect(self, images: Sequence[np.ndarray]) -> Sequence[Detections]:
        """Finds objects in (h, w, 3) uint8 RGB images of one size.

        The result for an image must not depend on the others. Scores below the pairing thresholds
        (0.2) are of no use.

        Returns:
            For each image (N, 4) boxes as xyxy in its pixels, (N,) integers from 0 that number
            `classes`, and (N,) scores from 0 to 1; as numpy arrays, or tensors of any device.
        """

    def check_attributes(self) -> None:
        """See `Plugin.check_attributes`."""
        super().check_attributes()
        classes = self.classes
        if not isinstance(classes, str) and isinstance(classes, Iterable):
            classes = list(classes)
        convert(classes, list[str], describe_plugin(self), "classes")


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector to load.

    Attributes:
        name: a detection model of torchvision, "toy", `hf:` or `hf-zero-shot:` with the name or
            folder of a model of transformers, or `module:Class`.
        weights: a file or the name of a weights entry; None takes the model's default entry, or for
            "toy" the weights in this package.
        classes: names of its classes in their order, without the background; None where the model
            or the vocabulary determines them.
        settings: names and values of further settings; see `pipeline.utils.plugins`.
    """

    name: str
    weights: str | None = None
    score_threshold: float = 0.05
    classes: tuple[str, ...] | None = None
    settings: tuple[tuple[str, str], ...] = ()

    def absolute(self) -> DetectorConfig:
        """The same configuration with absolute paths, for processes with other working folders."""
        name, weights = self.name, self.weights
        if is_own_class(name):
            name = absolute_class_name(name)
        elif name.startswith((HUB_PREFIX, ZERO_SHOT_PREFIX)):
            prefix, separator, folder = name.partition(":")
            if Path(folder).is_dir():
                name = f"{prefix}{separator}{Path(folder).absolute()}"
        if weights is not None and Path(weights).exists():
            weights = str(Path(weights).absolute())
        return replace(self, name=name, weights=weights)


def is_own_class(name: str) -> bool:
    """Whether a detector's name is that of a user's class, whose code runs when it is loaded."""
    return not name.startswith((HUB_PREFIX, ZERO_SHOT_PREFIX)) and is_class_name(name)


class ObjectDetector:
    """A detector whose labels are the vocabulary's objects.

    Attributes:
        name: the detector's name in caches and messages.
        missing_objects: objects of the vocabulary that are not among its classes.
        other_classes: its classes that are no object of the vocabulary.
        spellings: objects by the names of classes that are spelled differently.

    Args:
        detector: the model.
        parts: parts of the fingerprint beside those of the model; "size" becomes "detector.size".
        option: the option that decides on the classes, for the error about a missing person.

    Raises:
        InputError: none of the classes is a person, or the fingerprint's values are no JSON.
    """

    def __init__(
        self,
        detector: Detector,
        vocabulary: Vocabulary,
        parts: Mapping[str, Any] | None = None,
        option: str = "--detector",
    ) -> None:
        self.name, self._detector = detector.name, detector
        # Faults of boxes that a warning has named.
        self._reported: set[str] = set()
        classes = tuple(detector.classes)
        self._labels, self.spellings = match_class_names(classes, vocabulary)
        labels = set(self._labels.tolist())
        if vocabulary.person not in labels:
            names = [*filter(is_object_name, classes)]
            raise InputError(
                f"{option}: expected a detector that finds people, found {self.name} with the"
                f" classes {', '.join(names[:5]) or 'none'}{', ...' if len(names) > 5 else ''}"
            )
        self.missing_objects = tuple(
            name for label, name in enumerate(vocabulary.objects) if label not in labels
        )
        self.other_classes = tuple(
            name
            for name, label in zip(classes, self._labels, strict=True)
            if label < 0 and is_object_name(name)
        )
        self._parts = fingerprint_parts(detector, {"model": self.name, **(parts or {})})

    def fingerprint_parts(self) -> dict[str, Any]:
        """The detector's parts of a cache's fingerprint; see `plugins.fingerprint_parts`."""
        return self._parts

    def detect(self, images: Sequence[Image.Image]) -> list[ObjectBoxes]:
        """Detects objects in a batch of RGB images of one size.

        The detector gets reduced copies of very large images and padded copies of very long ones;
        the returned boxes are in pixels of the original images.

        Raises:
            InputError: the detector returned something else than boxes, classes and scores.
        """
        if not images:
            return []
        factors = [_reduction_factor(image) for image in images]
        inputs = [
            _detector_input(image, factor) for image, factor in zip(images, factors, strict=True)
        ]
        with user_errors(self._detector, "detect"):
            found = self._detector.detect(inputs)
            found = list(found) if isinstance(found, Iterable) else found
        if not isinstance(found, list) or len(found) != len(images):
            count = len(found) if isinstance(found, list) else type(found).__name__
            raise self._wrong_output(f"detections of {len(images)} images", str(count))
        results = []
        for detections, factor, image in zip(found, factors, images, strict=True):
            boxes, labels, scores = self._to_arrays(detections)
            boxes = clip_boxes(boxes * factor, image.size)
            # Boxes in the padding have no area after clipping.
            inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            results.append(ObjectBoxes(boxes[inside], labels[inside], scores[inside]))
        return results

    def _to_arrays(self, detections: Detections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, 4) float32 boxes, (N,) int64 objects and (N,) float32 scores of one image."""
        try:
            # The dictionaries of torchvision's detectors have as many entries.
            values = () if isinstance(detections, Mapping) else detections
            boxes, classes, scores = map(to_numpy, values)
        except (TypeError, ValueError):
            found = type(detections).__name__
            raise self._wrong_output("(boxes, classes, scores)", found) from None
        shapes = [boxes.shape, classes.shape, scores.shape]
        # Without detections, lists have other shapes than arrays.
        if not any(map(np.size, (boxes, classes, scores))):
            boxes, classes, scores = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)
        elif boxes.ndim != 2 or shapes != [(len(boxes), 4), *[(len(boxes),)] * 2]:
            raise self._wrong_output("shapes (N, 4), (N,) and (N,)", " ".join(map(str, shapes)))
        for array in (boxes, classes, scores):
            if array.dtype.kind not in NUMBER_KINDS:
                raise self._wrong_output("numbers", f"an array of {array.dtype}")
        # False for NaN.
        if len(classes) and not (
            classes.min() >= 0
            and classes.max() < len(self._labels)
            and (classes == np.trunc(classes)).all()
        ):
            expected = f"whole classes from 0 to {len(self._labels) - 1}"
            raise self._wrong_output(expected, f"{classes.min()} to {classes.max()}")
        # False for NaN too.
        if ((scores < 0) | (scores > 1)).any():
            raise self._wrong_output("scores from 0 to 1", f"{scores.min()} to {scores.max()}")
        labels = self._labels[classes.astype(np.int64)]
        # Differences of unsigned integers are none below 0.
        boxes = boxes.astype(np.float64)
        is_finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        with np.errstate(invalid="ignore"):
            sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        # Boxes of other forms (a width in place of the right side, shares of the image) show so.
        faults = {
            "or scores that are not finite, which are left out": not is_finite.all(),
            "that end left of or above their beginning, which are left out": (sides < 0).any(),
            "within the first pixel: are they in pixels?": 0 < boxes.max(initial=0) <= 1,
        }
        for fault in [each for each, is_found in faults.items() if is_found]:
            if fault not in self._reported:
                self._reported.add(fault)
                logger.warning(f"{describe_plugin(self._detector)}: found boxes {fault}")
        # Boxes without area cannot form regions.
        keep = (labels >= 0) & (sides > 0) & is_finite
        # Of a box of any size, the part in the image counts.
        with np.errstate(over="ignore"):
            boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
        return boxes[keep], labels[keep], scores[keep]

    def _wrong_output(self, expected: str, found: str) -> InputError:
        return bad_field(describe_plugin(self._detector), "detect", expected, found)


def _reduction_factor(image: Image.Image) -> int:
    by_pixels = math.sqrt(image.width * image.height / MAX_PIXELS)
    return math.ceil(max(by_pixels, max(image.size) / MAX_SIDE, 1))


def _detector_input(image: Image.Image, factor: int) -> np.ndarray:
    """Reduces an image by a factor, and pads very long ones with black; (h, w, 3) uint8."""
    if factor > 1:
        image = image.reduce(factor)
    min_side = math.ceil(max(image.size) / MAX_ASPECT_RATIO)
    if min(image.size) < min_side:
        padded = Image.new("RGB", (max(image.width, min_side), max(image.height, min_side)))
        padded.paste(image, (0, 0))
        image = padded
    return to_array(image)
