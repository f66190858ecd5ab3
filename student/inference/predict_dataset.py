"""Predicts a dataset part into a predictions file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evaluation.predictions import PREDICTIONS_FILE, write_predictions
from pipeline.datasets.dataset import Dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.utils.devices import default_num_workers
from pipeline.utils.errors import InputError
from pipeline.utils.files import refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from student.inference.batch_predictor import UnreadableImage
from student.inference.detector import BATCH_SIZE, Detector
from student.inference.postprocess import SelectionConfig

logger = get_logger(__name__)


def predict_dataset(
    detector: Detector,
    dataset: Dataset,
    part: str,
    out: Path,
    selection: SelectionConfig,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Predicts a dataset part.

    Args:
        detector: a detector of the dataset's vocabulary.
        dataset: the dataset.
        part: "train" or "test".
        out: folder for the predictions file.
        selection: which detections are written.
        batch_size: maximum number of images per batch.
        workers: number of threads that read images; None takes the spare cores.
        overwrite: replace an existing file.

    Returns:
        The predictions file, in the HOIA/PPDM form.

    Raises:
        InputError: the part does not exist, the detector has another vocabulary, or the predictions
            file exists; or, after the file is written, images could not be read and are missing in
            it.
    """
    target = out / PREDICTIONS_FILE
    refuse_existing(target, overwrite)
    if detector.vocabulary.digest() != dataset.vocabulary.digest():
        raise InputError(
            f"{detector.file}: expected a detector of the vocabulary {dataset.vocabulary.name},"
            f" found {detector.vocabulary.name}"
        )
    annotations = dataset.load(part)
    sizes = check_image_sizes(dataset, annotations)
    sizes.raise_errors()
    for line in sizes.warnings():
        logger.warning(line)
    out.mkdir(parents=True, exist_ok=True)
    folder = dataset.part(part).images
    names = [annotation.image_id for annotation in annotations.annotations]
    unusable = sizes.orientation_mismatch.keys() | sizes.size_mismatch.keys()
    usable = [name for name in names if name not in unusable]
    found = {}
    with Progress(len(usable), "predicting", "images") as progress:
        for prediction in detector.predictor.stream(
            [folder / name for name in usable], batch_size, default_num_workers(workers)
        ):
            if isinstance(prediction, UnreadableImage):
                logger.warning(prediction.reason)
            else:
                name = usable[prediction.index]
                found[name] = selection.select(replace(prediction.detections, image_id=name))
            progress.update()
    predicted = [found[name] for name in names if name in found]
    write_predictions(target, dataset.detections_to_file(part, predicted), dataset.vocabulary)
    if len(found) < len(names):
        raise InputError(
            f"{len(names) - len(found)} of {len(names)} images could not be read and are missing in"
            f" {target}"
        )
    return target
