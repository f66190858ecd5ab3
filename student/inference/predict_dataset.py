"""Predicts a dataset part into a predictions file, resumable after an interruption.

A partial file receives the detections of every batch, one line each, after a line with the
settings. It is removed after the predictions file is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.predictions import PREDICTIONS_FILE, write_predictions
from pipeline.datasets.dataset import Dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.types import Detections
from pipeline.utils.devices import default_num_workers
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, encode_utf8, refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from student.inference.batch_predictor import UnreadableImage
from student.inference.detector import BATCH_SIZE, Detector
from student.inference.postprocess import SelectionConfig
from student.inference.predict_images import prediction_settings

logger = get_logger(__name__)

PARTIAL = "predictions.partial.jsonl"


def predict_dataset(
    detector: Detector,
    dataset: Dataset,
    part: str,
    out: Path,
    selection: SelectionConfig,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    overwrite: bool = False,
    limit: int | None = None,
) -> Path:
    """Predicts a dataset part, and resumes an interrupted prediction with the same settings.

    Args:
        detector: a detector of the dataset's vocabulary.
        dataset: the dataset.
        part: "train" or "test".
        out: folder for the predictions file.
        selection: which detections are written.
        batch_size: maximum number of images per batch.
        workers: number of threads that read images; None takes the spare cores.
        overwrite: replace an existing file.
        limit: see `AnnotationFile.limited`.

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
    annotations = dataset.load(part).limited(limit)
    sizes = check_image_sizes(dataset, annotations)
    sizes.raise_errors()
    for line in sizes.warnings():
        logger.warning(line)
    out.mkdir(parents=True, exist_ok=True)
    folder = dataset.part(part).images
    names = [annotation.image_id for annotation in annotations.annotations]
    unusable = sizes.orientation_mismatch.keys() | sizes.size_mismatch.keys()
    usable = [name for name in names if name not in unusable]
    settings = prediction_settings(detector, selection) | {
        "num_heads": detector.predictor.model.config.num_heads,
        "annotations": annotations.digest,
        "part": part,
    }
    # The file of the model may have been moved.
    del settings["model"]
    partial = out / PARTIAL
    batches = list(_read_partial(partial, settings))
    # An interrupted command may have left a damaged line.
    with atomic_write(partial) as temporary, open(temporary, "wb") as file:
        file.writelines(map(_to_line, chain([settings], map(_to_json, batches))))
    found = {one.image_id: one for one in chain.from_iterable(batches)}
    done = {index for index, name in enumerate(usable) if name in found}
    with (
        Progress(len(usable), "predicting", "images", initial=len(done)) as progress,
        open(partial, "ab") as file,
    ):
        for batch in detector.predictor.stream_batches(
            [folder / name for name in usable], batch_size, default_num_workers(workers), done
        ):
            new = []
            for prediction in batch:
                if isinstance(prediction, UnreadableImage):
                    logger.warning(prediction.reason)
                else:
                    name = usable[prediction.index]
                    found[name] = selection.select(replace(prediction.detections, image_id=name))
                    new.append(found[name])
                progress.update()
            file.write(_to_line(_to_json(new)))
            file.flush()
    predicted = [found[name] for name in names if name in found]
    write_predictions(target, dataset.detections_to_file(part, predicted), dataset.vocabulary)
    partial.unlink()
    if len(found) < len(names):
        raise InputError(
            f"{len(names) - len(found)} of {len(names)} images could not be read and are missing in"
            f" {target}"
        )
    return target


def _read_partial(file: Path, settings: dict[str, Any]) -> Iterator[list[Detections]]:
    """Batches of an interrupted prediction with the same settings, up to the first damaged line."""
    with suppress(FileNotFoundError, ValueError), open(file, encoding="utf-8") as lines:
        if json.loads(lines.readline()) == settings:
            for line in lines:
                yield [_from_json(row) for row in json.loads(line)]


def _to_line(value: Any) -> bytes:
    return encode_utf8(json.dumps(value, ensure_ascii=False) + "\n")


def _to_json(batch: Iterable[Detections]) -> list[dict[str, Any]]:
    # JSON numbers are doubles, which hold float32 values exactly.
    return [
        {
            "image_id": one.image_id,
            "boxes": one.boxes.tolist(),
            "labels": one.labels.tolist(),
            "hois": one.hois.tolist(),
            "scores": one.scores.tolist(),
        }
        for one in batch
    ]


def _from_json(row: dict[str, Any]) -> Detections:
    return Detections(
        image_id=row["image_id"],
        boxes=np.array(row["boxes"], dtype=np.float32).reshape(-1, 4),
        labels=np.array(row["labels"], dtype=np.int64),
        hois=np.array(row["hois"], dtype=np.int64).reshape(-1, 3),
        scores=np.array(row["scores"], dtype=np.float32),
    )
