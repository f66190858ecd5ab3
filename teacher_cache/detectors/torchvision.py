"""The frozen detector that proposes people and objects."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from pipeline.boxes import clip_boxes
from pipeline.toy.backbone import SingleFeatureMap, ToyBackbone
from pipeline.utils.devices import copy_to_host_async
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_text, sha256_of_json
from pipeline.utils.weights import architecture_error, check_finite, load_weights, weights_digest
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.detectors.pairing import ObjectBoxes

TOY = "toy"
# What caches of format 1 call the toy detector, in fingerprints and settings: it is a value of the
# format, and another one would be another fingerprint.
TOY_IN_CACHES = "world"
DEFAULT_DETECTOR = "fasterrcnn_resnet50_fpn_v2"
# Of torchvision's weights entries: the usual one's name, and where they name their classes.
DEFAULT_WEIGHTS, CATEGORIES_KEY = "DEFAULT", "categories"
# Every detector shrinks a picture to about a megapixel. Giving it more than these costs memory, at
# 27 bytes for every pixel, and shows it nothing.
MAX_PIXELS = 2**25
MAX_SIDE = 2**13
# Of a picture longer than that times its other side they would leave no pixel.
MAX_ASPECT_RATIO = 32


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector.

    Attributes:
        name: a detection model of torchvision, or "toy".
        weights: a weights file or the name of a weights entry of torchvision; None takes the
            model's default entry.
        score_threshold: detections below this are not wanted.
        classes: names of its classes in their order, without the background; None where torchvision
            or the vocabulary tells what they are.
    """

    name: str
    weights: str | None = None
    score_threshold: float = 0.05
    classes: tuple[str, ...] | None = None


class Detector:
    """A torchvision detection model with the vocabulary's object numbering.

    Args:
        config: which detector.
        vocabulary: what its labels become.
        device: where to run.

    Attributes:
        name: the architecture, as caches call it.
        weights_digest: identifies the weights.
        classes: names of its classes where neither torchvision nor the vocabulary's ids tell
            what these are, else None.
        missing_objects: the vocabulary's objects that it cannot find.

    Raises:
        InputError: no such model, weights entry or file, weights of another architecture or of a
            training that diverged, classes that nobody names, or a detector that knows no people.
    """

    def __init__(self, config: DetectorConfig, vocabulary: Vocabulary, device: torch.device):
        model = _toy(config, vocabulary) if config.name == TOY else _load_torchvision(config)
        self.name = TOY_IN_CACHES if config.name == TOY else config.name
        state = model.state_dict()
        check_finite(state, config.weights or config.name)
        self.weights_digest = weights_digest(state)
        self._labels, self.classes = _class_labels(config, state, vocabulary)
        found = set(self._labels.tolist())
        if vocabulary.person not in found:
            option = "--detector" if self.classes is None else "--detector-classes"
            raise InputError(f"{option}: expected one that finds people, found {config.name}")
        self.missing_objects = tuple(
            name for label, name in enumerate(vocabulary.objects) if label not in found
        )
        _disable_unused_heads(model, config.score_threshold)
        # Channels last spares the convolutions a reordering of every map, here and on GPUs.
        self._model = model.eval().to(device).to(memory_format=torch.channels_last)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[ObjectBoxes]:
        """Detects in a batch.

        Args:
            images: (h, w, 3) uint8 RGB arrays.

        Returns:
            The vocabulary's objects in every image, boxes in its own pixels.
        """
        if not images:
            return []
        outputs = self._model([_to_tensor(image, self._device) for image in images])
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
        found = copy_to_host_async(table)().numpy()
        return [self._to_boxes(rows) for rows in np.split(found, np.cumsum(counts)[:-1])]

    def fingerprint_parts(self) -> dict[str, Any]:
        """What identifies the detector, for `reader.fingerprint.fingerprint_parts`."""
        parts = {"detector.model": self.name, "detector.weights": self.weights_digest}
        if self.classes is not None:
            parts["detector.classes"] = sha256_of_json(self.classes)
        return parts

    def _to_boxes(self, rows: np.ndarray) -> ObjectBoxes:
        """Of an image's (N, 6) box, score and category."""
        boxes, scores, labels = rows[:, :4], rows[:, 4], self._labels[rows[:, 5].astype(np.int64)]
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
        keep = (labels >= 0) & (sides > 0) & np.isfinite(boxes).all(axis=1)
        return ObjectBoxes(
            boxes[keep].astype(np.float32), labels[keep], scores[keep].astype(np.float32)
        )


def detect_objects(detector: Detector, images: Sequence[Image.Image]) -> list[ObjectBoxes]:
    """Detects in a batch of RGB pictures, of which it may see reduced or widened copies."""
    factors = [_reduction_factor(image) for image in images]
    seen = [_detector_input(image, factor) for image, factor in zip(images, factors, strict=True)]
    found = []
    for one, factor, image in zip(detector(seen), factors, images, strict=True):
        boxes = clip_boxes(one.boxes * factor, image.size)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        found.append(ObjectBoxes(boxes[inside], one.labels[inside], one.scores[inside]))
    return found


def _reduction_factor(image: Image.Image) -> int:
    by_pixels = math.sqrt(image.width * image.height / MAX_PIXELS)
    return math.ceil(max(by_pixels, max(image.size) / MAX_SIDE, 1))


def _detector_input(image: Image.Image, factor: int) -> np.ndarray:
    """What the detector sees: reduced by a factor, and with black added to something too long."""
    if factor > 1:
        image = image.reduce(factor)
    least = math.ceil(max(image.size) / MAX_ASPECT_RATIO)
    if min(image.size) < least:
        wide = Image.new("RGB", (max(image.width, least), max(image.height, least)))
        wide.paste(image, (0, 0))
        image = wide
    return np.asarray(image)


def recognise_architecture(weights: Path, vocabulary: Vocabulary) -> str:
    """The architecture of a weights file without a name: the toy dataset's, told by its tensor
    names, or else torchvision's usual one.

    Raises:
        InputError: not a weights file.
    """
    names = toy_detector(max(vocabulary.category_ids)).state_dict().keys()
    return TOY if load_weights(weights).keys() == names else DEFAULT_DETECTOR


def _to_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """(3, h, w) float32 from 0 to 1 on the device, which gets a quarter of that."""
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    return pixels.float().div_(255)


def _class_labels(
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
        if config.name != TOY and not _is_file(config):
            entry = get_model_weights(config.name)[config.weights or DEFAULT_WEIGHTS]
            return labels_from_names(entry.meta[CATEGORIES_KEY], vocabulary), None
        # COCO's 80 objects without the gaps of its ids stand in any order.
        own, ambiguous = vocabulary.num_objects + 1, has_coco_objects(vocabulary)
        if classes == max(vocabulary.category_ids) + 1 and not (ambiguous and classes == own):
            return labels_from_ids(classes, vocabulary), None
        for entry in () if config.name == TOY else get_model_weights(config.name):
            if len(entry.meta[CATEGORIES_KEY]) == classes:
                return labels_from_names(entry.meta[CATEGORIES_KEY], vocabulary), None
        if classes != own or ambiguous:
            known = f"{NUM_COCO_CLASSES} classes in COCO's numbering"
            known += "" if ambiguous else f" or {own} of {vocabulary.name}"
            raise InputError(
                f"{config.weights}: expected a detector of {known}, or --detector-classes"
                f" {COCO80}|{HICO80}|FILE for the names of others, found {classes} classes"
            )
        names = vocabulary.objects
    if len(names) == classes - 1:
        return labels_from_names(("", *names), vocabulary), names
    if len(names) == classes and not has_background(state):
        return labels_from_names(names, vocabulary), names
    raise InputError(
        f"--detector-classes: expected {classes - 1} names, for {config.weights or config.name} has"
        f" as many classes beside the background, found {len(names)}"
    )


def _disable_unused_heads(model: nn.Module, score_threshold: float) -> None:
    """Disables mask and keypoint heads and drops low scores, which are not used."""
    for extra in ("mask", "keypoint"):
        if getattr(getattr(model, "roi_heads", None), f"{extra}_roi_pool", None) is not None:
            setattr(model.roi_heads, f"{extra}_roi_pool", None)
    # Two-stage detectors keep the threshold in their second stage. Lower scores never suppress
    # higher ones, so cutting them early changes nothing but time.
    holder = getattr(model, "roi_heads", model)
    holder.score_thresh = score_threshold


def _toy(config: DetectorConfig, vocabulary: Vocabulary) -> nn.Module:
    if config.weights is None:
        raise InputError("--detector-weights: expected a file for the detector toy, found none")
    model = toy_detector(max(vocabulary.category_ids))
    return _load_state(model, load_weights(Path(config.weights)), config)


def _load_torchvision(config: DetectorConfig) -> nn.Module:
    names = list_models(module=detection)
    if config.name not in names:
        raise InputError(
            f"--detector: expected {TOY} or one of {', '.join(names)}, found {config.name}"
        )
    if _is_file(config):
        state = load_weights(Path(str(config.weights)))
        model = get_model(
            config.name, weights=None, weights_backbone=None, num_classes=num_classes(state)
        )
        return _load_state(match_batch_norm(model, config.name, state), state, config)
    entries = get_model_weights(config.name)
    entry = config.weights or DEFAULT_WEIGHTS
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
            f"--detector-weights: {config.name} {entry} cannot be downloaded"
            f" ({' '.join(str(error).split())[:160]}); give a file"
        ) from None


def _is_file(config: DetectorConfig) -> bool:
    return config.weights is not None and Path(config.weights).is_file()


def _load_state(model: nn.Module, state: dict[str, Tensor], config: DetectorConfig) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise architecture_error(config.weights, f"the detector {config.name}", error) from None
    return model


NUM_COCO_CLASSES = 91
# Names of COCO's 80 objects in two orders: COCO's own, by its ids, and HICO's, by the alphabet.
COCO80, HICO80 = "coco80", "hico80"
BACKGROUND = "background"
# Class scores and box offsets of one-stage detectors, as many of each for every anchor: RetinaNet
# and FCOS, SSD, SSDlite.
ONE_STAGE_HEADS = (
    ("head.classification_head.cls_logits.weight", "head.regression_head.bbox_reg.weight"),
    (
        "head.classification_head.module_list.0.weight",
        "head.regression_head.module_list.0.weight",
    ),
    (
        "head.classification_head.module_list.0.1.weight",
        "head.regression_head.module_list.0.1.weight",
    ),
)
BOX_COORDINATES = 4
# Their published weights come from a time when torchvision's frozen batch norm added nothing to
# the variance; torchvision makes up for it when it fetches them.
ZERO_EPSILON_MODELS = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)


def num_classes(state: Mapping[str, Tensor]) -> int:
    """How many classes a checkpoint was made for, the background among them; COCO's where its
    tensors are none of torchvision's detectors'."""
    predictor = state.get("roi_heads.box_predictor.cls_score.weight")
    if predictor is not None and predictor.dim():
        return len(predictor)
    for scores, offsets in ONE_STAGE_HEADS:
        heads = [state[name] for name in (scores, offsets) if name in state]
        if len(heads) == 2 and all(head.dim() and len(head) for head in heads):
            return BOX_COORDINATES * len(heads[0]) // len(heads[1])
    return NUM_COCO_CLASSES


def has_background(state: Mapping[str, Tensor]) -> bool:
    """Whether class 0 of a detector is the background: not of RetinaNet and FCOS, which score
    every class on its own."""
    return ONE_STAGE_HEADS[0][0] not in state


def load_class_names(source: str) -> tuple[str, ...]:
    """Names of a detector's classes in their order, without the background.

    Args:
        source: "coco80", "hico80", or a file with one name a line, whose first line may be the
            background.

    Raises:
        InputError: neither of these, or a line without a name.
    """
    coco = load_vocabulary("hico-det")
    if source == COCO80:
        return tuple(name for _, name in sorted(zip(coco.category_ids, coco.objects, strict=True)))
    if source == HICO80:
        return tuple(sorted(coco.objects))
    if not Path(source).is_file():
        expected = f"{COCO80}, {HICO80} or a file with one name a line"
        raise InputError(f"--detector-classes: expected {expected}, found {source}")
    names = [line.strip() for line in read_text(source).rstrip().splitlines()]
    if "" in names:
        where = f"line {names.index('') + 1}"
        raise bad_field(source, where, "the name of a class", "an empty line")
    is_background = bool(names) and _normalise_name(names[0]).strip("_ ") == BACKGROUND
    return tuple(names[is_background:])


def labels_from_names(names: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """(N,) int64: the vocabulary's object of each name, -1 for names that it lacks."""
    objects = {_normalise_name(name): label for label, name in enumerate(vocabulary.objects)}
    return np.array([objects.get(_normalise_name(name), -1) for name in names], dtype=np.int64)


def labels_from_ids(classes: int, vocabulary: Vocabulary) -> np.ndarray:
    """(classes,) int64: the vocabulary's object of each category id, -1 for ids that it lacks."""
    labels = np.full(classes, -1, dtype=np.int64)
    labels[list(vocabulary.category_ids)] = np.arange(vocabulary.num_objects)
    return labels


def has_coco_objects(vocabulary: Vocabulary) -> bool:
    """Whether the objects are COCO's 80, of which detectors without gaps come in any order."""
    return set(map(_normalise_name, vocabulary.objects)) == set(
        map(_normalise_name, load_class_names(COCO80))
    )


def _normalise_name(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def match_batch_norm(model: nn.Module, name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """A new model with the kind of batch norm that its checkpoint was trained with.

    torchvision freezes the batch norm of a pretrained backbone, as in its published weights, and
    does not where none is asked for. Frozen ones count no batches.

    Args:
        model: without weights.
        name: the architecture.
        state: the checkpoint.
    """
    if any(key.endswith("num_batches_tracked") for key in state):
        return model
    _freeze_batch_norm(model, 0.0 if name in ZERO_EPSILON_MODELS else None)
    return model


def _freeze_batch_norm(module: nn.Module, epsilon: float | None) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            kept = child.eps if epsilon is None else epsilon
            setattr(module, name, FrozenBatchNorm2d(child.num_features, kept))
        else:
            _freeze_batch_norm(child, epsilon)


IMAGE_SIZE = 128
ROI_POOL_SIZE = 5
BOX_HEAD_WIDTH = 192


def toy_detector(num_objects: int) -> FasterRCNN:
    """An untrained detector for `num_objects` categories with ids 1 to `num_objects`.

    It takes a list of (3, h, w) float images in [0, 1] and gives boxes (N, 4) xyxy in pixels,
    labels (category ids) and scores, as every torchvision detector does.
    """
    body = SingleFeatureMap(ToyBackbone())
    return FasterRCNN(
        body,
        min_size=IMAGE_SIZE,
        max_size=IMAGE_SIZE,
        rpn_anchor_generator=AnchorGenerator(((12, 20, 32, 52),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=ROI_POOL_SIZE, sampling_ratio=1),
        box_head=TwoMLPHead(body.out_channels * ROI_POOL_SIZE**2, BOX_HEAD_WIDTH),
        box_predictor=FastRCNNPredictor(BOX_HEAD_WIDTH, num_objects + 1),
        box_score_thresh=0.05,
        box_nms_thresh=0.5,
    )
