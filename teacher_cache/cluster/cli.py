"""The options of `eoid-cache build` that say where shards are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline.errors import InputError


class OrNone(click.ParamType):
    """A value of another type, or `none`."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, f"{kind.name} or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.strip().lower() == "none":
            return None
        return self.kind.convert(value, param, ctx)


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
            Mode,
            RunningCluster,
            SlurmJobs,
        )
        from teacher_cache.cluster.share import Share

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
