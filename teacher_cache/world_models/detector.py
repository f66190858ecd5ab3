"""The world's detector: torchvision's Faster R-CNN on a small backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from pipeline.world.backbone import SingleMap, WorldBackbone

IMAGE_SIZE = 128
POOLED = 5
BOX_HEAD_WIDTH = 192


def world_detector(num_objects: int) -> FasterRCNN:
    """An untrained detector for `num_objects` categories with ids 1 to `num_objects`.

    It takes a list of (3, h, w) float images in [0, 1] and gives boxes (N, 4) xyxy in pixels,
    labels (category ids) and scores, as every torchvision detector does.
    """
    body = SingleMap(WorldBackbone())
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
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=POOLED, sampling_ratio=1),
        box_head=TwoMLPHead(body.out_channels * POOLED**2, BOX_HEAD_WIDTH),
        box_predictor=FastRCNNPredictor(BOX_HEAD_WIDTH, num_objects + 1),
        box_score_thresh=0.05,
        box_nms_thresh=0.5,
    )


@dataclass(frozen=True)
class DetectorTraining:
    """How the world's detector is trained.

    Attributes:
        epochs, batch_size: length and size of the steps (images).
        learning_rate: peak of the one-cycle schedule (AdamW).
        weight_decay: AdamW's.
    """

    epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01


def train_detector(
    images: Tensor,
    annotations: Sequence[Annotation],
    vocabulary: Vocabulary,
    training: DetectorTraining,
    generator: torch.Generator,
    device: torch.device,
    precision: Callable[[], Any],
    on_step: Callable[[int, str], None],
) -> FasterRCNN:
    """Trains the world's detector on boxes alone.

    Args:
        images: (N, 3, h, w) uint8.
        annotations: of the N images; their interactions are not looked at.
        vocabulary: object numbering.
        training: the recipe.
        generator: source of all randomness (CPU).
        device: where to train.
        precision: makes the autocast context of a step.
        on_step: told the number of images and the losses after every step.

    Returns:
        The trained detector in eval mode.
    """
    ids = torch.tensor(vocabulary.object_ids)
    targets = [
        {
            "boxes": torch.from_numpy(annotation.boxes),
            "labels": ids[torch.from_numpy(annotation.labels)],
        }
        for annotation in annotations
    ]
    steps = len(images) // training.batch_size
    # torchvision samples anchors and proposals with torch's own generator.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        model = world_detector(max(vocabulary.object_ids)).to(device).train()
        model.backbone.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            model.parameters(), training.learning_rate, weight_decay=training.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, training.learning_rate, total_steps=steps * training.epochs
        )
        for _ in range(training.epochs):
            order = torch.randperm(len(images), generator=generator)
            for rows in order[: steps * training.batch_size].view(steps, -1).tolist():
                flips = torch.rand(len(rows), generator=generator) < 0.5
                batch = [
                    _flipped(images[row], targets[row], bool(flip))
                    for row, flip in zip(rows, flips, strict=True)
                ]
                with precision():
                    losses = model(
                        [image.to(device).float() / 255 for image, _ in batch],
                        [{k: v.to(device) for k, v in target.items()} for _, target in batch],
                    )
                loss = torch.stack(list(losses.values())).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                on_step(len(rows), f"loss {loss.item():.3f}")
    return model.eval()


def _flipped(
    image: Tensor, target: dict[str, Tensor], flip: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    if not flip:
        return image, target
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
    return image.flip(-1), {"boxes": boxes, "labels": target["labels"]}
