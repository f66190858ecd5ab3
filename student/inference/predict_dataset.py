"""Predicts a dataset part into a predictions file, resumable after an interruption.

Detections are appended to a journal as they are computed; the same command reads it, predicts the
remaining images, writes the predictions file and removes the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from evaluation.hico.nms import NmsConfig, pairwise_nms
from evaluation.predictions import PREDICTIONS_FILE, write_predictions
from pipeline.datasets.dataset import open_dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.types import Detections
from pipeline.utils.devices import default_num_workers, resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.files import add_missing_filename, atomic_write, differing_keys, refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from student.inference.model import ModelSpec, load_inference_model
from student.inference.predict import UnreadableImage
from student.inference.predict_images import prediction_settings

logger = get_logger(__name__)

JOURNAL = "predictions.partial.jsonl"


@dataclass(frozen=True)
class PredictDatasetConfig:
    """Settings of `predict_dataset`; those not named here are as in `PredictImagesConfig`.

    Attributes:
        data: dataset folder.
        part: "train" or "test".
        out: folder for the predictions file.
    """

    model: ModelSpec
    data: Path
    part: str
    out: Path
    threshold: float
    top: int
    batch_size: int
    workers: int | None
    device: str
    overwrite: bool
    nms: NmsConfig | None = None


def predict_dataset(config: PredictDatasetConfig) -> Path:
    """Predicts a dataset part, and resumes an interrupted prediction with the same settings.

    Returns:
        The predictions file, in the HOIA/PPDM form.

    Raises:
        InputError: dataset or part do not exist, the model has another vocabulary, or the
            predictions file exists; or, after the file is written, images could not be read and
            are missing in it.
    """
    target = config.out / PREDICTIONS_FILE
    refuse_existing(target, config.overwrite)
    dataset = open_dataset(config.data)
    annotations = dataset.load(config.part)
    folder = dataset.part(config.part).images
    names = [annotation.image_id for annotation in annotations.annotations]
    sizes = check_image_sizes(dataset, annotations)
    sizes.raise_errors()
    for line in sizes.warnings():
        logger.warning(line)
    device = resolve_device(config.device)
    loaded = load_inference_model(config.model, dataset.vocabulary)
    if loaded.vocabulary.digest() != dataset.vocabulary.digest():
        raise InputError(
            f"{loaded.file}: expected a detector of the vocabulary {dataset.vocabulary.name},"
            f" found {loaded.vocabulary.name}"
        )
    settings = prediction_settings(loaded, config.threshold, config.top, config.nms)
    settings |= {"annotations": annotations.digest, "part": config.part}
    config.out.mkdir(parents=True, exist_ok=True)
    journal = config.out / JOURNAL
    found = {detections.image_id: detections for detections in _read_journal(journal, settings)}
    unusable = sizes.orientation_mismatch.keys() | sizes.size_mismatch.keys()
    remaining = [name for name in names if name not in found and name not in unusable]
    failed = len(unusable)
    with (
        atomic_write(journal) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for value in (settings, *map(_to_json, found.values())):
            _append_line(file, value)
    with (
        Progress(
            len(names), "predicting", "images", initial=len(names) - len(remaining)
        ) as progress,
        add_missing_filename(journal),
        open(journal, "a", encoding="utf-8", errors="backslashreplace") as file,
    ):
        stream = loaded.to(device).stream(
            [folder / name for name in remaining],
            config.batch_size,
            default_num_workers(config.workers),
        )
        for prediction in stream:
            if isinstance(prediction, UnreadableImage):
                failed += 1
                logger.warning(prediction.reason)
            else:
                name = remaining[prediction.index]
                detections = replace(prediction.detections, image_id=name)
                found[name] = _filter_detections(detections, config)
                _append_line(file, _to_json(found[name]))
            progress.update()
    predicted = [found[name] for name in names if name in found]
    write_predictions(target, dataset.detections_to_file(config.part, predicted), loaded.vocabulary)
    journal.unlink()
    if failed:
        raise InputError(
            f"{failed} of {len(names)} images could not be read and are missing in {target}"
        )
    return target


def _filter_detections(detections: Detections, config: PredictDatasetConfig) -> Detections:
    if config.nms is not None:
        detections = pairwise_nms(detections, config.nms)
    kept = np.flatnonzero(detections.scores >= config.threshold)[: config.top]
    return replace(detections, hois=detections.hois[kept], scores=detections.scores[kept])


def _append_line(file: IO[str], value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
    file.flush()


def _to_json(detections: Detections) -> dict[str, Any]:
    # JSON numbers are doubles, which hold float32 values exactly.
    return {
        "image_id": detections.image_id,
        **{
            name: getattr(detections, name).tolist()
            for name in ("boxes", "labels", "hois", "scores")
        },
    }


def _read_journal(journal: Path, settings: dict[str, Any]) -> Iterator[Detections]:
    """Detections in the journal of a command with the same settings.

    Reading ends at the first damaged line, which an interrupted command may leave at the end.
    """
    with suppress(FileNotFoundError, ValueError), open(journal, encoding="utf-8") as file:
        if differing_keys(json.loads(file.readline()), settings):
            return
        for line in file:
            value = json.loads(line)
            yield Detections(
                image_id=value["image_id"],
                boxes=np.array(value["boxes"], dtype=np.float32).reshape(-1, 4),
                labels=np.array(value["labels"], dtype=np.int64),
                hois=np.array(value["hois"], dtype=np.int64).reshape(-1, 3),
                scores=np.array(value["scores"], dtype=np.float32),
            )
