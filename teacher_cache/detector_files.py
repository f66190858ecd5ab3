"""What a weights file says about the torchvision detector that it was made for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

COCO_CLASSES = 91
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
    if predictor is not None:
        return len(predictor)
    for scores, offsets in DENSE_HEADS:
        if scores in state and offsets in state and len(state[offsets]):
            return BOX_SIDES * len(state[scores]) // len(state[offsets])
    return COCO_CLASSES


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
