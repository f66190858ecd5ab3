"""Frozen torchvision detectors that find persons and objects, and the toy dataset's detector."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from pipeline.toy import DETECTOR, TOY
from pipeline.toy.backbone import SingleFeatureMap, ToyBackbone
from pipeline.utils.devices import copy_to_device, copy_to_host_async
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.weights import architecture_error, check_finite, load_weights, weights_digest
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.detectors.base import Detections, Detector, DetectorConfig
from teacher_cache.detectors.class_names import (
    COCO80,
    HICO80,
    has_coco_objects,
    labels_from_ids,
    labels_from_names,
)
from teacher_cache.reader.format import TOY_IN_CACHES

DEFAULT_DETECTOR = "fasterrcnn_resnet50_fpn_v2"
# torchvision's name of a model's default weights entry, and the key of an entry's class names.
DEFAULT_WEIGHTS, CATEGORIES_KEY = "DEFAULT", "categories"
# COCO's ids, of which 80 are used, with the background as 0.
NUM_COCO_CLASSES = 91
# Weights of the class scores and box offsets in one-stage detectors, both for the same number of
# anchors: RetinaNet and FCOS, SSD, SSDlite.
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
# Their published weights were trained when torchvision's frozen batch norm had no epsilon.
# torchvision sets it to 0 when it downloads them, but not for a file.
ZERO_EPSILON_MODELS = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)
# Of the toy detector: input side in pixels, side of the pooled regions, hidden units.
TOY_IMAGE_SIZE = 128
TOY_ROI_POOL_SIZE = 5
TOY_BOX_HEAD_WIDTH = 192


class TorchvisionDetector(Detector):
    """A frozen torchvision detection model; see `teacher_cache.detectors.base.Detector`.

    Attributes:
        name: name of the architecture in caches.
        classes: for each class the name of the vocabulary's object, empty if it has none.
        weights_digest: digest of the state dict.
        class_names: names of its classes, where neither torchvision nor the vocabulary's ids
            determine them; else None.

    Raises:
        InputError: no such model, weights entry or file; weights of another architecture or with
            values that are not finite; or classes without known names.
    """

    def __init__(self, device: torch.device, vocabulary: Vocabulary, config: DetectorConfig):
        super().__init__(device, vocabulary)
        model = _load_toy(config, vocabulary) if config.name == TOY else _load_torchvision(config)
        self.name = TOY_IN_CACHES if config.name == TOY else config.name
        state = model.state_dict()
        check_finite(state, config.weights or config.name)
        self.weights_digest = weights_digest(state)
        labels, self.class_names = _class_labels(config, state, vocabulary)
        self.classes = ["" if label < 0 else vocabulary.objects[label] for label in labels.tolist()]
        _disable_unused_heads(model, config.score_threshold)
        _normalise_in_place(model, device)
        # The convolution libraries of CPUs and GPUs work in channels last, and would reorder each
        # feature map.
        self._model = model.eval().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Boxes (N, 4), classes (N,) and scores (N,) of (h, w, 3) uint8 RGB images."""
        outputs = self._model([_to_tensor(image, self.device) for image in images])
        # One (N, 6) table of all images, so that the host waits for the device only once.
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
        rows = copy_to_host_async(table)().numpy()
        by_image = np.split(rows, np.cumsum(counts)[:-1])
        return [(each[:, :4], each[:, 5], each[:, 4]) for each in by_image]

    def fingerprint(self) -> dict[str, Any]:
        """Digests of the weights, and of the class names where these decide on the mapping."""
        parts = {"weights": self.weights_digest}
        if self.class_names is not None:
            parts["classes"] = sha256_of_json(self.class_names)
        return parts


def recognise_architecture(weights: Path, vocabulary: Vocabulary) -> str:
    """The architecture of a weights file: the toy detector, if it has its tensor names, else
    torchvision's default detector.

    Raises:
        InputError: the file contains no weights.
    """
    names = toy_detector(max(vocabulary.category_ids)).state_dict().keys()
    return TOY if load_weights(weights).keys() == names else DEFAULT_DETECTOR


def _to_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """(h, w, 3) uint8 -> (3, h, w) float32 in [0, 1] on the device.

    Channels stay last in memory: torch resizes other images after a copy of that kind.
    """
    # Copied to the device as uint8, a quarter of the bytes.
    return copy_to_device(torch.from_numpy(image), device).permute(2, 0, 1).float().div_(255)


def _class_labels(
    config: DetectorConfig, state: Mapping[str, Tensor], vocabulary: Vocabulary
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Maps the detector's C classes to objects of the vocabulary.

    Returns:
        (C,) int64, the object of each class, -1 for classes that the vocabulary lacks; and the
        class names without the background, where neither torchvision nor the vocabulary's ids
        determine the mapping, else None.

    Raises:
        InputError: the number of names differs from that of the classes, or the names are unknown.
    """
    names, classes = config.classes, num_classes(state)
    if names is None:
        if config.name != TOY and not _is_file(config):
            entry = get_model_weights(config.name)[config.weights or DEFAULT_WEIGHTS]
            return labels_from_names(entry.meta[CATEGORIES_KEY], vocabulary), None
        # Detectors with COCO's 80 objects without the gaps of its ids exist in several orders, so
        # their number of classes does not determine the mapping.
        without_gaps, ambiguous = vocabulary.num_objects + 1, has_coco_objects(vocabulary)
        if classes == max(vocabulary.category_ids) + 1 and not (
            ambiguous and classes == without_gaps
        ):
            return labels_from_ids(classes, vocabulary), None
        for entry in () if config.name == TOY else get_model_weights(config.name):
            if len(entry.meta[CATEGORIES_KEY]) == classes:
                return labels_from_names(entry.meta[CATEGORIES_KEY], vocabulary), None
        if classes != without_gaps or ambiguous:
            expected = f"{NUM_COCO_CLASSES} classes in COCO's numbering"
            expected += "" if ambiguous else f" or {without_gaps} of {vocabulary.name}"
            raise InputError(
                f"{config.weights}: expected a detector of {expected}, or --detector-classes"
                f" {COCO80}|{HICO80}|FILE with the names of other classes, found {classes} classes"
            )
        names = vocabulary.objects
    if len(names) == classes - 1:
        return labels_from_names(("", *names), vocabulary), names
    if len(names) == classes and not has_background(state):
        return labels_from_names(names, vocabulary), names
    raise InputError(
        f"--detector-classes: expected {classes - 1} names, as {config.weights or config.name} has"
        f" that number of classes besides the background, found {len(names)}"
    )


def _disable_unused_heads(model: nn.Module, score_threshold: float) -> None:
    """Disables mask and keypoint heads, and drops detections below the threshold before NMS."""
    for head in ("mask", "keypoint"):
        if getattr(getattr(model, "roi_heads", None), f"{head}_roi_pool", None) is not None:
            setattr(model.roi_heads, f"{head}_roi_pool", None)
    # Two-stage detectors have the threshold in their second stage. NMS never lets a lower score
    # suppress a higher one, so dropping low scores before it changes only the time.
    module = getattr(model, "roi_heads", model)
    module.score_thresh = score_threshold


def _normalise_in_place(model: nn.Module, device: torch.device) -> None:
    """Replaces torchvision's normalisation of an image by one of equal results.

    torchvision's needs three times the memory of the image, and copies the statistics to the device
    for each image, for which a GPU's host waits.
    """
    transform: Any = model.transform
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (transform.image_mean, transform.image_std)
    )
    transform.normalize = lambda image: image.sub_(mean).div_(std)


def _load_toy(config: DetectorConfig, vocabulary: Vocabulary) -> nn.Module:
    toy = load_vocabulary(TOY)
    if config.weights is None and max(vocabulary.category_ids) != max(toy.category_ids):
        raise InputError(
            "--detector: expected a detector of the dataset's objects, found toy, which finds only"
            f" {', '.join(toy.objects)}"
        )
    model = toy_detector(max(vocabulary.category_ids))
    return _load_state(model, load_weights(Path(config.weights or DETECTOR)), config)


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
        # torch.hub reports downloads on stderr, which the commands use for errors.
        with redirect_stderr(sys.stdout):
            return get_model(config.name, weights=entries[entry])
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--detector-weights: {config.name} {entry} cannot be downloaded"
            f" ({textwrap.shorten(str(error), 160, placeholder=' ...')}); give a file"
        ) from None


def _is_file(config: DetectorConfig) -> bool:
    return config.weights is not None and Path(config.weights).is_file()


def _load_state(model: nn.Module, state: dict[str, Tensor], config: DetectorConfig) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        weights = config.weights or config.name
        raise architecture_error(weights, f"the detector {config.name}", error) from None
    return model


def num_classes(state: Mapping[str, Tensor]) -> int:
    """Number of classes of a checkpoint, including the background.

    That of COCO for other checkpoints than torchvision's, whose loading then fails.
    """
    predictor = state.get("roi_heads.box_predictor.cls_score.weight")
    if predictor is not None and predictor.dim():
        return len(predictor)
    for scores, offsets in ONE_STAGE_HEADS:
        heads = [state[name] for name in (scores, offsets) if name in state]
        if len(heads) == 2 and all(head.dim() and len(head) for head in heads):
            return BOX_COORDINATES * len(heads[0]) // len(heads[1])
    return NUM_COCO_CLASSES


def has_background(state: Mapping[str, Tensor]) -> bool:
    """Whether class 0 is the background; not in RetinaNet and FCOS, which have sigmoids."""
    return ONE_STAGE_HEADS[0][0] not in state


def match_batch_norm(model: nn.Module, name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """Replaces batch norm by frozen batch norm, if the checkpoint was trained with it.

    torchvision builds models with frozen batch norm only if they get pretrained weights, so a model
    for a checkpoint file has the other kind. Frozen batch norm has no `num_batches_tracked`.

    Returns:
        The model, which is changed in place.
    """
    if any(key.endswith("num_batches_tracked") for key in state):
        return model
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                epsilon = 0.0 if name in ZERO_EPSILON_MODELS else child.eps
                setattr(parent, key, FrozenBatchNorm2d(child.num_features, epsilon))
    return model


def toy_detector(num_objects: int) -> FasterRCNN:
    """An untrained Faster R-CNN for the toy dataset, with category ids 1 to `num_objects`.

    Like every torchvision detector it takes a list of (3, h, w) float images in [0, 1] and returns
    `boxes` (N, 4) xyxy in pixels, `labels` (category ids) and `scores` for each.
    """
    body = SingleFeatureMap(ToyBackbone())
    return FasterRCNN(
        body,
        min_size=TOY_IMAGE_SIZE,
        max_size=TOY_IMAGE_SIZE,
        rpn_anchor_generator=AnchorGenerator(((12, 20, 32, 52),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=TOY_ROI_POOL_SIZE, sampling_ratio=1),
        box_head=TwoMLPHead(body.out_channels * TOY_ROI_POOL_SIZE**2, TOY_BOX_HEAD_WIDTH),
        box_predictor=FastRCNNPredictor(TOY_BOX_HEAD_WIDTH, num_objects + 1),
        box_score_thresh=0.05,
        box_nms_thresh=0.5,
    )
