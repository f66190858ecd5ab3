"""Evaluates a student on a dataset's test part: predictions, scores, results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.drawing.samples import PICTURES, draw_beside
from evaluation.predictions import PREDICTIONS, write_predictions
from evaluation.report.write import REPORT
from evaluation.results import Results, write_results, write_vcoco
from evaluation.score_hico import Scoring, scored_fields
from evaluation.score_vcoco import VCOCO_RESULTS, score_run
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.splits import Split, load_split
from pipeline.utils.devices import spare_cores
from pipeline.utils.files import refuse_existing
from student.data.dataset_part import open_test_part
from student.engine.metrics_log import METRICS
from student.inference.predict import Predictor
from student.utils.distributed import Execution, join_team
from student.weights.checkpoint_file import checkpoint_path
from student.weights.load import open_with

RESULTS = "results.json"


@dataclass(frozen=True)
class Evaluated:
    """What results say about the model they are of; see `evaluation.results.Results`."""

    name: str
    split: Split
    training_split: str | None = None
    protocol: Any = None
    distillation: bool | None = None
    seed: int | None = None
    metrics_log: Path | None = None
    shots: int = 0
    sources: tuple[dict[str, Any], ...] = ()


def evaluate_model(
    predictor: Predictor,
    dataset: Dataset,
    source: Evaluated,
    out: Path,
    execution: Execution,
    scoring: Scoring | None = None,
    skip_unreadable: bool = False,
) -> Results | None:
    """Predicts the test part, scores it, writes `predictions.json` and `results.json`.

    With `skip_unreadable`, a picture that cannot be read is one without detections.

    Returns:
        The results; None in every process but the first.

    Raises:
        InputError: annotations or pictures do not fit.
    """
    part = open_test_part(dataset, execution.team, skip_unreadable)
    detected = predictor.to(execution.device).predict(
        part.records, execution.team, execution.workers
    )
    if not execution.team.first:
        return None
    out.mkdir(parents=True, exist_ok=True)
    annotations, detections = part.file.annotations, part.with_unusable(detected)
    in_file = dataset.file_pixels("test", detections)
    write_predictions(out / PREDICTIONS, in_file, dataset.vocabulary)
    results = Results(
        name=source.name,
        kind="student",
        dataset=dataset.name,
        split=source.split.name,
        num_images=len(annotations),
        protocol=_protocol(source),
        training_split=source.training_split,
        distillation=source.distillation,
        seed=source.seed,
        shots=source.shots,
        sources=source.sources,
        dataset_path=dataset.root,
        predictions=out / PREDICTIONS,
        metrics_log=source.metrics_log,
        vcoco=score_run(dataset, detections),
        **scored_fields(
            annotations,
            detections,
            dataset.vocabulary,
            source.split.unseen,
            scoring or Scoring(),
        ),
    )
    write_results(out / RESULTS, results)
    if results.vcoco is not None:
        write_vcoco(out / VCOCO_RESULTS, results)
    draw_beside(
        out / PICTURES / "test",
        part.records,
        part.annotations,
        detected,
        dataset.vocabulary,
        source.split.unseen,
    )
    return results


def _protocol(source: Evaluated) -> Any:
    """Where candidates came from; annotated boxes of any source make it the annotated one."""
    protocols = {one["protocol"] for one in source.sources}
    return "annotated" if "annotated" in protocols else source.protocol


def evaluate_checkpoint(
    path: Path,
    data: Path,
    split: str | None,
    out: Path | None,
    device: str,
    workers: int | None,
    overwrite: bool,
    scoring: Scoring | None = None,
    num_heads: int | None = None,
    prompts: Path | None = None,
    skip_unreadable: bool = False,
) -> Results | None:
    """Evaluates a run, a checkpoint of ours or a published one on a dataset's test part.

    Args:
        path: run folder or checkpoint file.
        data: dataset folder.
        split: whose groups to report; None takes the run's, for a published checkpoint all.
        out: folder for predictions and results; None takes the run folder, for a published
            checkpoint a new one beside it.
        device: where to predict.
        workers: threads that read images; None takes the spare cores.
        overwrite: replace results that are there.
        scoring: settings and NMS; None for both settings without NMS.
        num_heads: attention heads of a published checkpoint that does not say.
        prompts: sentences about actions of the dataset that the student was not trained on.
        skip_unreadable: pictures that cannot be read count as images without detections.

    Returns:
        The results; None in every process but the first.

    Raises:
        InputError: nothing of the kind, another vocabulary than the dataset's, or results that
            are not to be replaced.
    """
    file = checkpoint_path(path)
    dataset = open_dataset(data)
    opened = open_with(file, dataset.vocabulary, num_heads, prompts)
    asked = opened.split if split is None else load_split(dataset.vocabulary, split)
    recipe = opened.recipe
    out = out or (file.parent if opened.ours else file.parent / f"{file.stem}-evaluation")
    for name in (RESULTS, REPORT):
        refuse_existing(out / name, overwrite)
    if opened.ours:
        source = Evaluated(
            name=file.resolve().parent.name,
            split=asked,
            training_split=opened.split.name,
            protocol=recipe.targets.candidates,
            distillation=recipe.targets.distillation,
            seed=recipe.train.seed,
            metrics_log=file.parent / METRICS if (file.parent / METRICS).is_file() else None,
            shots=recipe.train.shots,
            sources=opened.sources,
        )
    else:
        source = Evaluated(file.stem, asked)
    train = recipe.train
    predictor = Predictor(opened.model, opened.vocabulary, train.augmentation, train.precision)
    with join_team(device) as (team, own):
        execution = Execution(own, team, spare_cores(workers, processes=team.local_size))
        return evaluate_model(predictor, dataset, source, out, execution, scoring, skip_unreadable)
