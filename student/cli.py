"""The `eoid-train` command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evaluation.scoring_options import build_scoring_config, details_option, scoring_options
from pipeline.utils.cli import config_option, device_option, run_command

if TYPE_CHECKING:
    from evaluation.results import Results

PATH = click.Path(path_type=Path)
DATA_OPTIONS = (
    click.option("--data", required=True, type=PATH, help="Dataset folder."),
    click.option(
        "--cache", required=True, type=PATH, help="Teacher cache of the dataset's training part."
    ),
    click.option("--split", required=True, help="Zero-shot split: a name or a TOML file."),
    click.option(
        "--extra-data",
        multiple=True,
        metavar="DATASET:CACHE",
        help=(
            "Additional training images, labelled or unlabelled, with their teacher cache. "
            "Can be given several times."
        ),
    ),
    click.option(
        "--extra-ratio",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help=("Fraction of every batch taken from --extra-data; default: its share of all images."),
    ),
    click.option(
        "--shots",
        type=click.IntRange(min=0),
        help="Few-shot setting: number of labelled pairs kept per unseen interaction.",
    ),
    click.option(
        "--shot-seed",
        type=click.IntRange(min=0),
        help="Seed of the few-shot selection; default: --seed.",
    ),
)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds these options to a command."""
    for option in reversed(DATA_OPTIONS):
        command = option(command)
    return command


# Ready scripts for SLURM.
BATCH_SCRIPTS = ("train.sbatch",)
POSITIVE_INT = click.IntRange(min=1)
POSITIVE_FLOAT = click.FloatRange(min=0, min_open=True)
BACKBONES = ["resnet18", "resnet34", "resnet50", "resnet101", "toy"]
ACCUMULATION_HELP = (
    "Number of parts that each process accumulates a batch over, to need less memory."
)
LAST_BATCH_HELP = (
    "An epoch's images beyond whole batches: leave them out, or fill up with its first."
)
RESUME_HELP = "Resume the run in RUN, never, or start from another run's checkpoint."
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    help=(
        "DataLoader processes for training, decoding threads for prediction; default: "
        "the spare cores."
    ),
)


skip_unreadable_option = click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Count test images that are missing or unreadable as images without detections.",
)


@click.group()
def train() -> None:
    """Phase two: train the student on a teacher cache and evaluate it."""


@train.command()
@data_options
@click.option("--out", required=True, type=PATH, help="Run folder.")
@click.option(
    "--preset",
    type=click.Choice(["published", "toy"]),
    default="published",
    show_default=True,
    help="Recipe that the options below override.",
)
@click.option(
    "--pretrained",
    type=PATH,
    help=(
        "Pretrained weights: DETR, EoID, CDN, a run, a torchvision ResNet or a "
        "torchvision detector."
    ),
)
@click.option(
    "--no-distillation", is_flag=True, help="Train without the teacher (the control experiment)."
)
@click.option(
    "--candidates",
    type=click.Choice(["detector", "annotated"]),
    help=(
        "Source of unlabelled pairs: the detector's proposals or annotated boxes; "
        "default: as the cache was built."
    ),
)
@click.option(
    "--distill-verbs",
    type=click.Choice(["split", "unseen", "all"]),
    default="split",
    show_default=True,
    help=(
        "Verbs that the teacher supervises: those that the split defines, the verbs of "
        "unseen interactions, or all."
    ),
)
@click.option(
    "--topk",
    type=click.IntRange(min=0),
    help="Number of candidates per image that may be matched to the teacher's outputs.",
)
@click.option(
    "--interactive-threshold",
    "interactive_threshold",
    type=click.FloatRange(0, 1),
    help="Minimum interactive probability of a query to be matched to a candidate.",
)
@click.option(
    "--soft-weight",
    "verb_soft_weight",
    type=click.FloatRange(min=0),
    help="Weight of the distillation loss.",
)
@click.option(
    "--soft-normalisation",
    type=click.Choice(["entries", "pairs", "supervised"]),
    help=(
        "Denominator of the distillation loss: all B*Q*V entries, matched pairs, or "
        "matched pairs times supervised verbs."
    ),
)
@click.option(
    "--verb-loss",
    type=click.Choice(["focal_bce", "bce_bce"]),
    help=(
        "Loss on verb labels: focal loss or binary cross-entropy; distillation always "
        "uses binary cross-entropy."
    ),
)
@click.option(
    "--verb-head",
    type=click.Choice(["linear", "text"]),
    help=(
        "Verb classifier: linear layer, or similarity with CLIP text embeddings, which "
        "new actions can be added to."
    ),
)
@click.option(
    "--embedding-weight",
    type=click.FloatRange(min=0),
    help="With --verb-head text: weight of the loss on the teacher's region embeddings.",
)
@click.option("--backbone", type=click.Choice(BACKBONES), help="Backbone architecture.")
@click.option(
    "--queries",
    type=click.Choice(["learned", "proposals"]),
    help=("Decoder queries: learned embeddings, or built from pairs that a proposal head finds."),
)
@click.option(
    "--num-queries",
    type=POSITIVE_INT,
    help="Number of queries, that is of predicted pairs per image.",
)
@click.option("--num-encoder-layers", type=click.IntRange(min=0), help="Number of encoder layers.")
@click.option(
    "--num-human-object-layers",
    type=POSITIVE_INT,
    help="Number of decoder layers for human and object boxes.",
)
@click.option(
    "--num-interaction-layers", type=POSITIVE_INT, help="Number of decoder layers for verbs."
)
@click.option(
    "--dropout", type=click.FloatRange(0, 1), help="Dropout rate of every transformer layer."
)
@click.option(
    "--vdetach/--no-vdetach",
    "detach_verb_queries",
    default=None,
    help="Detach verb queries, so that verb gradients do not reach localisation.",
)
@click.option("--epochs", type=POSITIVE_INT, help="Number of training epochs.")
@click.option("--batch-size", type=POSITIVE_INT, help="Batch size over all processes.")
@click.option(
    "--accumulation", type=POSITIVE_INT, default=1, show_default=True, help=ACCUMULATION_HELP
)
@click.option(
    "--learning-rate",
    type=POSITIVE_FLOAT,
    help="Learning rate of all parameters but the backbone's.",
)
@click.option(
    "--backbone-learning-rate",
    type=click.FloatRange(min=0),
    help="Learning rate of the backbone; 0 freezes it.",
)
@click.option("--weight-decay", type=click.FloatRange(min=0), help="Weight decay of AdamW.")
@click.option(
    "--clip-norm", type=click.FloatRange(min=0), help="Maximum gradient norm; 0 disables clipping."
)
@click.option(
    "--schedule", type=click.Choice(["step", "one_cycle"]), help="Learning-rate schedule."
)
@click.option(
    "--drop-epoch",
    type=click.IntRange(min=0),
    help="With --schedule step: epoch at which the learning rate is divided by ten.",
)
@click.option(
    "--warmup-steps",
    type=click.IntRange(min=0),
    help="With --schedule step: number of linear warm-up steps.",
)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, max_open=True),
    help="Decay of the exponential moving average of the weights; 0 disables it.",
)
@click.option("--last-batch", type=click.Choice(["drop", "fill"]), help=LAST_BATCH_HELP)
@click.option(
    "--augmentation",
    type=click.Choice(["published", "toy"]),
    help=(
        "Training augmentation: DETR's (flip, colour jitter, resize, crop), or flip and"
        " colour jitter."
    ),
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "tf32", "bfloat16"]),
    help="Arithmetic of training; auto takes bfloat16 where the hardware is fast at it.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the model with torch.compile.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of weights, data order and augmentation."
)
@click.option(
    "--val-size",
    type=click.FloatRange(min=0),
    help="Training images held out for validation: a fraction below 1, or their number.",
)
@click.option(
    "--val-every",
    type=click.IntRange(min=0),
    help="Number of epochs between validations; 0 validates after the last epoch only.",
)
@click.option(
    "--keep",
    type=click.Choice(["last", "best"]),
    help="Weights to end with: the last ones, or the best on validation images.",
)
@click.option(
    "--resume", default="auto", show_default=True, metavar="auto|never|FILE", help=RESUME_HELP
)
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    default=15,
    show_default=True,
    help="Maximum time between checkpoints; one is also written after every epoch.",
)
@click.option(
    "--log-every",
    type=POSITIVE_INT,
    default=10,
    show_default=True,
    help="Number of steps between log records.",
)
@click.option(
    "--tensorboard", is_flag=True, help="Also write TensorBoard events to RUN/tensorboard."
)
@click.option("--report/--no-report", default=True, help="Write RUN/report.html at the end.")
@skip_unreadable_option
@workers_option
@click.option("--name", help="Name of the run in reports; default: the folder's name.")
@click.option("--overwrite", is_flag=True, help="Replace another run in the folder.")
@device_option
@config_option
def student(
    data: Path,
    cache: Path,
    split: str,
    extra_data: tuple[str, ...],
    out: Path,
    preset: str,
    pretrained: Path | None,
    no_distillation: bool,
    distill_verbs: str,
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
    """Train a student, resuming where a stopped run left off, and evaluate it on the test part.

    Options without a default take the preset's value.
    """
    from student.data.extra_data import parse_extra_data
    from student.engine.run import RunConfig, run_student
    from student.engine.run_inputs import RunRequest

    options["distillation"] = False if no_distillation else None
    config = RunConfig(
        RunRequest(
            data,
            cache,
            split,
            preset,
            options,
            distill_verbs,
            parse_extra_data(extra_data),
            skip_unreadable,
        ),
        out,
        pretrained=pretrained,
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
        _report_results(results, report=report)


@train.command()
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=PATH)
@click.option(
    "--data", required=True, type=PATH, help="Dataset folder whose test part is evaluated."
)
@click.option(
    "--split", help="Zero-shot split whose groups are reported; default: the split of the run."
)
@click.option(
    "--nheads",
    type=POSITIVE_INT,
    help=(
        "Number of attention heads of a published checkpoint that does not record it; default: 8."
    ),
)
@click.option("--prompts", type=PATH, help="File of eoid-cache prompts with further actions.")
@click.option("--out", type=PATH, help="Folder for predictions, results, images and report.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
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
    """Predict a dataset's test part and score the predictions.

    Takes a run, a checkpoint of this project, or a published EoID or CDN checkpoint.
    """
    from student.engine.evaluate import evaluate_checkpoint

    scoring = build_scoring_config(**options)
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
        _report_results(results, details)


@train.command("batch-scripts")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--overwrite", is_flag=True, help="Replace existing scripts.")
@config_option
def batch_scripts(folder: Path, overwrite: bool) -> None:
    """Copy SLURM batch scripts into DIR."""
    from pipeline.utils.files import copy_scripts

    for path in copy_scripts("student.engine", BATCH_SCRIPTS, folder, overwrite):
        click.echo(path)


def _report_results(results: Results, details: Sequence[str] = (), report: bool = True) -> None:
    """Shows the scores and writes the report beside them."""
    from evaluation.report.write import write_report_beside
    from evaluation.tables import format_tables
    from student.engine.evaluate import RESULTS

    click.echo("\n".join(format_tables([results], details)))
    if report:
        assert results.predictions is not None, "the evaluation writes them beside the results"
        click.echo(
            write_report_beside(
                results.predictions.with_name(RESULTS), results_with_matches=results
            )
        )


def main() -> None:
    """Entry point of `eoid-train`."""
    run_command(train)


if __name__ == "__main__":
    main()
