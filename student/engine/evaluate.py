"""Evaluation on a dataset's test part: predictions, scores, result files and drawings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.drawing.samples import SAMPLES_FOLDER, draw_samples
from evaluation.predictions import PREDICTIONS_FILE, write_predictions
from evaluation.report.write import REPORT_FILE
from evaluation.results import Results, write_results, write_vcoco_results
from evaluation.score_hico import ScoringConfig, score_to_fields
from evaluation.score_vcoco import VCOCO_RESULTS_FILE, score_run
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, load_split
from pipeline.utils.devices import default_num_workers
from pipeline.utils.files import refuse_existing
from student.config import Recipe
from student.data.dataset_part import open_test_part
from student.engine.metrics_log import METRICS
from student.inference.batch_predictor import BatchPredictor
from student.utils.distributed import Execution, init_distributed
from student.weights.checkpoint_file import checkpoint_path
from student.weights.load import load_student

RESULTS = "results.json"


def evaluate_model(
    predictor: BatchPredictor,
    dataset: Dataset,
    split: Split,
    out: Path,
    execution: Execution,
    scoring: ScoringConfig | None = None,
    skip_unreadable: bool = False,
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
        about_model: fields of `Results` that describe the model.

    Returns:
        The results in the main process, None in the others.

    Raises:
        InputError: annotations or images cannot be used.
    """
    part = open_test_part(dataset, execution.context, skip_unreadable)
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
        dataset_path=dataset.root,
        predictions=out / PREDICTIONS_FILE,
        vcoco=score_run(dataset, detections),
        **about_model,
        **score_to_fields(
            annotations, detections, dataset.vocabulary, split.unseen, scoring or ScoringConfig()
        ),
    )
    write_results(out / RESULTS, results)
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
    recipe: Recipe, split: Split, sources: tuple[dict[str, Any], ...]
) -> dict[str, Any]:
    """Fields of `Results` that describe how a student was trained.

    The candidates' protocol is "annotated" where any training dataset used annotated boxes.
    """
    protocols = {recipe.targets.candidates, *(source["protocol"] for source in sources)}
    return {
        "training_split": split.name,
        "protocol": "annotated" if "annotated" in protocols else "detector",
        "distillation": recipe.targets.distillation,
        "seed": recipe.train.seed,
        "shots": recipe.train.shots,
        "sources": sources,
    }


def evaluate_checkpoint(
    path: Path,
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
) -> Results | None:
    """Evaluates a run, a student checkpoint or a published checkpoint on a dataset's test part.

    Args:
        path: run folder or checkpoint file.
        data: dataset folder.
        split: split that defines seen and unseen; None takes the run's, or "full" for a published
            checkpoint.
        out: folder for predictions and results; None takes the run folder, or for a published
            checkpoint a new folder beside it.
        device, overwrite: device to predict on; replace existing results.
        workers: number of threads that read images; None takes the spare cores.
        scoring: settings and NMS; None scores both settings without NMS.
        num_heads: attention heads of a published checkpoint whose `args` do not name them.
        prompts: prompts file with actions of the dataset that the student was not trained on.
        skip_unreadable: treat unreadable images as images without detections.

    Returns:
        The results in the main process, None in the others.

    Raises:
        InputError: the file is not a detector's checkpoint, its vocabulary is not the dataset's, or
            results exist.
    """
    file = checkpoint_path(path)
    dataset = open_dataset(data)
    loaded = load_student(file, dataset.vocabulary, num_heads, prompts)
    evaluated_split = loaded.split if split is None else load_split(dataset.vocabulary, split)
    recipe = loaded.recipe
    out = out or (file.parent / f"{file.stem}-evaluation" if loaded.is_published else file.parent)
    for name in (RESULTS, REPORT_FILE):
        refuse_existing(out / name, overwrite)
    about_model: dict[str, Any] = {"name": file.stem}
    if not loaded.is_published:
        metrics = file.parent / METRICS
        about_model = {
            "name": file.resolve().parent.name,
            "metrics_log": metrics if metrics.is_file() else None,
            **describe_student(recipe, loaded.split, loaded.sources),
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
            **about_model,
        )
