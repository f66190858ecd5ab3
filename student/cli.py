"""The `eoid-train` command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from evaluation.scoring_options import build_scoring_config, details_option, scoring_options
from pipeline.utils.cli import (
    HELP_SETTINGS,
    decoding_workers_option,
    device_option,
    limit_option,
    run_command,
)
from pipeline.utils.cli_options import (
    FloatRange,
    PathType,
    config_option,
    describe_hidden_settings,
    format_config,
    logging_options,
    option,
    setting_option,
    setting_rank,
    settings_of_file,
)
from pipeline.utils.config_fields import list_settings
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from student.config import DISTILLATION, PRESETS, RECIPE_PARTS, ProbeConfig, get_preset

if TYPE_CHECKING:
    from evaluation.results import Results

PATH = PathType()
POSITIVE_INT = click.IntRange(min=1)
# Settings of the recipe that `--help` shows; the others are set with --set or --config.
COMMON_SETTINGS = {
    *("shots", "distillation", "topk", "interactive_threshold", "verb_soft_weight"),
    *("backbone", "verb_head", "epochs", "batch_size", "learning_rate", "seed"),
    *("val_size", "keep", "precision"),
}
# Headings of settings whose fields name none.
PART_GROUPS = {
    "targets": DISTILLATION,
    "model": "Model",
    "matcher": "Matching and losses",
    "losses": "Matching and losses",
    "train": "Optimisation",
}


def recipe_options(group: str) -> list[Callable[..., Any]]:
    """Options of the recipe's settings under a heading, those that `--help` shows first."""
    published = _preset_values("published")
    options: list[tuple[bool, Callable[..., Any]]] = []
    for part, part_group in PART_GROUPS.items():
        for name, (described, kind) in list_settings(RECIPE_PARTS[part]).items():
            if (described.group or part_group) == group:
                default = described.default_text or _format_default(published[name])
                if not described.default_text:
                    default += "".join(
                        f"; preset {preset}: {_format_default(fields[name])}"
                        for preset, fields in PRESETS.items()
                        if name in fields
                    )
                hidden = name not in COMMON_SETTINGS
                options.append(
                    (hidden, setting_option(name, described, kind, default, hidden=hidden))
                )
    return [option for _, option in sorted(options, key=lambda each: each[0])]


def _preset_values(preset: str) -> dict[str, Any]:
    """The settings of a preset by field name; the vocabulary's sizes do not matter for them."""
    parts = get_preset(preset, 80, 117, 0).to_dict()
    return {name: value for part in parts.values() for name, value in part.items()}


def _format_default(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


preset_option = option(
    "--preset",
    type=click.Choice(PRESETS),
    default="published",
    show_default=True,
    help="Recipe that gives the defaults of the settings.",
)
training_split_option = option(
    "--split",
    required=True,
    metavar="NAME|FILE",
    help=(
        "Zero-shot split, which defines the interactions without labels in training: one of"
        " the dataset's (HICO-DET: ua, rf-uc, nf-uc, uo, ...), full, or a TOML file."
    ),
)
workers_option = option(
    "--workers",
    type=click.IntRange(min=0),
    show_default="the spare cores",
    help="Number of DataLoader processes for training and of decoding threads for prediction.",
)
num_heads_option = option(
    "--num-heads",
    type=POSITIVE_INT,
    show_default="8",
    help="Number of attention heads of a published checkpoint that does not record it.",
)


def skip_unreadable_option(hidden: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Adds `--skip-unreadable`."""
    return option(
        "--skip-unreadable",
        is_flag=True,
        hidden=hidden,
        help="Count test images that are missing or unreadable as images without detections.",
    )


def report_option(hidden: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Adds `--report`."""
    return option(
        "--report/--no-report",
        default=True,
        show_default=True,
        hidden=hidden,
        help=f"Write {'RUN/' if hidden else ''}report.html at the end.",
    )


@cloup.group(context_settings=HELP_SETTINGS)
def train() -> None:
    """Phase two: train the student on a teacher cache and evaluate it."""


@train.command(epilog=describe_hidden_settings("eoid-train config"))
@cloup.option_group(
    "Data",
    option("--data", required=True, type=PATH, help="Dataset folder."),
    option(
        "--cache", required=True, type=PATH, help="Teacher cache of the dataset's training part."
    ),
    training_split_option,
    option(
        "--extra-data",
        multiple=True,
        metavar="DATASET:CACHE",
        help=(
            "Additional training images, labelled or unlabelled, with their teacher cache. "
            "Can be given several times."
        ),
    ),
    *recipe_options("Data"),
    option(
        "--stage-cache",
        type=PATH,
        metavar="DIR",
        hidden=True,
        help=(
            "Read the caches from copies in DIR, a folder on a disk of this machine. A copy is made"
            " once and checked before every training; remove DIR to free the disk."
        ),
    ),
    limit_option("training and of test images"),
    skip_unreadable_option(hidden=True),
)
@cloup.option_group(
    DISTILLATION,
    option(
        "--distill-verbs",
        type=click.Choice(["split", "unseen", "all"]),
        default="split",
        show_default=True,
        hidden=True,
        help=(
            "Verbs that the student learns from the teacher's cached probabilities: those that"
            " the split lists, the verbs of its unseen interactions, or all."
        ),
    ),
    *recipe_options(DISTILLATION),
)
@cloup.option_group(
    "Model",
    preset_option,
    option(
        "--pretrained",
        type=PATH,
        show_default="random weights",
        help=(
            "Pretrained weights: DETR, EoID, CDN, a run, a torchvision ResNet or detector, or toy"
            " for the toy dataset's detector."
        ),
    ),
    option(
        "--backbone-weights",
        metavar="FILE|default",
        hidden=True,
        show_default="those of --pretrained",
        help=(
            "Pretrained weights of the backbone alone: a file, or default for the ones that timm or"
            " torchvision downloads."
        ),
    ),
    *recipe_options("Model"),
)
@cloup.option_group("Matching and losses", *recipe_options("Matching and losses"))
@cloup.option_group(
    "Optimisation",
    *recipe_options("Optimisation"),
    option(
        "--freeze-backbone",
        is_flag=True,
        help="Keep the backbone's pretrained weights, as with a learning rate of 0 for it.",
    ),
    option(
        "--backbone-learning-rate",
        type=FloatRange(min=0),
        hidden=True,
        show_default="learning-rate times backbone-lr-factor",
        help="Learning rate of the backbone; 0 freezes it.",
    ),
    option(
        "--accumulation",
        type=POSITIVE_INT,
        default=1,
        show_default=True,
        hidden=True,
        help=(
            "Number of parts that each process accumulates the gradients of a batch over, to need"
            " less memory."
        ),
    ),
)
@cloup.option_group("Validation", *recipe_options("Validation"))
@cloup.option_group(
    "Output and resuming",
    option("--out", required=True, type=PATH, help="Run folder."),
    option(
        "--resume",
        default="auto",
        show_default=True,
        metavar="auto|never|FILE",
        help=(
            "With auto, resume the run in --out if there is one; with never, refuse to; with FILE,"
            " continue another run's checkpoint as a new run in --out."
        ),
    ),
    option("--overwrite", is_flag=True, help="Replace another run in the run folder."),
    option(
        "--name", show_default="the folder's name", hidden=True, help="Name of the run in reports."
    ),
    option(
        "--checkpoint-minutes",
        type=FloatRange(min=0),
        default=15,
        show_default=True,
        hidden=True,
        help="Maximum time between checkpoints; one is also written after every epoch.",
    ),
    option(
        "--log-every",
        type=POSITIVE_INT,
        default=10,
        show_default=True,
        hidden=True,
        help="Number of steps between log records.",
    ),
    option(
        "--test-every",
        type=click.IntRange(min=0),
        default=0,
        show_default="only after the last epoch",
        hidden=True,
        help=(
            "Number of epochs between evaluations of the test images, whose seen and unseen mAP go"
            " to RUN/test.jsonl. Nothing is chosen by them."
        ),
    ),
    option(
        "--log-to",
        type=click.Choice(["tensorboard", "wandb"]),
        multiple=True,
        help=(
            "Also log losses, learning rates, throughput, scores and drawings there. Can be given"
            " twice."
        ),
    ),
    report_option(hidden=True),
)
@cloup.option_group(
    "Runtime",
    device_option,
    workers_option,
    *recipe_options("Runtime"),
    option(
        "--compile",
        "compiled",
        is_flag=True,
        hidden=True,
        help="Compile the model with torch.compile.",
    ),
)
@config_option
@click.pass_context
def student(context: click.Context, preset: str, report: bool, **options: Any) -> None:
    """Train a student, resuming where a stopped run left off, and evaluate it on the test part."""
    from student.engine.run import run_student
    from student.engine.run_inputs import RunConfig

    from_file = settings_of_file(context)
    if from_file.get("preset", preset) != preset:
        # A file of `eoid-train config` sets everything, so that another preset changes nothing.
        kept = sorted(from_file.keys() & _preset_values(preset).keys())
        get_logger(__name__).warning(
            f"--preset {preset}: the configuration file is for preset {from_file['preset']};"
            f" {len(kept)} settings keep the file's values: {', '.join(kept) or 'none'}"
        )
    _resolve_backbone_rate(context, options)
    # All other options are fields of the recipe.
    names = {entry.name for entry in fields(RunConfig)} & options.keys()
    settings = {name: options.pop(name) for name in names}
    results = run_student(RunConfig(preset=preset, options=options, **settings))
    if results is not None:
        _report_results(results, report=report)


def _resolve_backbone_rate(context: click.Context, options: dict[str, Any]) -> None:
    """Resolves the options that set the backbone's learning rate: the stronger source wins.

    Removes `freeze_backbone` from the options, whose place `backbone_learning_rate` 0 takes.

    Raises:
        InputError: one source both freezes the backbone and gives it a learning rate.
    """
    rates = ("backbone_learning_rate", "backbone_lr_factor")
    rank = {name: setting_rank(context, name) for name in rates}
    freezing = {
        name: setting_rank(context, name)
        for name in ("freeze_backbone", "heads_only")
        if options[name]
    }
    del options["freeze_backbone"]
    given = rates[rank["backbone_lr_factor"] > rank["backbone_learning_rate"]]
    if given == "backbone_lr_factor":
        options["backbone_learning_rate"] = None
    for name, freezing_rank in freezing.items():
        # Another source may cancel --freeze-backbone by a rate, but not --heads-only, which says
        # more.
        is_contradiction = rank[given] == freezing_rank or name == "heads_only"
        if options[given] and rank[given] >= freezing_rank and is_contradiction:
            flag, rate = (each.replace("_", "-") for each in (name, given))
            raise InputError(
                f"--{flag}: expected no learning rate of the backbone beside it, found --{rate}"
                f" {options[given]:g}"
            )
        if rank[given] < freezing_rank:
            options["backbone_learning_rate"] = 0.0


@train.command("config")
@preset_option
@logging_options
def print_config(preset: str) -> None:
    """Print a commented TOML file with every setting of `eoid-train student` for --config."""
    values = {
        name: _preset_values(preset)[name]
        for config in RECIPE_PARTS.values()
        for name, (described, _) in list_settings(config).items()
        if not described.default_text
    }
    title = (
        f"Settings of eoid-train student with the defaults of preset {preset}. The command line and"
        " --set win over this file."
    )
    click.echo(format_config(student, title, {**values, "preset": preset}), nl=False)


@train.command()
@click.argument("checkpoint", metavar="RUN|CHECKPOINT", type=PathType(str))
@cloup.option_group(
    "Data",
    option("--data", required=True, type=PATH, help="Dataset folder whose test part is evaluated."),
    option(
        "--split",
        metavar="NAME|FILE",
        show_default="the split of the run",
        help=(
            "Zero-shot split that defines which interactions are scored as seen and as unseen: a"
            " name or a TOML file."
        ),
    ),
    limit_option("test images"),
    skip_unreadable_option(),
)
@cloup.option_group(
    "Model",
    option("--prompts", type=PATH, help="File of eoid-cache prompts with further classes."),
    num_heads_option,
)
@cloup.option_group("Scoring", scoring_options)
@cloup.option_group(
    "Output",
    option("--out", type=PATH, help="Folder for predictions, results, images and report."),
    details_option,
    report_option(),
    option("--overwrite", is_flag=True, help="Replace existing files."),
)
@cloup.option_group("Runtime", device_option, decoding_workers_option)
@config_option
def evaluate(checkpoint: str, details: tuple[str, ...], report: bool, **options: Any) -> None:
    """Predict a dataset's test part and score the predictions.

    Takes a run, a checkpoint of this project, a published EoID or CDN checkpoint, or weights of the
    package, toy or toy-text.
    """
    from student.engine.evaluate import evaluate_checkpoint

    names = [name for name in options if name.startswith(("setting", "nms"))]
    scoring = build_scoring_config(**{name: options.pop(name) for name in names})
    results = evaluate_checkpoint(checkpoint, scoring=scoring, **options)
    if results is not None:
        _report_results(results, details, report)


@train.command()
@cloup.option_group(
    "Data",
    option("--data", required=True, type=PATH, help="Dataset folder; its images are not read."),
    option(
        "--cache", required=True, type=PATH, help="Teacher cache of the dataset's training part."
    ),
    option(
        "--test-cache",
        required=True,
        type=PATH,
        help="Teacher cache of the test part, built with the same teacher.",
    ),
    training_split_option,
)
@cloup.option_group(
    "Training",
    *(
        setting_option(name, described, kind, _format_default(getattr(ProbeConfig, name)), False)
        for name, (described, kind) in list_settings(ProbeConfig).items()
    ),
)
@cloup.option_group(
    "Output and runtime",
    option("--out", required=True, type=PATH, help="Folder for the checkpoint and the results."),
    option("--predictions", type=PATH, help="Write the detections on the test part to this file."),
    option("--name", show_default="the folder's name", help="Name of the probe in reports."),
    option("--overwrite", is_flag=True, help="Replace existing files."),
    device_option,
)
@config_option
def probe(**options: Any) -> None:
    """Train a verb head on a cache alone, a baseline that takes minutes, and score it.

    The head classifies the cached region embedding, boxes and object class of a pair. It is scored
    on the detector's pairs in the test cache, like a student.
    """
    from evaluation.tables import format_tables
    from student.engine.probe import ProbeRun, run_probe

    given = {name: options.pop(name) for name in list_settings(ProbeConfig)}
    config = ProbeConfig(**{name: value for name, value in given.items() if value is not None})
    click.echo("\n".join(format_tables([run_probe(ProbeRun(config=config, **options))], ())))


@train.command("batch-scripts")
@click.argument("folder", metavar="DIR", type=PATH)
@option("--overwrite", is_flag=True, help="Replace existing scripts.")
@config_option
def batch_scripts(folder: Path, overwrite: bool) -> None:
    """Copy SLURM batch scripts into DIR."""
    from pipeline.utils.files import copy_scripts

    for path in copy_scripts("student.engine", ["train.sbatch"], folder, overwrite):
        click.echo(path)


def _report_results(results: Results, details: Sequence[str] = (), report: bool = True) -> None:
    """Shows the scores and writes the report beside them."""
    from evaluation.report.write import REPORT_FILE, write_report_beside
    from evaluation.results import RESULTS_FILE
    from evaluation.tables import format_tables
    from pipeline.utils.files import is_up_to_date

    click.echo("\n".join(format_tables([results], details)))
    if report:
        assert results.predictions is not None, "the evaluation writes them beside the results"
        file = results.predictions.with_name(RESULTS_FILE)
        written = file.with_name(REPORT_FILE)
        # A finished run that is started again keeps its report.
        if is_up_to_date(written, file):
            click.echo(f"report: {written}")
        else:
            click.echo(write_report_beside(file, matches=results.matches))


def main() -> None:
    """Entry point of `eoid-train`."""
    run_command(train)


if __name__ == "__main__":
    main()
