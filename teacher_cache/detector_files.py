"""What a weights file says about the torchvision detector that it was made for, and what its
classes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pipeline.errors import InputError, bad_field
from pipeline.files import read_text
from pipeline.vocabulary import Vocabulary, load_vocabulary

COCO_CLASSES = 91
# Names of COCO's 80 objects in two orders: COCO's own, by its ids, and HICO's, by the alphabet.
COCO80, HICO80 = "coco80", "hico80"
BACKGROUND = "background"
# Class scores and box offsets of one-stage detectors, as many of each for every anchor: RetinaNet
# and FCOS, SSD, SSDlite.
DENSE_HEADS = (
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
BOX_SIDES = 4
# Their published weights come from a time when torchvision's frozen batch norm added nothing to
# the variance; torchvision makes up for it when it fetches them.
WITHOUT_EPSILON = (
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
    for scores, offsets in DENSE_HEADS:
        heads = [state[name] for name in (scores, offsets) if name in state]
        if len(heads) == 2 and all(head.dim() and len(head) for head in heads):
            return BOX_SIDES * len(heads[0]) // len(heads[1])
    return COCO_CLASSES


def has_background(state: Mapping[str, Tensor]) -> bool:
    """Whether class 0 of a detector is the background: not of RetinaNet and FCOS, which score
    every class on its own."""
    return DENSE_HEADS[0][0] not in state


def class_names(source: str) -> tuple[str, ...]:
    """Names of a detector's classes in their order, without the background.

    Args:
        source: "coco80", "hico80", or a file with one name a line, whose first line may be the
            background.

    Raises:
        InputError: neither of these, or a line without a name.
    """
    coco = load_vocabulary("hico-det")
    if source == COCO80:
        return tuple(name for _, name in sorted(zip(coco.object_ids, coco.objects, strict=True)))
    if source == HICO80:
        return tuple(sorted(coco.objects))
    if not Path(source).is_file():
        expected = f"{COCO80}, {HICO80} or a file with one name a line"
        raise InputError(f"--detector-classes: expected {expected}, found {source}")
    names = [line.strip() for line in read_text(source).rstrip().splitlines()]
    if "" in names:
        where = f"line {names.index('') + 1}"
        raise bad_field(source, where, "the name of a class", "an empty line")
    is_background = bool(names) and _plain(names[0]).strip("_ ") == BACKGROUND
    return tuple(names[is_background:])


def labels_of_names(names: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """(N,) int64: the vocabulary's object of each name, -1 for names that it lacks."""
    objects = {_plain(name): label for label, name in enumerate(vocabulary.objects)}
    return np.array([objects.get(_plain(name), -1) for name in names], dtype=np.int64)


def labels_of_ids(classes: int, vocabulary: Vocabulary) -> np.ndarray:
    """(classes,) int64: the vocabulary's object of each category id, -1 for ids that it lacks."""
    labels = np.full(classes, -1, dtype=np.int64)
    labels[list(vocabulary.object_ids)] = np.arange(vocabulary.num_objects)
    return labels


def is_coco(vocabulary: Vocabulary) -> bool:
    """Whether the objects are COCO's 80, of which detectors without gaps come in any order."""
    return set(map(_plain, vocabulary.objects)) == set(map(_plain, class_names(COCO80)))


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def adapted(model: nn.Module, name: str, state: Mapping[str, Tensor]) -> nn.Module:
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
    _freeze(model, 0.0 if name in WITHOUT_EPSILON else None)
    return model


def _freeze(module: nn.Module, epsilon: float | None) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            kept = child.eps if epsilon is None else epsilon
            setattr(module, name, FrozenBatchNorm2d(child.num_features, kept))
        else:
            _freeze(child, epsilon)
