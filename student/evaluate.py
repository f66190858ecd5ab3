"""Evaluates a student on a dataset's test part: predictions, scores, results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.predictions import PREDICTIONS, write_predictions
from evaluation.results import Results, write_results
from evaluation.scoring import Scoring, scored_fields
from evaluation.vcoco_run import score_run
from pipeline.datasets import Dataset, open_dataset
from pipeline.devices import resolve_device, spare_cores
from pipeline.errors import InputError
from pipeline.files import refuse_existing
from pipeline.splits import Split, load_split
from student.checkpoints import checkpoint_path, load_checkpoint, restore
from student.metrics import METRICS
from student.model import HOIDetector
from student.predict import predict
from student.recipe import Recipe

RESULTS = "results.json"


@dataclass(frozen=True)
class Evaluated:
    """What results say about the model they are of; see `evaluation.results.Results`."""

    name: str
    split: Split
    training_split: str | None
    protocol: Any
    distillation: bool | None
    seed: int | None
    metrics_log: Path | None


def evaluate_model(
    model: HOIDetector,
    recipe: Recipe,
    dataset: Dataset,
    source: Evaluated,
    out: Path,
    device: torch.device,
    workers: int,
    scoring: Scoring | None = None,
) -> Results:
    """Predicts the test part, scores it, writes `predictions.json` and `results.json`."""
    annotations = dataset.load("test")
    if line := annotations.blemish_line():
        print(line)
    records = dataset.records(annotations)
    out.mkdir(parents=True, exist_ok=True)
    detections = predict(
        model,
        records,
        dataset.vocabulary,
        recipe.train.augmentation,
        device,
        workers=workers,
    )
    write_predictions(out / PREDICTIONS, detections, dataset.vocabulary)
    results = Results(
        name=source.name,
        kind="student",
        dataset=dataset.name,
        split=source.split.name,
        num_images=len(records),
        protocol=source.protocol,
        training_split=source.training_split,
        distillation=source.distillation,
        seed=source.seed,
        dataset_path=dataset.root,
        predictions=out / PREDICTIONS,
        metrics_log=source.metrics_log,
        extra=score_run(dataset, detections, source.name, out),
        **scored_fields(
            annotations.annotations,
            detections,
            dataset.vocabulary,
            source.split.unseen,
            scoring or Scoring(),
        ),
    )
    write_results(out / RESULTS, results)
    return results


def evaluate_checkpoint(
    path: Path,
    data: Path,
    split: str | None,
    out: Path | None,
    device: str,
    workers: int | None,
    overwrite: bool,
    scoring: Scoring | None = None,
) -> Results:
    """Evaluates a run or a checkpoint of ours on a dataset's test part.

    Args:
        path: run folder or checkpoint file.
        data: dataset folder.
        split: whose groups to report; None takes the run's.
        out: folder for predictions and results; None takes the run folder.
        device: where to predict.
        workers: processes that read images; None takes the spare cores.
        overwrite: replace results that are there.
        scoring: settings and NMS; None for both settings without NMS.

    Raises:
        InputError: nothing of the kind, another vocabulary than the dataset's, or results that
            are not to be replaced.
    """
    file = checkpoint_path(path)
    checkpoint = load_checkpoint(file)
    dataset = open_dataset(data)
    if checkpoint.vocabulary.digest() != dataset.vocabulary.digest():
        raise InputError(
            f"{file}: expected a student of the vocabulary {dataset.vocabulary.name},"
            f" found {checkpoint.vocabulary.name}"
        )
    trained = checkpoint.split
    asked = trained if split is None else load_split(dataset.vocabulary, split)
    recipe, out = checkpoint.recipe, out or file.parent
    refuse_existing(out / RESULTS, overwrite)
    source = Evaluated(
        name=file.resolve().parent.name,
        split=asked,
        training_split=trained.name,
        protocol=recipe.targets.candidates,
        distillation=recipe.targets.distillation,
        seed=recipe.train.seed,
        metrics_log=file.parent / METRICS if (file.parent / METRICS).is_file() else None,
    )
    return evaluate_model(
        restore(checkpoint, file),
        recipe,
        dataset,
        source,
        out,
        resolve_device(device),
        spare_cores(workers),
        scoring,
    )
