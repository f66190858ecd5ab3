"""The `eoid-train` command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evaluation.cli import details_option, scoring_from, scoring_options
from pipeline.cli import config_option, device_option, run_command

if TYPE_CHECKING:
    from evaluation.results import Results

COUNT = click.IntRange(min=1)
PATH = click.Path(path_type=Path)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that read images; default: as many as there are spare cores, at most 8.",
)


@click.group()
def train() -> None:
    """Phase two: train the student on a teacher cache, evaluate it."""


@train.command()
@click.option("--data", required=True, type=PATH, help="Dataset folder.")
@click.option("--cache", required=True, type=PATH, help="Teacher cache of its training part.")
@click.option("--split", required=True, help="Zero-shot split: a name or a TOML file.")
@click.option("--out", required=True, type=PATH, help="Run folder.")
@click.option(
    "--preset",
    type=click.Choice(["published", "world"]),
    default="published",
    show_default=True,
    help="The recipe that the options below change.",
)
@click.option(
    "--init",
    type=PATH,
    help="Weights to start from: DETR, EoID, CDN, a run, a torchvision ResNet or detector.",
)
@click.option("--no-distillation", is_flag=True, help="The control: silence the teacher.")
@click.option("--candidates", type=click.Choice(["detector", "annotated"]))
@click.option("--queries", type=click.Choice(["learned", "pairs"]))
@click.option("--num-queries", type=COUNT)
@click.option("--backbone", type=click.Choice(["resnet18", "resnet34", "resnet50", "resnet101"]))
@click.option("--num-encoder-layers", type=click.IntRange(min=0))
@click.option("--num-human-object-layers", type=COUNT)
@click.option("--num-interaction-layers", type=COUNT)
@click.option("--topk", type=click.IntRange(min=0), help="Candidates an image may teach with.")
@click.option("--thres-is", "interactive_threshold", type=click.FloatRange(0, 1))
@click.option("--soft-weight", "verb_soft_weight", type=click.FloatRange(min=0))
@click.option("--soft-normalisation", type=click.Choice(["entries", "pairs", "answers"]))
@click.option("--verb-loss", type=click.Choice(["focal_bce", "bce_bce"]))
@click.option("--epochs", type=COUNT)
@click.option("--batch-size", type=COUNT)
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True))
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--seed", type=click.IntRange(min=0))
@workers_option
@click.option("--name", help="What reports call this run; default: the folder's name.")
@click.option("--overwrite", is_flag=True, help="Replace another run in the folder.")
@device_option
@config_option
def student(
    data: Path,
    cache: Path,
    split: str,
    out: Path,
    preset: str,
    init: Path | None,
    no_distillation: bool,
    workers: int | None,
    name: str | None,
    overwrite: bool,
    device: str,
    **options: Any,
) -> None:
    """Train a student; the same command goes on after a stop. Ends with the test evaluation."""
    from student.run import RunConfig, run_student

    options["distillation"] = False if no_distillation else None
    config = RunConfig(
        data, cache, out, split, preset, options, init, device, workers, overwrite, name
    )
    _conclude(run_student(config))


@train.command()
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=PATH)
@click.option("--data", required=True, type=PATH, help="Dataset folder; its test part is scored.")
@click.option("--split", help="Groups to report; default: the split of the run.")
@click.option("--nheads", type=COUNT, help="Of a published checkpoint that does not say; else 8.")
@click.option("--out", type=PATH, help="Folder for predictions.json, results.json and report.html.")
@click.option("--overwrite", is_flag=True, help="Replace these files.")
@scoring_options
@details_option
@workers_option
@device_option
@config_option
def evaluate(
    checkpoint: Path,
    data: Path,
    split: str | None,
    nheads: int | None,
    out: Path | None,
    workers: int | None,
    overwrite: bool,
    details: tuple[str, ...],
    device: str,
    **options: Any,
) -> None:
    """Predict a dataset's test part and score it.

    Opens a run, a checkpoint of this project, and EoID's and CDN's published checkpoints.
    """
    from student.evaluate import evaluate_checkpoint

    scoring = scoring_from(**options)
    results = evaluate_checkpoint(
        checkpoint, data, split, out, device, workers, overwrite, scoring, nheads
    )
    _conclude(results, details)


def _conclude(results: Results, details: Sequence[str] = ()) -> None:
    """Shows the scores and writes the report beside them."""
    from evaluation.details import tables
    from evaluation.report import report_beside
    from student.evaluate import RESULTS

    click.echo("\n".join(tables([results], details)))
    assert results.predictions is not None, "the evaluation writes them beside the results"
    click.echo(report_beside(results.predictions.with_name(RESULTS)))


def main() -> None:
    """Entry point of `eoid-train`."""
    run_command(train)
