"""Runs a detector over images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.devices import autocast
from pipeline.images import read_image
from pipeline.progress import Progress
from pipeline.types import Detections, ImageRecord
from pipeline.vocabulary import Vocabulary
from student.augmentation import evaluation_resize
from student.data import normalise
from student.inference import to_detections
from student.model import HOIDetector
from student.workers import Batches, plain_errors, start_work


class TestImages(Dataset[tuple[str, tuple[int, int], Tensor]]):
    """Images ready for the detector: id, original (width, height), normalised (3, h, w).

    Args:
        records: the images.
        resize: brings an image to the size the detector was trained on.
    """

    def __init__(self, records: Sequence[ImageRecord], resize: v2.Transform) -> None:
        self.records, self.resize = records, resize

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[str, tuple[int, int], Tensor]:
        record = self.records[index]
        image = read_image(record.path)
        pixels = self.resize(tv_tensors.Image(v2.functional.pil_to_tensor(image)))
        return record.id, image.size, normalise(pixels)


def predict(
    model: HOIDetector,
    records: Sequence[ImageRecord],
    vocabulary: Vocabulary,
    augmentation: str,
    device: torch.device,
    batch_size: int = 16,
    workers: int = 0,
    precision: str = "float32",
    quiet: bool = False,
) -> list[Detections]:
    """Detects interactions in images, with progress.

    Args:
        model: in eval mode.
        records: the images.
        vocabulary: the model's.
        augmentation: the one it was trained with; decides the size images are brought to.
        device: where to run.
        batch_size: images at once.
        workers: processes that read images.
        precision: see `pipeline.devices.autocast`.
        quiet: show no progress.

    Returns:
        One `Detections` for every record, in their order.

    Raises:
        InputError: an image cannot be read.
    """
    loader = DataLoader(
        TestImages(records, evaluation_resize(augmentation)),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=start_work,
    )
    # As in training, so that a run's own results and those of its checkpoint are the same.
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    detections: list[Detections] = []
    with (
        Progress(len(records), "predicting", "images", quiet=quiet) as progress,
        torch.inference_mode(),
        plain_errors(),
        Batches(loader) as batches,
    ):
        for batch in batches:
            ids, sizes, images = zip(*batch, strict=True)
            with autocast(device, precision):
                outputs = model([image.to(device) for image in images])
            detections += to_detections(outputs, ids, sizes, vocabulary)
            progress.advance(len(batch))
    return detections
