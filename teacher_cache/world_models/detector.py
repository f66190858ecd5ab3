"""The world's detector: torchvision's Faster R-CNN on a small backbone."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from pipeline.world.backbone import SingleMap, WorldBackbone

IMAGE_SIZE = 128


def world_detector(num_objects: int) -> FasterRCNN:
    """An untrained detector for `num_objects` categories with ids 1 to `num_objects`.

    It takes a list of (3, h, w) float images in [0, 1] and gives boxes (N, 4) xyxy in pixels,
    labels (category ids) and scores, as every torchvision detector does.
    """
    body = SingleMap(WorldBackbone())
    return FasterRCNN(
        body,
        num_classes=num_objects + 1,
        min_size=IMAGE_SIZE,
        max_size=IMAGE_SIZE,
        rpn_anchor_generator=AnchorGenerator(((12, 20, 32, 52),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=60,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=5, sampling_ratio=2),
        box_head=_box_head(body.out_channels),
        box_predictor=_box_predictor(num_objects + 1),
        box_score_thresh=0.05,
        box_nms_thresh=0.5,
    )


BOX_HEAD_WIDTH = 192


def _box_head(channels: int):  # type: ignore[no-untyped-def]
    from torchvision.models.detection.faster_rcnn import TwoMLPHead

    return TwoMLPHead(channels * 25, BOX_HEAD_WIDTH)


def _box_predictor(num_classes: int):  # type: ignore[no-untyped-def]
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    return FastRCNNPredictor(BOX_HEAD_WIDTH, num_classes)
