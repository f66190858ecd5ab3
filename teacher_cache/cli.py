"""The `eoid-cache` command."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import click
import cloup

from pipeline.cluster.batch_scripts import BatchScript, write_batch_scripts
from pipeline.cluster.cli_options import cluster_options
from pipeline.utils.cli import HELP_SETTINGS, device_option, run_command
from pipeline.utils.cli_options import (
    PathType,
    config_option,
    describe_hidden_settings,
    format_config,
    logging_options,
    option,
)
from teacher_cache.build_options import (
    extraction_options,
    images_per_shard_option,
    make_build_config,
)
from teacher_cache.cli_caches import COMMANDS

BUILD = "eoid-cache build"
BATCH_SCRIPTS = (
    BatchScript(
        "cache.sbatch",
        f"""\
Builds a teacher cache in a SLURM job. The arguments are those of `{BUILD}`:

  sbatch --gres=gpu:1 cache.sbatch hico --out hico-cache
      builds the cache in this job;
  sbatch --time=2-0 cache.sbatch hico --out hico-cache --slurm --jobs 8 --gres gpu:1
      submits eight worker jobs and distributes the shards among them; needs no GPU itself.""",
        BUILD,
    ),
    BatchScript(
        "cache_array.sbatch",
        f"""\
Builds a teacher cache with the jobs of a SLURM array, which write to one cache folder and need
no Dask scheduler. The arguments are those of `{BUILD}`:

  sbatch --array=0-7 --gres=gpu:1 cache_array.sbatch hico --out hico-cache

A job that has made its own shards goes on with those of slow and lost jobs, and the one that finds
none missing completes the cache. Submit the same command again, or a single job (--array=3), if all
jobs ended before. `eoid-cache verify hico-cache` lists missing shards.""",
        BUILD,
        is_array=True,
    ),
)
POSITIVE_INT = click.IntRange(min=1)
BUILDING = cloup.Section("Building")


@cloup.group(context_settings=HELP_SETTINGS)
def cache() -> None:
    """Phase one: run the detector and CLIP once per image and cache their outputs."""


@cache.command(epilog=describe_hidden_settings("eoid-cache config"), section=BUILDING)
@extraction_options
@cluster_options()
@cloup.option_group(
    "Output",
    option("--out", required=True, type=PathType(), help="The cache folder."),
    option(
        "--retry-failed",
        metavar="CACHE",
        type=PathType(),
        hidden=True,
        help=(
            "A finished cache of the same settings, which stays as it is: --out gets its shards, as"
            " links, except those with images that could not be read; these are made again."
        ),
    ),
    images_per_shard_option,
)
@config_option
def build(dry_run: bool, **options: Any) -> None:
    """Build a teacher cache of DATASET, resuming where a stopped build left off."""
    from pipeline.utils.signals import exit_on_sigterm
    from teacher_cache import build as builder

    config = make_build_config(options)
    if dry_run:
        from pipeline.cluster.slurm import job_script

        click.echo(job_script(options["mode"], config.out, builder.JOB_NAME), nl=False)
        return
    with exit_on_sigterm():
        builder.build_cache(config)


@cache.command(epilog=describe_hidden_settings("eoid-cache config"), section=BUILDING)
@extraction_options
@cloup.option_group(
    "Estimate",
    option(
        "--sample",
        type=POSITIVE_INT,
        default=64,
        show_default=True,
        help="Number of images that detector and teacher run on, at equal distances.",
    ),
    option(
        "--jobs",
        type=POSITIVE_INT,
        default=1,
        show_default=True,
        help="Number of jobs among which the shards are divided, each on a device like this one.",
    ),
    device_option,
    option(
        "--threads",
        type=POSITIVE_INT,
        hidden=True,
        show_default="the cores",
        help="Number of torch threads on a CPU.",
    ),
    option(
        "--out",
        type=PathType(),
        default=".",
        show_default="this folder",
        help="Where the cache will be; nothing is written there.",
    ),
    images_per_shard_option,
    option("--json", is_flag=True, help="Print the numbers as JSON."),
)
@config_option
def plan(sample: int, jobs: int, json: bool, **options: Any) -> None:
    """Estimate the pairs, bytes and hours of a build of DATASET, and write nothing.

    Detector and teacher run on a sample of the images. The other options of build, such as those of
    SLURM jobs, are accepted and have no effect, so that a command line or file of build can be
    tried.
    """
    from teacher_cache.estimate import show_estimate

    show_estimate(make_build_config(options), jobs, sample, json)


for parameter in build.params:
    if parameter.name not in {each.name for each in plan.params}:
        ignored = copy(parameter)
        assert isinstance(ignored, click.Option)
        ignored.hidden, ignored.expose_value, ignored.required = True, False, False
        plan.params.append(ignored)


@cache.command("config", section=BUILDING)
@logging_options
def print_config() -> None:
    """Print a commented TOML file with every setting of `eoid-cache build` for --config."""
    title = "Settings of eoid-cache build; the command line and --set win over this file."
    click.echo(format_config(build, title), nl=False)


@cache.command("batch-scripts", section=BUILDING)
@click.argument("folder", metavar="DIR", type=PathType())
@option("--overwrite", is_flag=True, help="Replace existing scripts.")
@config_option
def batch_scripts(folder: Path, overwrite: bool) -> None:
    """Copy SLURM batch scripts into DIR."""
    for path in write_batch_scripts(BATCH_SCRIPTS, folder, overwrite):
        click.echo(path)


@cache.command("toy-models", section=BUILDING)
@click.argument("folder", type=PathType())
@option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of images and weights.",
)
@option("--only", type=click.Choice(["teacher", "detector"]), help="Train only one of the two.")
@option(
    "--images",
    "num_images",
    type=POSITIVE_INT,
    default=3000,
    show_default=True,
    help="Number of training images.",
)
@option(
    "--teacher-steps",
    type=POSITIVE_INT,
    default=500,
    show_default=True,
    help="Number of training steps of the teacher.",
)
@option(
    "--detector-epochs",
    type=POSITIVE_INT,
    default=4,
    show_default=True,
    help="Number of training epochs of the detector.",
)
@option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    show_default="a picture of person {ing} {object}",
    help=(
        "Prompt template with {ing} and {object} that the teacher is trained on. Can be given"
        " several times."
    ),
)
@device_option
@config_option
def toy_models(
    folder: Path,
    only: str | None,
    templates: tuple[str, ...],
    device: str,
    **options: Any,
) -> None:
    """Train the toy dataset's teacher and detector and write them to FOLDER."""
    from teacher_cache.toy.train import ToyModelsConfig, train_toy_models

    if templates:
        options["templates"] = templates
    if only:
        options["models"] = (only,)
    train_toy_models(folder, ToyModelsConfig(**options), device)


for section, commands in COMMANDS.items():
    for command in commands:
        cache.add_command(command, section=section)


def main() -> None:
    """Entry point of `eoid-cache`."""
    run_command(cache)
