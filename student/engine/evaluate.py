"""Evaluation on a dataset's test part, and validation on held-out training images (`--val-size`).

An evaluation writes predictions, scores and drawings to the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.drawing.samples import SAMPLES_FOLDER, draw_samples
from evaluation.hico.average_precision import evaluate, summarize
from evaluation.predictions import PREDICTIONS_FILE, write_predictions
from evaluation.report.write import REPORT_FILE
from evaluation.results import RESULTS_FILE, Results, write_results, write_vcoco_results
from evaluation.score_hico import ScoringConfig, evaluate_part, score_to_fields
from evaluation.score_vcoco import VCOCO_RESULTS_FILE, score_run
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, load_split, remove_unseen_labels
from pipeline.types import Annotation, ImageRecord
from pipeline.utils.devices import default_num_workers
from pipeline.utils.errors import InputError
from pipeline.utils.files import refuse_existing, sha256_of_json
from pipeline.vocabulary import Vocabulary
from student.config import Recipe
from student.data.dataset_part import LoadedPart, open_test_part
from student.engine.metrics_log import METRICS
from student.inference.batch_predictor import BatchPredictor
from student.utils.distributed import Execution, init_distributed
from student.utils.seeding import derive_seed
from student.weights.load import load_student
from student.weights.zoo import MODELS, find_checkpoint


def evaluate_model(
    predictor: BatchPredictor,
    dataset: Dataset,
    split: Split,
    out: Path,
    execution: Execution,
    scoring: ScoringConfig | None = None,
    skip_unreadable: bool = False,
    limit: int | None = None,
    **about_model: Any,
) -> Results | None:
    """Predicts and scores the test part; writes predictions, results and drawings.

    Args:
        predictor, dataset: detector to evaluate, and the dataset.
        split: defines seen and unseen.
        out: output folder.
        execution: device and processes, all of which have to call this.
        scoring: settings and NMS; None scores both settings without NMS.
        skip_unreadable: treat unreadable images as images without detections.
        limit: see `AnnotationFile.limited`.
        about_model: fields of `Results` that describe the model.

    Returns:
        The results in the main process, None in the others.

    Raises:
        InputError: annotations or images cannot be used.
    """
    part = open_test_part(dataset, execution.context, skip_unreadable, limit)
    detected = predictor.to(execution.device).predict(
        part.records, execution.context, execution.workers
    )
    if not execution.context.is_main_process:
        return None
    out.mkdir(parents=True, exist_ok=True)
    annotations, detections = part.annotation_file.annotations, part.with_empty_detections(detected)
    file_detections = dataset.detections_to_file("test", detections)
    write_predictions(out / PREDICTIONS_FILE, file_detections, dataset.vocabulary)
    results = Results(
        kind="student",
        dataset=dataset.name,
        split=split.name,
        num_images=len(annotations),
        limit=part.annotation_file.limit,
        dataset_path=dataset.root,
        predictions=out / PREDICTIONS_FILE,
        vcoco=score_run(dataset, detections),
        **about_model,
        **score_to_fields(
            annotations,
            detections,
            dataset.vocabulary,
            split.unseen,
            scoring or ScoringConfig(),
            part.annotation_file.swig_images,
        ),
    )
    write_results(out / RESULTS_FILE, results)
    if results.vcoco is not None:
        write_vcoco_results(out / VCOCO_RESULTS_FILE, results)
    draw_samples(
        out / SAMPLES_FOLDER / "test",
        part.records,
        part.annotations,
        detected,
        dataset.vocabulary,
        split.unseen,
    )
    return results


def describe_student(
    recipe: Recipe, split: Split, sources: tuple[dict[str, Any], ...], limit: int | None
) -> dict[str, Any]:
    """Fields of `Results` that describe how a student was trained.

    The candidates' protocol is "annotated" where any training dataset used annotated boxes.
    """
    settings = recipe.to_dict()
    settings["train"] |= {"seed": None, "shot_seed": None}
    split_fields = [split.name, sorted(split.unseen), split.distilled_verbs.tolist()]
    protocols = {recipe.targets.candidates, *(source["protocol"] for source in sources)}
    return {
        "training_split": split.name,
        "training_limit": limit,
        "protocol": "annotated" if "annotated" in protocols else "detector",
        "distillation": recipe.targets.distillation,
        "seed": recipe.train.seed,
        "recipe": sha256_of_json([settings, split_fields, limit]),
        "shots": recipe.train.shots,
        "sources": sources,
    }


def evaluate_checkpoint(
    path: Path | str,
    data: Path,
    split: str | None,
    out: Path | None,
    device: str,
    workers: int | None,
    overwrite: bool,
    scoring: ScoringConfig | None = None,
    num_heads: int | None = None,
    prompts: Path | None = None,
    skip_unreadable: bool = False,
    limit: int | None = None,
) -> Results | None:
    """Evaluates a run, a student checkpoint or a published checkpoint on a dataset's test part.

    Args:
        path: run folder, checkpoint file, or name of weights of the package.
        data: dataset folder.
        split: split that defines seen and unseen; None takes the run's, or "full" for a published
            checkpoint.
        out: folder for predictions and results; None takes the run folder, or for a published
            checkpoint a new folder beside it. Weights of the package need one.
        device, overwrite: device to predict on; replace existing results.
        workers: number of threads that read images; None takes the spare cores.
        scoring: settings and NMS; None scores both settings without NMS.
        num_heads: attention heads of a published checkpoint whose `args` do not name them.
        prompts: prompts file with actions of the dataset that the student was not trained on.
        skip_unreadable: treat unreadable images as images without detections.
        limit: see `AnnotationFile.limited`.

    Returns:
        The results in the main process, None in the others.

    Raises:
        InputError: the file is not a detector's checkpoint, its vocabulary is not the dataset's,
            results exist, or weights of the package are evaluated without `out`.
    """
    file = find_checkpoint(path)
    is_ready = file.parent == MODELS
    if is_ready and out is None:
        raise InputError("--out: expected a folder for results of ready weights, found none")
    dataset = open_dataset(data)
    loaded = load_student(file, dataset.vocabulary, num_heads, prompts)
    evaluated_split = loaded.split if split is None else load_split(dataset.vocabulary, split)
    recipe = loaded.recipe
    out = out or (file.parent / f"{file.stem}-evaluation" if loaded.is_published else file.parent)
    for name in (RESULTS_FILE, REPORT_FILE):
        refuse_existing(out / name, overwrite)
    about_model: dict[str, Any] = {"name": file.stem}
    if not loaded.is_published:
        metrics = file.parent / METRICS
        about_model = {
            "name": file.stem if is_ready else file.resolve().parent.name,
            "metrics_log": metrics if metrics.is_file() else None,
            **describe_student(recipe, loaded.split, loaded.sources, loaded.limit),
        }
    predictor = BatchPredictor(loaded.model, loaded.vocabulary, recipe.train)
    with init_distributed(device) as (context, local_device):
        threads = default_num_workers(workers, processes=context.local_world_size)
        return evaluate_model(
            predictor,
            dataset,
            evaluated_split,
            out,
            Execution(local_device, context, threads),
            scoring,
            skip_unreadable,
            limit,
            **about_model,
        )


# Makes the choice of validation images independent of other random numbers of the same seed.
SEED_STREAM = 0x401D


def split_validation(val_size: float, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Draws the held-out images; equal arguments give equal images.

    Args:
        val_size: fraction of the images (below 1), or their number.
        size: number of images.
        seed: seed of the run.

    Returns:
        Indices to train on and held-out indices, both ascending.

    Raises:
        InputError: no image would be left to train on.
    """
    count = max(1, round(val_size * size)) if 0 < val_size < 1 else int(val_size)
    if count >= size:
        raise InputError(f"val_size: expected fewer than the {size} training images, found {count}")
    rng = np.random.default_rng(derive_seed(seed, SEED_STREAM))
    held = np.zeros(size, dtype=bool)
    held[rng.choice(size, count, replace=False)] = True
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


@dataclass(frozen=True, eq=False)
class Tester:
    """Evaluates a model on the test images every few epochs, for curves only.

    Attributes:
        part: the test images and their annotations.
        split: defines seen and unseen.
        vocabulary: vocabulary of the annotations.
        every: number of epochs between evaluations; the last one is left to `evaluate_model`.
    """

    part: LoadedPart
    split: Split
    vocabulary: Vocabulary
    every: int

    def evaluate(
        self, predictor: BatchPredictor, execution: Execution, drawings: Path
    ) -> dict[str, float]:
        """Scores the model and draws its detections on a fixed sample of the images.

        All processes have to call this; the model is put into eval mode.

        Returns:
            The mAP of full, seen and unseen in the default setting, as fractions.
        """
        part, unseen = self.part, self.split.unseen
        detections = predictor.to(execution.device).predict(
            part.records, execution.context, execution.workers
        )
        if execution.context.is_main_process:
            draw_samples(
                drawings, part.records, part.annotations, detections, self.vocabulary, unseen
            )
        scores = evaluate_part(part.annotation_file, detections, self.vocabulary)
        metrics = summarize(scores, self.vocabulary, unseen)
        means = {name: metrics.get(name) for name in ("full", "seen", "unseen")}
        return {name: value for name, value in means.items() if value is not None}


class Validator:
    """Evaluates a model on held-out images.

    Args:
        records, annotations: the images and their annotations, in the same order.
        split: split whose unseen labels are removed from the annotations.
        vocabulary: vocabulary of the annotations.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        annotations: Sequence[Annotation],
        split: Split,
        vocabulary: Vocabulary,
    ) -> None:
        self.records, self.vocabulary = records, vocabulary
        self.annotations = [
            remove_unseen_labels(annotation, split, vocabulary) for annotation in annotations
        ]

    def evaluate(
        self, predictor: BatchPredictor, execution: Execution, drawings: Path
    ) -> dict[str, float]:
        """Scores the model and draws its detections on a fixed sample of the images.

        All processes have to call this; the model is put into eval mode.

        Returns:
            Metrics as fractions: `seen`, the mAP over seen interactions, by which checkpoints are
            chosen, and `mean_max_recall`. Empty if the images have no labels.
        """
        detections = predictor.to(execution.device).predict(
            self.records, execution.context, execution.workers
        )
        if execution.context.is_main_process:
            draw_samples(drawings, self.records, self.annotations, detections, self.vocabulary)
        scores = evaluate(self.annotations, detections, self.vocabulary)
        seen = scores.mean_ap()
        if seen is None:
            return {}
        return {"seen": seen, "mean_max_recall": float(np.nanmean(scores.max_recall))}
