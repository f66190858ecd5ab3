"""The `eoid-cache` command."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.utils.cli import config_option, device_option, run_command
from pipeline.utils.errors import InputError
from teacher_cache.cli_caches import COMMANDS

if TYPE_CHECKING:
    from teacher_cache.cluster.modes import ArrayShare, ExecutionMode


class OptionalType(click.ParamType):
    """A value of another type, or `none`."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, f"{kind.name} or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.strip().lower() == "none":
            return None
        return self.kind.convert(value, param, ctx)


# Ready scripts for SLURM.
BATCH_SCRIPTS = ("cache.sbatch", "cache_array.sbatch")
POSITIVE_INT = click.IntRange(min=1)
SLURM_ARRAY = "slurm"
# Options that only jobs of SLURM have.
SLURM_OPTIONS = (
    "jobs",
    "cores",
    "memory",
    "walltime",
    "queue",
    "account",
    "gres",
    "prologue",
    "directives",
    "log_folder",
    "interface",
)
CLUSTER_OPTIONS = (
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        show_default="one for each GPU if there are several, otherwise 0",
        help="Worker processes on this machine; 0 works in this process.",
    ),
    click.option(
        "--threads",
        type=POSITIVE_INT,
        show_default="the cores, shared among the workers",
        help="torch threads of each process, on a CPU.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="Use the workers of a running Dask cluster: host:port or scheduler file.",
    ),
    click.option(
        "--array",
        metavar="[I/N]",
        is_flag=False,
        flag_value=SLURM_ARRAY,
        help=(
            "Be job I (counted from 0) of N independent jobs that share one cache folder. "
            "Without I/N, or as slurm: taken from SLURM's array variables."
        ),
    ),
    click.option("--slurm", is_flag=True, help="Start the workers as SLURM jobs."),
    click.option("--dry-run", is_flag=True, help="With --slurm: print the job script and stop."),
    click.option(
        "--jobs", type=POSITIVE_INT, default=1, show_default=True, help="Number of jobs at a time."
    ),
    click.option(
        "--cores",
        type=OptionalType(POSITIVE_INT),
        metavar="N|none",
        default=4,
        show_default=True,
        help="Cores per job; none takes the site's default.",
    ),
    click.option(
        "--memory",
        type=OptionalType(click.STRING),
        metavar="SIZE|none",
        default="16GB",
        show_default=True,
        help="Memory per job, 0 for all of a node; none leaves it to SLURM.",
    ),
    click.option(
        "--walltime",
        type=OptionalType(click.STRING),
        metavar="TIME|none",
        default="04:00:00",
        show_default=True,
        help="Time limit of each job; none takes the site's default.",
    ),
    click.option("--queue", metavar="NAME", help="Partition."),
    click.option("--account", metavar="NAME", help="Account to charge."),
    click.option("--gres", metavar="TEXT", help="Generic resources, such as gpu:1."),
    click.option(
        "--prologue",
        multiple=True,
        metavar="LINE",
        help="Shell line to run before the worker starts. Can be given several times.",
    ),
    click.option(
        "--directive",
        "directives",
        multiple=True,
        metavar="TEXT",
        help=(
            "Another #SBATCH line, such as --constraint=a100. One that sets cores, memory "
            "or time, such as --mem-per-gpu=40G, replaces that option."
        ),
    ),
    click.option(
        "--log-folder",
        type=click.Path(path_type=Path),
        show_default="CACHE/logs",
        help="Folder for the jobs' logs.",
    ),
    click.option(
        "--interface", metavar="NAME", help="Network interface of the workers, such as ib0."
    ),
)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options and gives the command what they mean, as `mode`, `share` and `dry_run`."""

    @wraps(command)
    def with_mode(
        *args: Any,
        workers: int | None,
        scheduler: str | None,
        slurm: bool,
        dry_run: bool,
        array: str | None,
        **options: Any,
    ) -> Any:
        from teacher_cache.cluster.modes import (
            ArrayShare,
            InProcess,
            LocalWorkers,
            RunningCluster,
            SlurmJobs,
        )

        _check_exclusive(workers=workers, scheduler=scheduler, slurm=slurm or None)
        _check_exclusive(array=array, scheduler=scheduler, slurm=slurm or None)
        jobs = {name: options.pop(name) for name in SLURM_OPTIONS}
        if not slurm:
            _require_slurm([*SLURM_OPTIONS, "dry_run"])
        mode: ExecutionMode | None = None
        if slurm:
            mode = SlurmJobs(**jobs)
        elif scheduler is not None:
            mode = RunningCluster(scheduler)
        elif workers is not None:
            mode = LocalWorkers(workers) if workers else InProcess()
        share = None
        if array is not None:
            share = ArrayShare.from_slurm() if array == SLURM_ARRAY else ArrayShare.parse(array)
        return command(*args, mode=mode, share=share, dry_run=dry_run, **options)

    for option in reversed(CLUSTER_OPTIONS):
        with_mode = option(with_mode)
    return with_mode


def _check_exclusive(**options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]}: expected alone, found {' and '.join(given[1:])} too")


def _require_slurm(names: list[str]) -> None:
    """Options that mean nothing without --slurm; in a configuration file they may wait for it."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            (option,) = [param for param in context.command.params if param.name == name]
            raise InputError(f"{option.opts[0]}: expected together with --slurm, found alone")


SCORE_RANGE = click.FloatRange(0, 1)


@click.group()
def cache() -> None:
    """Phase one: run the detector and CLIP once per image and cache their outputs."""


@cache.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The cache folder.")
@click.option(
    "--part",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Part of the dataset.",
)
@click.option(
    "--candidates",
    type=click.Choice(["detector", "annotated"]),
    default="detector",
    show_default=True,
    help=("Boxes that form pairs: a detector's, or all annotated ones (the published protocol)."),
)
@click.option(
    "--detector",
    metavar="NAME",
    help=(
        "A torchvision detection model, or toy.  [default: the dataset's own, or "
        "fasterrcnn_resnet50_fpn_v2]"
    ),
)
@click.option(
    "--detector-weights",
    metavar="FILE|ENTRY",
    help="A weights file, or the name of a torchvision weights entry.",
)
@click.option(
    "--detector-classes",
    metavar="coco80|hico80|FILE",
    help=(
        "Classes of a weights file that has neither COCO's 91 nor the vocabulary's: "
        "COCO's 80 objects in COCO's order or in HICO-DET's (alphabetical), or a file "
        "with one name per line. Class 0 is the background."
    ),
)
@click.option(
    "--proposals",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Detections in COCO results format (JSON), instead of a detector.",
)
@click.option(
    "--clip-model",
    metavar="NAME|FOLDER",
    help=(
        "An open_clip model, an hf-hub: name, or a folder in open_clip's layout.  "
        "[default: the dataset's own, or RN50x16]"
    ),
)
@click.option("--clip-weights", metavar="TAG|FILE", help="A pretrained tag or a checkpoint file.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    help=(
        "Arithmetic of CLIP's image encoder; it changes the outputs. auto is float16 on"
        " a GPU, else float32."
    ),
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help=(
        "Prompt template with {ing} and {object}; several are averaged.  [default: a "
        "picture of person {ing} {object}]"
    ),
)
@click.option(
    "--level",
    type=click.Choice(["region", "image"]),
    default="region",
    show_default=True,
    help="CLIP's input for a pair: its union region, or the whole image.",
)
@click.option(
    "--region",
    default="pad",
    show_default=True,
    metavar="pad|stretch|context=F",
    help=(
        "How a region becomes CLIP's square input: padded with black, stretched, or "
        "padded after its box is enlarged F-fold."
    ),
)
@click.option(
    "--person-threshold", type=SCORE_RANGE, help="Minimum score of people.  [default: 0.2]"
)
@click.option(
    "--object-threshold", type=SCORE_RANGE, help="Minimum score of objects.  [default: 0.2]"
)
@click.option(
    "--max-people", type=POSITIVE_INT, help="Maximum number of people per image.  [default: 15]"
)
@click.option(
    "--max-objects", type=POSITIVE_INT, help="Maximum number of objects per image.  [default: 15]"
)
@click.option(
    "--images-per-shard",
    type=POSITIVE_INT,
    default=256,
    show_default=True,
    help="Number of images per shard.",
)
@click.option(
    "--batch-size",
    type=POSITIVE_INT,
    show_default="64, on a GPU 256",
    help="Batch size of CLIP (regions).",
)
@click.option(
    "--detector-batch-size",
    type=POSITIVE_INT,
    default=16,
    show_default=True,
    help="Batch size of the detector (images of one size).",
)
@click.option(
    "--embeddings/--no-embeddings",
    default=True,
    show_default=True,
    help="Store the region embeddings, which rescoring and --verb-head text need.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse annotation issues and unreadable images instead of counting them.",
)
@device_option
@cluster_options
@config_option
def build(
    dataset: Path,
    out: Path,
    part: str,
    candidates: str,
    detector: str | None,
    detector_weights: str | None,
    detector_classes: str | None,
    proposals: Path | None,
    clip_model: str | None,
    clip_weights: str | None,
    precision: str,
    templates: tuple[str, ...],
    level: str,
    region: str,
    person_threshold: float | None,
    object_threshold: float | None,
    max_people: int | None,
    max_objects: int | None,
    images_per_shard: int,
    batch_size: int | None,
    detector_batch_size: int,
    embeddings: bool,
    strict: bool,
    device: str,
    mode: ExecutionMode | None,
    share: ArrayShare | None,
    threads: int | None,
    dry_run: bool,
) -> None:
    """Build a teacher cache of DATASET, resuming where a stopped build left off."""
    from pipeline.utils.signals import sigterm_as_interrupt
    from teacher_cache import build as builder
    from teacher_cache.build import BuildConfig
    from teacher_cache.cluster.modes import SlurmJobs
    from teacher_cache.cluster.run import check_libraries
    from teacher_cache.detectors.pairing import PairingConfig
    from teacher_cache.detectors.torchvision import load_class_names
    from teacher_cache.extraction.extract import ExtractionConfig
    from teacher_cache.teachers.prompts import DEFAULT_TEMPLATE
    from teacher_cache.teachers.regions import RegionMode

    bounds: dict[str, Any] = {
        "person_threshold": person_threshold,
        "object_threshold": object_threshold,
        "max_people": max_people,
        "max_objects": max_objects,
    }
    given = {name: value for name, value in bounds.items() if value is not None}
    if candidates == "annotated" and given:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise InputError(f"{option}: expected none with --candidates annotated, which pairs all")
    config = BuildConfig(
        dataset=dataset,
        out=out,
        part=part,
        candidates=candidates,
        proposals=proposals,
        detector=detector,
        detector_weights=detector_weights,
        detector_classes=None if detector_classes is None else load_class_names(detector_classes),
        clip_model=clip_model,
        clip_weights=clip_weights,
        precision=precision,
        templates=templates or (DEFAULT_TEMPLATE,),
        extraction=ExtractionConfig(
            pairing=PairingConfig(**given),
            level=level,
            region=RegionMode.parse(region),
            images_per_batch=detector_batch_size,
            regions_per_batch=batch_size,
            embeddings=embeddings,
            strict=strict,
        ),
        images_per_shard=images_per_shard,
        mode=mode,
        share=share,
        threads=threads,
        device=device,
    )
    if dry_run:
        assert isinstance(mode, SlurmJobs)
        check_libraries(mode)
        from teacher_cache.cluster.slurm import job_script

        click.echo(job_script(mode, out), nl=False)
        return
    with sigterm_as_interrupt():
        builder.build_cache(config)


@cache.command("batch-scripts")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace existing scripts.")
@config_option
def batch_scripts(folder: Path, overwrite: bool) -> None:
    """Copy SLURM batch scripts into DIR."""
    from pipeline.utils.files import copy_scripts

    for path in copy_scripts("teacher_cache.cluster", BATCH_SCRIPTS, folder, overwrite):
        click.echo(path)


@cache.command("toy-models")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of images and weights.",
)
@click.option(
    "--only", type=click.Choice(["teacher", "detector"]), help="Train only one of the two."
)
@click.option(
    "--images", "pictures", type=POSITIVE_INT, help="Number of training images.  [default: 3000]"
)
@click.option(
    "--teacher-steps",
    type=POSITIVE_INT,
    help="Number of training steps of the teacher.  [default: 500]",
)
@click.option(
    "--detector-epochs",
    type=POSITIVE_INT,
    help="Number of training epochs of the detector.  [default: 4]",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help=(
        "Prompt template with {ing} and {object} that the teacher is trained on; can be"
        " given several times.  [default: a picture of person {ing} {object}]"
    ),
)
@device_option
@config_option
def toy_models(
    folder: Path,
    seed: int,
    only: str | None,
    pictures: int | None,
    teacher_steps: int | None,
    detector_epochs: int | None,
    templates: tuple[str, ...],
    device: str,
) -> None:
    """Train the toy dataset's teacher and detector and write them to FOLDER."""
    from dataclasses import replace

    from teacher_cache.toy.models import ToyModelsConfig
    from teacher_cache.toy.train import train_toy_models

    config = ToyModelsConfig(seed=seed)
    if only is not None:
        config = replace(config, models=(only,))
    if pictures is not None:
        config = replace(config, pictures=pictures)
    if teacher_steps is not None:
        config = replace(config, teacher=replace(config.teacher, steps=teacher_steps))
    if detector_epochs is not None:
        config = replace(config, detector=replace(config.detector, epochs=detector_epochs))
    if templates:
        config = replace(config, templates=templates)
    train_toy_models(folder, config, device)


for command in COMMANDS:
    cache.add_command(command)


def main() -> None:
    """Entry point of `eoid-cache`."""
    run_command(cache)
