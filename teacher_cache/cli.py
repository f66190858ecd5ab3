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
    from teacher_cache.cluster.modes import Mode, Share


class OrNone(click.ParamType):
    """A value of another type, or `none`."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, f"{kind.name} or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.strip().lower() == "none":
            return None
        return self.kind.convert(value, param, ctx)


# Ready scripts for SLURM.
SCRIPTS = ("cache.sbatch", "cache_array.sbatch")
COUNT = click.IntRange(min=1)
FROM_SLURM = "slurm"
# Options that only jobs of SLURM have.
JOBS = (
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
OPTIONS = (
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        show_default="one for each GPU if there are several, otherwise 0",
        help="Processes of this machine; 0 works in this one.",
    ),
    click.option(
        "--threads",
        type=COUNT,
        show_default="the cores, shared among the workers",
        help="torch threads of each process, on a CPU.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="Use the workers of a Dask cluster that is running: host:port or scheduler file.",
    ),
    click.option(
        "--array",
        metavar="[I/N]",
        is_flag=False,
        flag_value=FROM_SLURM,
        help="Be job I (from 0 on) of N that share one cache folder without knowing of each"
        " other. Without I/N, or as slurm: taken from SLURM's array variables.",
    ),
    click.option("--slurm", is_flag=True, help="Start workers as jobs of SLURM."),
    click.option("--dry-run", is_flag=True, help="With --slurm: print the job script and stop."),
    click.option("--jobs", type=COUNT, default=1, show_default=True, help="Jobs at a time."),
    click.option(
        "--cores",
        type=OrNone(COUNT),
        metavar="N|none",
        default=4,
        show_default=True,
        help="Cores of each job; none takes the site's default.",
    ),
    click.option(
        "--memory",
        type=OrNone(click.STRING),
        metavar="SIZE|none",
        default="16GB",
        show_default=True,
        help="Memory of each job, 0 for all of a machine; none names none to SLURM.",
    ),
    click.option(
        "--walltime",
        type=OrNone(click.STRING),
        metavar="TIME|none",
        default="04:00:00",
        show_default=True,
        help="Time limit of each job; none takes the site's default.",
    ),
    click.option("--queue", metavar="NAME", help="Partition."),
    click.option("--account", metavar="NAME", help="Account to charge."),
    click.option("--gres", metavar="TEXT", help="Such as gpu:1."),
    click.option(
        "--prologue", multiple=True, metavar="LINE", help="Shell line before the worker starts."
    ),
    click.option(
        "--directive",
        "directives",
        multiple=True,
        metavar="TEXT",
        help="Another #SBATCH line, such as --constraint=a100. One that names cores, memory or"
        " time, such as --mem-per-gpu=40G, takes the place of the option.",
    ),
    click.option(
        "--log-folder",
        type=click.Path(path_type=Path),
        show_default="CACHE/logs",
        help="Where jobs write their logs.",
    ),
    click.option("--interface", metavar="NAME", help="Network of the workers, such as ib0."),
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
            InProcess,
            LocalWorkers,
            RunningCluster,
            Share,
            SlurmJobs,
        )

        _refuse_together(workers=workers, scheduler=scheduler, slurm=slurm or None)
        _refuse_together(array=array, scheduler=scheduler, slurm=slurm or None)
        jobs = {name: options.pop(name) for name in JOBS}
        if not slurm:
            _refuse_alone([*JOBS, "dry_run"])
        mode: Mode | None = None
        if slurm:
            mode = SlurmJobs(**jobs)
        elif scheduler is not None:
            mode = RunningCluster(scheduler)
        elif workers is not None:
            mode = LocalWorkers(workers) if workers else InProcess()
        share = None
        if array is not None:
            share = Share.of_slurm() if array == FROM_SLURM else Share.parse(array)
        return command(*args, mode=mode, share=share, dry_run=dry_run, **options)

    for option in reversed(OPTIONS):
        with_mode = option(with_mode)
    return with_mode


def _refuse_together(**options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]}: expected alone, found {' and '.join(given[1:])} too")


def _refuse_alone(names: list[str]) -> None:
    """Options that mean nothing without --slurm; in a configuration file they may wait for it."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            (option,) = [param for param in context.command.params if param.name == name]
            raise InputError(f"{option.opts[0]}: expected together with --slurm, found alone")


SCORE = click.FloatRange(0, 1)


@click.group()
def cache() -> None:
    """Phase one: ask detector and CLIP once, keep the answers."""


@cache.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The cache folder.")
@click.option("--part", type=click.Choice(["train", "test"]), default="train", show_default=True)
@click.option(
    "--candidates",
    type=click.Choice(["detector", "annotated"]),
    default="detector",
    show_default=True,
    help="Which boxes form pairs: a detector's, or all annotated ones (the published protocol).",
)
@click.option(
    "--detector",
    metavar="NAME",
    help="A detection model of torchvision, or world.  [default: the dataset's own, or"
    " fasterrcnn_resnet50_fpn_v2]",
)
@click.option(
    "--detector-weights",
    metavar="FILE|ENTRY",
    help="A weights file, or one of torchvision's weights entries.",
)
@click.option(
    "--detector-classes",
    metavar="coco80|hico80|FILE",
    help="What the classes of a weights file are that has neither COCO's 91 nor the vocabulary's:"
    " COCO's 80 objects in COCO's order, in HICO's (the alphabet's), or one name a line. Class 0 is"
    " the background.",
)
@click.option(
    "--proposals",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Detections in COCO's results form (JSON), in the place of a detector.",
)
@click.option(
    "--clip-model",
    metavar="NAME|FOLDER",
    help="A model of open_clip, an hf-hub: name, or a folder in open_clip's layout.  [default: the"
    " dataset's own, or RN50x16]",
)
@click.option("--clip-weights", metavar="TAG|FILE", help="A pretrained tag or a checkpoint file.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    help="Of CLIP's image tower; it decides answers. auto is float16 on a GPU, else float32.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="Sentence with {ing} and {object}; give several to average them.  [default: a picture of"
    " person {ing} {object}]",
)
@click.option(
    "--level",
    type=click.Choice(["region", "image"]),
    default="region",
    show_default=True,
    help="What the teacher sees of a pair: its union box, or the whole image.",
)
@click.option(
    "--region",
    default="pad",
    show_default=True,
    metavar="pad|stretch|context=F",
    help="How that becomes the teacher's square input: with black bars, stretched, or with bars"
    " around a box grown F-fold.",
)
@click.option("--person-threshold", type=SCORE, help="Lowest score of a person.  [default: 0.2]")
@click.option("--object-threshold", type=SCORE, help="Of the other partner.  [default: 0.2]")
@click.option("--max-people", type=COUNT, help="Per image, the best ones.  [default: 15]")
@click.option("--max-objects", type=COUNT, help="Per image, the best ones.  [default: 15]")
@click.option("--images-per-shard", type=COUNT, default=256, show_default=True)
@click.option(
    "--batch-size",
    type=COUNT,
    show_default="64, on a GPU 256",
    help="Regions for CLIP at once.",
)
@click.option(
    "--detector-batch-size",
    type=COUNT,
    default=16,
    show_default=True,
    help="Images of one size for the detector at once.",
)
@click.option("--embeddings/--no-embeddings", default=True, show_default=True)
@click.option("--strict", is_flag=True, help="Refuse blemishes and unreadable images.")
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
    mode: Mode | None,
    share: Share | None,
    threads: int | None,
    dry_run: bool,
) -> None:
    """Ask the teacher about every image of DATASET; the same command goes on after a stop."""
    from pipeline.utils.signals import terminated_like_interrupted
    from teacher_cache import build as builder
    from teacher_cache.build import BuildConfig
    from teacher_cache.cluster.run import job_script
    from teacher_cache.detectors.pairing import PairingConfig
    from teacher_cache.detectors.torchvision import class_names
    from teacher_cache.extraction.extract import AskingConfig
    from teacher_cache.teachers.prompts import TEMPLATE
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
        detector_classes=None if detector_classes is None else class_names(detector_classes),
        clip_model=clip_model,
        clip_weights=clip_weights,
        precision=precision,
        templates=templates or (TEMPLATE,),
        asking=AskingConfig(
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
        click.echo(job_script(config.mode, out), nl=False)
        return
    with terminated_like_interrupted():
        builder.build(config)


@cache.command("batch-scripts")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace scripts that are there.")
@config_option
def batch_scripts(folder: Path, overwrite: bool) -> None:
    """Copy ready scripts for SLURM into DIR."""
    from pipeline.utils.files import copy_scripts

    for path in copy_scripts("teacher_cache.cluster", SCRIPTS, folder, overwrite):
        click.echo(path)


@cache.command("world-models")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--only", type=click.Choice(["teacher", "detector"]), help="One of the two.")
@click.option("--pictures", type=COUNT, help="Pictures that both learn from.  [default: 3000]")
@click.option("--teacher-steps", type=COUNT, help="Length of its training.  [default: 500]")
@click.option("--detector-epochs", type=COUNT, help="Length of its training.  [default: 4]")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="Sentence with {ing} and {object} that the teacher learns; give several for a teacher of"
    " several.  [default: a picture of person {ing} {object}]",
)
@device_option
@config_option
def world_models(
    folder: Path,
    seed: int,
    only: str | None,
    pictures: int | None,
    teacher_steps: int | None,
    detector_epochs: int | None,
    templates: tuple[str, ...],
    device: str,
) -> None:
    """Train the embedded world's teacher and detector into FOLDER."""
    from dataclasses import replace

    from teacher_cache.toy.models import WorldModels
    from teacher_cache.toy.train import train_world_models

    config = WorldModels(seed=seed)
    if only is not None:
        config = replace(config, wanted=(only,))
    if pictures is not None:
        config = replace(config, pictures=pictures)
    if teacher_steps is not None:
        config = replace(config, teacher=replace(config.teacher, steps=teacher_steps))
    if detector_epochs is not None:
        config = replace(config, detector=replace(config.detector, epochs=detector_epochs))
    if templates:
        config = replace(config, templates=templates)
    train_world_models(folder, config, device)


for command in COMMANDS:
    cache.add_command(command)


def main() -> None:
    """Entry point of `eoid-cache`."""
    run_command(cache)
