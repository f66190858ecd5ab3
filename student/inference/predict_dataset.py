"""Predicts a dataset part into a predictions file, resumable after an interruption.

The shards of `predict_shards` are in a folder of their own until the predictions file is written.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from evaluation.predictions import PREDICTIONS_FILE, write_predictions
from pipeline.datasets.dataset import Dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.utils.errors import InputError
from pipeline.utils.files import refuse_existing, sha256_of_json, write_json
from pipeline.utils.logging import get_logger
from student.inference.detector import Detector
from student.inference.predict_images import prediction_settings
from student.inference.predict_shards import INDEX, PLAN, ShardConfig, ShardFolder, read_detections

logger = get_logger(__name__)

PARTIAL = "predictions.partial"


def predict_dataset(
    detector: Detector,
    dataset: Dataset,
    part: str,
    out: Path,
    config: ShardConfig,
    overwrite: bool = False,
    limit: int | None = None,
) -> Path | None:
    """Predicts a dataset part, and resumes an interrupted prediction with the same settings.

    Args:
        detector: a detector of the dataset's vocabulary.
        dataset: the dataset.
        part: "train" or "test".
        out: folder for the predictions file.
        config: how the shards are made.
        overwrite: replace an existing file.
        limit: see `AnnotationFile.limited`.

    Returns:
        The predictions file, in the HOIA/PPDM form; None if shards of other jobs are missing.

    Raises:
        InputError: the part does not exist, the detector has another vocabulary, or the predictions
            file exists; or, after the file is written, images could not be read and are missing in
            it.
    """
    target, partial = out / PREDICTIONS_FILE, out / PARTIAL
    # The last job of an array may have written the file already.
    if config.share is None or not (partial / PLAN).is_file():
        refuse_existing(target, overwrite)
    if detector.vocabulary.digest() != dataset.vocabulary.digest():
        raise InputError(
            f"{detector.file}: expected a detector of the vocabulary {dataset.vocabulary.name},"
            f" found {detector.vocabulary.name}"
        )
    annotations = dataset.load(part).limited(limit)
    sizes = check_image_sizes(dataset, annotations)
    sizes.raise_errors()
    for line in sizes.warnings():
        logger.warning(line)
    images = dataset.part(part).images.absolute()
    names = [annotation.image_id for annotation in annotations.annotations]
    unusable = sizes.orientation_mismatch.keys() | sizes.size_mismatch.keys()
    usable = [name for name in names if name not in unusable]
    list_settings = {
        "num_heads": detector.predictor.model.config.num_heads,
        "annotations": annotations.digest,
        "part": part,
        "folder": str(images),
        "usable": sha256_of_json(usable),
    }
    # Benchmarks count "no interaction".
    config = replace(config, exact=True, selection=replace(config.selection, no_interaction=True))
    settings = prediction_settings(detector, config.selection)
    # Without an array nobody else uses the shards, and other settings start again.
    replaceable = config.share is None
    folder = ShardFolder(partial, settings, list_settings, config, overwrite=replaceable)
    with folder.claim(usable, str(images)) as claimed:
        records = claimed.make(detector)
        if records is None:
            return None
        predicted = [one for record in records for one in read_detections(record.path)]
        write_predictions(target, dataset.detections_to_file(part, predicted), dataset.vocabulary)
        # The shards are finished: --overwrite makes new ones.
        write_json(partial / INDEX, {**settings, **list_settings, "shards": len(records)})
        if config.share is None:
            shutil.rmtree(partial)
    for record in records:
        for reason in record.failed.values():
            # It begins with the image's name.
            logger.warning(str(images / reason))
    if len(predicted) < len(names):
        raise InputError(
            f"{len(names) - len(predicted)} of {len(names)} images could not be read and are"
            f" missing in {target}"
        )
    return target
