"""Training recipes and loops of the toy dataset's models: a small CLIP and a small Faster R-CNN.

With these two models the teacher's part of the method runs on a CPU within minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.transforms import v2
from torchvision.transforms.functional import normalize
from torchvision.tv_tensors import BoundingBoxes

from pipeline.types import Annotation
from pipeline.utils.devices import autocast
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.torchvision import toy_detector
from teacher_cache.teachers.clip import build_clip
from teacher_cache.teachers.word_tokenizer import WordTokenizer

IMAGE_SIZE = 64
CONTEXT_LENGTH = 10
# Upper bound of the logit scale in CLIP's own training.
MAX_LOG_SCALE = math.log(100)
# The logit scale at the start (inverse temperature of the similarities).
INITIAL_SCALE = 14.0
TEACHER_BATCH, DETECTOR_BATCH = 64, 16
# Peak learning rate of both models, with AdamW and a one-cycle schedule.
LEARNING_RATE = 2e-3
# Maximum random shift of a region in pixels of the teacher's input.
MAX_SHIFT = 3
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_config(tokenizer: WordTokenizer) -> dict[str, Any]:
    """The model's configuration in open_clip's form."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "layers": [1, 1, 1, 1],
            "width": 16,
            "head_width": 32,
            "image_size": IMAGE_SIZE,
        },
        "text_cfg": {
            "context_length": tokenizer.context_length,
            "vocab_size": tokenizer.vocab_size,
            "width": 96,
            "heads": 4,
            "layers": 2,
        },
    }


def contrastive_loss(
    images: Tensor, texts: Tensor, captions: Tensor, logit_scale: Tensor
) -> Tensor:
    """CLIP's symmetric contrastive loss for batches in which many captions are equal.

    CLIP's own loss would treat an image with the same caption as a negative.

    Args:
        images: (B, D) normalised image embeddings.
        texts: (C, D) normalised embeddings of the C distinct captions of the batch.
        captions: (B,) row in `texts` of each image's caption.
        logit_scale: factor on cosine similarities.

    Returns:
        The mean of image-to-text cross-entropy over the distinct captions and of text-to-image
        cross-entropy whose targets are uniform over the images with that caption.
    """
    logits = logit_scale * images @ texts.T
    image_to_text = F.cross_entropy(logits, captions)
    same = F.one_hot(captions, len(texts)).T.to(logits.dtype)
    text_to_image = F.cross_entropy(logits.T, same / same.sum(1, keepdim=True))
    return (image_to_text + text_to_image) / 2


def train_teacher(
    crops: Tensor,
    captions: Sequence[str],
    tokenizer: WordTokenizer,
    steps: int,
    generator: torch.Generator,
    device: torch.device,
    on_step: Callable[[int, str], None],
    batch_size: int = TEACHER_BATCH,
) -> nn.Module:
    """Trains a small CLIP from scratch.

    Args:
        crops: (N, 3, IMAGE_SIZE, IMAGE_SIZE) uint8 union regions.
        captions: N captions.
        tokenizer: tokenizer of the captions.
        steps: number of optimizer steps.
        generator: CPU generator of the initial weights, sampling and augmentation.
        device: device to train on.
        on_step: called after every step with the number of regions and a progress note: the loss,
            or "" between notes.
        batch_size: number of regions per step.

    Returns:
        The trained open_clip model in eval mode.
    """
    distinct = sorted(set(captions))
    number = {caption: index for index, caption in enumerate(distinct)}
    labels = torch.tensor([number[caption] for caption in captions])
    tokens = tokenizer(distinct).to(device)
    model = build_clip(clip_config(tokenizer), generator).to(device)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(INITIAL_SCALE))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(crops), generator=generator)])
        rows, order = order[:batch_size], order[batch_size:]
        batch = augment(crops[rows], MAX_SHIFT, generator).to(device)
        present, local = labels[rows].unique(return_inverse=True)
        with autocast(device, "auto"):
            image_features = model.encode_image(normalize(batch, MEAN, STD), normalize=True)
            text_features = model.encode_text(tokens[present.to(device)], normalize=True)
        loss = contrastive_loss(
            image_features.float(),
            text_features.float(),
            local.to(device),
            model.logit_scale.exp(),
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOG_SCALE)
        # Reading the loss waits for a GPU.
        on_step(batch_size, f"loss {loss.item():.3f}" if step % 10 == 0 else "")
    return model.eval()


def augment(crops: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Random flips, shifts, brightness, contrast and saturation.

    Args:
        crops: (B, 3, H, W) uint8.
        max_shift: maximum shift in pixels; the border is filled with black, as in padded regions.
        generator: source of randomness.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    images = crops.float() / 255
    flips = torch.rand(len(images), generator=generator) < 0.5
    images[flips] = images[flips].flip(-1)
    size = images.shape[-1]
    padded = F.pad(images, [max_shift] * 4)
    shifts = torch.randint(0, 2 * max_shift + 1, (len(images), 2), generator=generator)
    images = torch.stack(
        [
            image[:, top : top + size, left : left + size]
            for image, (top, left) in zip(padded, shifts.tolist(), strict=True)
        ]
    )
    brightness, contrast, saturation = 0.7 + 0.6 * torch.rand(
        (3, len(images), 1, 1, 1), generator=generator
    )
    images = images * brightness
    centre = images.mean((1, 2, 3), keepdim=True)
    images = centre + (images - centre) * contrast
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def train_detector(
    images: Tensor,
    annotations: Sequence[Annotation],
    vocabulary: Vocabulary,
    epochs: int,
    generator: torch.Generator,
    device: torch.device,
    on_step: Callable[[int, str], None],
    batch_size: int = DETECTOR_BATCH,
) -> FasterRCNN:
    """Trains the toy detector from scratch on boxes and object classes.

    Args:
        images: (N, 3, H, W) uint8.
        annotations: annotations of the N images; interactions are ignored.
        vocabulary: vocabulary whose category ids the detector predicts.
        epochs: number of epochs; the last, incomplete batch of each is dropped.
        generator: CPU generator that seeds the initial weights, sampling and augmentation.
        device: device to train on.
        on_step: called after every step with the number of images and a note with the loss.
        batch_size: number of images per step.

    Returns:
        The trained detector in eval mode.
    """
    ids, size = torch.tensor(vocabulary.category_ids), images.shape[-2:]
    targets = [
        {
            "boxes": BoundingBoxes(annotation.boxes, format="XYXY", canvas_size=size),
            "labels": ids[torch.from_numpy(annotation.labels)],
        }
        for annotation in annotations
    ]
    steps, flip = len(images) // batch_size, v2.RandomHorizontalFlip()
    # torchvision flips images and samples anchors and proposals with torch's global generator.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        model = toy_detector(max(vocabulary.category_ids)).to(device).train()
        # Convolutions are faster in this layout.
        model.backbone.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=steps * epochs
        )
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for rows in order[: steps * batch_size].view(steps, -1).tolist():
                batch = [flip(images[row], targets[row]) for row in rows]
                with autocast(device, "auto"):
                    losses = model(
                        [image.to(device).float() / 255 for image, _ in batch],
                        [
                            {k: v.as_subclass(torch.Tensor).to(device) for k, v in target.items()}
                            for _, target in batch
                        ],
                    )
                loss = torch.stack(list(losses.values())).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                on_step(len(rows), f"loss {loss.item():.3f}")
    return model.eval()
