"""The `eoid-train` command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evaluation.scoring_options import details_option, scoring_from, scoring_options
from pipeline.utils.cli import config_option, device_option, run_command

if TYPE_CHECKING:
    from evaluation.results import Results

PATH = click.Path(path_type=Path)
OPTIONS = (
    click.option("--data", required=True, type=PATH, help="Dataset folder."),
    click.option("--cache", required=True, type=PATH, help="Teacher cache of its training part."),
    click.option("--split", required=True, help="Zero-shot split: a name or a TOML file."),
    click.option(
        "--extra",
        multiple=True,
        metavar="DATASET:CACHE",
        help="Further training images, labelled or not, with their cache; may be repeated.",
    ),
    click.option(
        "--mix",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Share of --extra's images in every step; default: their share of all images.",
    ),
    click.option(
        "--shots",
        type=click.IntRange(min=0),
        help="Labelled pairs of every unseen interaction to train on all the same.",
    ),
    click.option("--shot-seed", type=click.IntRange(min=0), help="Chooses them; default: --seed."),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds these options to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


# Ready scripts for SLURM.
SCRIPTS = ("train.sbatch",)
COUNT = click.IntRange(min=1)
RATE = click.FloatRange(min=0, min_open=True)
BACKBONES = ["resnet18", "resnet34", "resnet50", "resnet101", "world"]
ACCUMULATION = "Parts in which each process works through a step, to need less memory."
LAST_BATCH = "An epoch's images beyond whole batches: leave them out, or fill up with its first."
RESUME = "Go on where the run stands, never, or begin at another run's checkpoint."
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that read training images, threads that read others; default: the spare cores.",
)


skip_unreadable_option = click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Count test pictures that are missing or cannot be read as images without detections.",
)


@click.group()
def train() -> None:
    """Phase two: train the student on a teacher cache, evaluate it."""


@train.command()
@source_options
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
@click.option(
    "--candidates",
    type=click.Choice(["detector", "annotated"]),
    help="Pairs without labels; default: what the cache was built for.",
)
@click.option(
    "--ask",
    type=click.Choice(["split", "unseen", "all"]),
    default="split",
    show_default=True,
    help="Verbs the teacher is asked for: as the split has it, those of unseen interactions, all.",
)
@click.option("--topk", type=click.IntRange(min=0), help="Candidates an image may teach with.")
@click.option(
    "--thres-is",
    "interactive_threshold",
    type=click.FloatRange(0, 1),
    help="Interactive probability above which a candidate may teach.",
)
@click.option(
    "--soft-weight",
    "verb_soft_weight",
    type=click.FloatRange(min=0),
    help="Weight of the teacher's answers.",
)
@click.option(
    "--soft-normalisation",
    type=click.Choice(["entries", "pairs", "answers"]),
    help="What their loss is divided by: all entries, matched pairs, or answers to these.",
)
@click.option(
    "--verb-loss",
    type=click.Choice(["focal_bce", "bce_bce"]),
    help="Labels by focal loss or cross-entropy; the teacher's answers by cross-entropy.",
)
@click.option(
    "--verb-head",
    type=click.Choice(["linear", "text"]),
    help="A weight for each verb, or the cache's sentences, to which others can be added later.",
)
@click.option(
    "--embedding-weight",
    type=click.FloatRange(min=0),
    help="With --verb-head text: how much the teacher's view of a pair's region teaches.",
)
@click.option("--backbone", type=click.Choice(BACKBONES), help="What makes features of pixels.")
@click.option(
    "--queries", type=click.Choice(["learned", "pairs"]), help="Learned, or pairs found first."
)
@click.option("--num-queries", type=COUNT, help="Pairs that are predicted for an image.")
@click.option("--num-encoder-layers", type=click.IntRange(min=0), help="Depth of the encoder.")
@click.option("--num-human-object-layers", type=COUNT, help="Depth of the decoder of boxes.")
@click.option("--num-interaction-layers", type=COUNT, help="Depth of the decoder of verbs.")
@click.option("--dropout", type=click.FloatRange(0, 1), help="In every transformer layer.")
@click.option(
    "--vdetach/--no-vdetach",
    "detach_verb_queries",
    default=None,
    help="Keep verb gradients out of localisation.",
)
@click.option("--epochs", type=COUNT, help="Times that the training images are gone through.")
@click.option("--batch-size", type=COUNT, help="Images a step, over all processes together.")
@click.option("--accumulation", type=COUNT, default=1, show_default=True, help=ACCUMULATION)
@click.option("--learning-rate", type=RATE, help="AdamW's, of all but the backbone.")
@click.option("--backbone-learning-rate", type=click.FloatRange(min=0), help="0 leaves it alone.")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="AdamW's.")
@click.option(
    "--clip-norm", type=click.FloatRange(min=0), help="Largest gradient norm; 0 clips nothing."
)
@click.option("--schedule", type=click.Choice(["step", "one_cycle"]), help="Of the learning rate.")
@click.option(
    "--drop-epoch", type=click.IntRange(min=0), help="step: from here on a tenth of the rate."
)
@click.option(
    "--warmup-steps", type=click.IntRange(min=0), help="step: first steps, in which the rate rises."
)
@click.option(
    "--ema", type=click.FloatRange(0, 1, max_open=True), help="Decay of averaged weights."
)
@click.option("--last-batch", type=click.Choice(["drop", "fill"]), help=LAST_BATCH)
@click.option(
    "--augmentation",
    type=click.Choice(["published", "world"]),
    help="DETR's (flip, colours, sizes, crop), or flip and colours.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "tf32", "bfloat16"]),
    help="auto: bfloat16 where the hardware is quick at it.",
)
@click.option("--compile", "compiled", is_flag=True, help="Translate the model with torch.compile.")
@click.option("--seed", type=click.IntRange(min=0), help="Of weights, order and augmentation.")
@click.option(
    "--hold-out",
    type=click.FloatRange(min=0),
    help="Training images to evaluate on instead: a share below 1, or their number.",
)
@click.option("--evaluate-every", type=click.IntRange(min=0), help="Epochs between evaluations.")
@click.option("--keep", type=click.Choice(["last", "best"]), help="The weights to end with.")
@click.option("--resume", default="auto", show_default=True, metavar="auto|never|FILE", help=RESUME)
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    default=15,
    show_default=True,
    help="Longest time between checkpoints; one is written after every epoch too.",
)
@click.option("--log-every", type=COUNT, default=10, show_default=True, help="Steps a log line.")
@click.option("--tensorboard", is_flag=True, help="Also log into RUN/tensorboard.")
@click.option("--report/--no-report", default=True, help="End with a page, RUN/report.html.")
@skip_unreadable_option
@workers_option
@click.option("--name", help="What reports call this run; default: the folder's name.")
@click.option("--overwrite", is_flag=True, help="Replace another run in the folder.")
@device_option
@config_option
def student(
    data: Path,
    cache: Path,
    split: str,
    extra: tuple[str, ...],
    out: Path,
    preset: str,
    init: Path | None,
    no_distillation: bool,
    ask: str,
    accumulation: int,
    compiled: bool,
    resume: str,
    checkpoint_minutes: float,
    log_every: int,
    tensorboard: bool,
    report: bool,
    workers: int | None,
    name: str | None,
    overwrite: bool,
    skip_unreadable: bool,
    device: str,
    **options: Any,
) -> None:
    """Train a student; the same command goes on after a stop. Ends with the test evaluation.

    Where an option names no default, it is the preset's.
    """
    from student.data.extra_data import find_places
    from student.engine.run import RunConfig, run_student
    from student.engine.run_inputs import Wanted

    options["distillation"] = False if no_distillation else None
    config = RunConfig(
        Wanted(data, cache, split, preset, options, ask, find_places(extra), skip_unreadable),
        out,
        init=init,
        device=device,
        workers=workers,
        accumulation=accumulation,
        compiled=compiled,
        resume=resume,
        checkpoint_minutes=checkpoint_minutes,
        log_every=log_every,
        tensorboard=tensorboard,
        overwrite=overwrite,
        name=name,
    )
    results = run_student(config)
    if results is not None:
        _conclude(results, report=report)


@train.command()
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=PATH)
@click.option("--data", required=True, type=PATH, help="Dataset folder; its test part is scored.")
@click.option("--split", help="Groups to report; default: the split of the run.")
@click.option("--nheads", type=COUNT, help="Of a published checkpoint that does not say; else 8.")
@click.option("--prompts", type=PATH, help="Texts of eoid-cache prompts about further actions.")
@click.option("--out", type=PATH, help="Folder for predictions, results, pictures and report.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@scoring_options
@details_option
@skip_unreadable_option
@workers_option
@device_option
@config_option
def evaluate(
    checkpoint: Path,
    data: Path,
    split: str | None,
    nheads: int | None,
    prompts: Path | None,
    out: Path | None,
    workers: int | None,
    overwrite: bool,
    details: tuple[str, ...],
    skip_unreadable: bool,
    device: str,
    **options: Any,
) -> None:
    """Predict a dataset's test part and score it.

    Opens a run, a checkpoint of this project, and EoID's and CDN's published checkpoints.
    """
    from student.engine.evaluate import evaluate_checkpoint

    scoring = scoring_from(**options)
    results = evaluate_checkpoint(
        checkpoint,
        data,
        split,
        out,
        device,
        workers,
        overwrite,
        scoring,
        nheads,
        prompts,
        skip_unreadable,
    )
    if results is not None:
        _conclude(results, details)


@train.command("batch-scripts")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--overwrite", is_flag=True, help="Replace scripts that are there.")
@config_option
def batch_scripts(folder: Path, overwrite: bool) -> None:
    """Copy ready scripts for SLURM into DIR."""
    from pipeline.utils.files import copy_scripts

    for path in copy_scripts("student.engine", SCRIPTS, folder, overwrite):
        click.echo(path)


def _conclude(results: Results, details: Sequence[str] = (), report: bool = True) -> None:
    """Shows the scores and writes the report beside them."""
    from evaluation.report.write import report_beside
    from evaluation.tables import tables
    from student.engine.evaluate import RESULTS

    click.echo("\n".join(tables([results], details)))
    if report:
        assert results.predictions is not None, "the evaluation writes them beside the results"
        click.echo(report_beside(results.predictions.with_name(RESULTS), known=results))


def main() -> None:
    """Entry point of `eoid-train`."""
    run_command(train)


if __name__ == "__main__":
    main()
