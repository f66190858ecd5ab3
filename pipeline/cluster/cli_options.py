"""Options that say where shards are made: local processes, a Dask cluster, SLURM, job arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
import cloup

from pipeline.utils.cli import device_option
from pipeline.utils.cli_options import PathType, describe_type, option, setting_rank
from pipeline.utils.errors import InputError

if TYPE_CHECKING:
    from pipeline.cluster.modes import ExecutionMode

POSITIVE_INT = click.IntRange(min=1)


class OptionalType(click.ParamType):
    """A value of another type, or `none`."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, f"{describe_type(kind) or kind.name}, or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.strip().lower() == "none":
            return None
        return self.kind.convert(value, param, ctx)


SLURM_ARRAY = "slurm"
# As in modes.py, which is loaded later.
AUTO = "auto"


def _groups(workers: str, hidden: Collection[str]) -> tuple[Callable[..., Any], ...]:
    """The groups of cluster options; see `cluster_options`."""

    def make(name: str, *names: str, **attributes: Any) -> Callable[..., Any]:
        return option(name, *names, **{"hidden": name in hidden, **attributes})

    return (
        cloup.option_group(
            "Local processes",
            device_option,
            make(
                workers,
                type=click.IntRange(min=0),
                show_default="one for each GPU if there are several, otherwise 0",
                help="Number of worker processes on this machine; 0 works in this process.",
            ),
            make(
                "--threads",
                type=POSITIVE_INT,
                hidden=True,
                show_default="the cores, shared among the workers",
                help="Number of torch threads of each process on a CPU.",
            ),
        ),
        cloup.option_group(
            "Dask cluster",
            make(
                "--scheduler",
                metavar="ADDRESS|FILE",
                help="Use the workers of a running Dask cluster: host:port or scheduler file.",
            ),
            make(
                "--interface",
                metavar="NAME",
                hidden=True,
                show_default="chosen by Dask",
                help="With --slurm: network interface of the workers, such as ib0.",
            ),
            make(
                "--dashboard",
                metavar="[[HOST:]PORT]",
                is_flag=False,
                flag_value=AUTO,
                hidden=True,
                help=(
                    "Serve Dask's dashboard and report its address, with the extra dashboard; on"
                    " this machine only unless HOST is given. With --scheduler, report that of the"
                    " running cluster."
                ),
            ),
        ),
        cloup.option_group(
            "SLURM and job arrays",
            make(
                "--array",
                metavar="[I/N]",
                is_flag=False,
                flag_value=SLURM_ARRAY,
                help=(
                    "Make the shards of job I of N (0/N to N-1/N), then those of other jobs that"
                    " are missing; the N jobs are started separately and share one output folder."
                    " Without I/N, or with slurm, both are taken from SLURM's array variables."
                ),
            ),
            make(
                "--own-shards",
                "own_only",
                is_flag=True,
                hidden=True,
                help="With --array: leave missing shards of other jobs to them.",
            ),
            make("--slurm", is_flag=True, help="Start the workers as SLURM jobs."),
            make("--dry-run", is_flag=True, help="With --slurm: print the job script and stop."),
            make(
                "--jobs",
                type=POSITIVE_INT,
                default=1,
                show_default=True,
                help="Number of jobs at a time.",
            ),
            make(
                "--queue",
                metavar="NAME",
                show_default="the site's",
                help="Partition of the jobs.",
            ),
            make("--gres", metavar="TEXT", help="Generic resources of a job, such as gpu:1."),
            make(
                "--walltime",
                type=OptionalType(click.STRING),
                metavar="TIME|none",
                default="04:00:00",
                show_default=True,
                help="Time limit of each job; none takes the site's default.",
            ),
            make(
                "--cores",
                type=OptionalType(POSITIVE_INT),
                metavar="N|none",
                default=4,
                show_default=True,
                help="Number of cores per job; none takes the site's default.",
            ),
            make(
                "--memory",
                type=OptionalType(click.STRING),
                metavar="SIZE|none",
                default="16GB",
                show_default=True,
                help="Memory per job, 0 for all of a node; none leaves it to SLURM.",
            ),
            make("--account", metavar="NAME", hidden=True, help="Account to charge."),
            make(
                "--prologue",
                multiple=True,
                metavar="LINE",
                hidden=True,
                help="Shell line to run before the worker starts. Can be given several times.",
            ),
            make(
                "--directive",
                "directives",
                multiple=True,
                metavar="TEXT",
                hidden=True,
                help=(
                    "Another #SBATCH line, such as --constraint=a100. One that sets cores, memory "
                    "or time, such as --mem-per-gpu=40G, replaces that option."
                ),
            ),
            make(
                "--log-folder",
                type=PathType(),
                hidden=True,
                show_default="logs in the output folder",
                help="Folder for the jobs' logs.",
            ),
        ),
    )


def cluster_options(
    workers: str = "--workers", hidden: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the cluster options, which reach the command as `mode`, `share` and `dry_run`.

    Args:
        workers: the option with the number of local worker processes.
        hidden: further options that `--help` does not list.
    """
    workers_name = workers.lstrip("-")

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_mode(
            *args: Any,
            scheduler: str | None,
            slurm: bool,
            dry_run: bool,
            array: str | None,
            own_only: bool,
            dashboard: str | None,
            **options: Any,
        ) -> Any:
            from pipeline.cluster.modes import InProcess, LocalWorkers, RunningCluster, SlurmJobs
            from pipeline.cluster.tasks import ArrayShare

            workers = options.pop(workers_name)
            cluster = {"scheduler": scheduler, "slurm": slurm or None}
            _check_exclusive({workers_name: workers, **cluster})
            _check_exclusive({"array": array, **cluster})
            names = [field.name for field in fields(SlurmJobs) if field.name != "dashboard"]
            jobs = {name: options.pop(name) for name in names}
            if not slurm:
                _require("--slurm", [*jobs, "dry_run"])
            if array is None:
                _require("--array", ["own_only"])
            if dashboard is not None:
                _check_dashboard(dashboard, scheduler, bool(workers) or slurm)
            mode: ExecutionMode | None = None
            if slurm:
                mode = SlurmJobs(**jobs, dashboard=dashboard)
            elif scheduler is not None:
                mode = RunningCluster(scheduler, dashboard)
            elif workers is not None:
                mode = LocalWorkers(workers, dashboard) if workers else InProcess()
            share = None
            if array is not None:
                share = ArrayShare.from_slurm() if array == SLURM_ARRAY else ArrayShare.parse(array)
                share = replace(share, own_only=own_only)
                time.sleep(share.start_delay())
            return command(*args, mode=mode, share=share, dry_run=dry_run, **options)

        for group in reversed(_groups(workers, hidden)):
            with_mode = group(with_mode)
        return with_mode

    return decorate


def _check_exclusive(options: Mapping[str, object]) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]}: expected alone, found {' and '.join(given[1:])} too")


def _check_dashboard(dashboard: str, scheduler: str | None, has_own_scheduler: bool) -> None:
    """Refuses a dashboard without a Dask scheduler, and an address for that of another program."""
    from pipeline.cluster.modes import parse_dashboard

    if scheduler is None:
        if not has_own_scheduler:
            raise InputError(
                "--dashboard: expected a Dask scheduler (worker processes, --slurm or"
                " --scheduler), found none"
            )
        parse_dashboard(dashboard)
    elif dashboard != AUTO:
        raise InputError(
            "--dashboard: expected no address with --scheduler, whose dashboard has one, found"
            f" {dashboard}"
        )


def _require(mode: str, names: list[str]) -> None:
    """Refuses options that need the option `mode`; a configuration file may contain them."""
    context = click.get_current_context()
    for name in names:
        if setting_rank(context, name) > 1:
            (option,) = [param for param in context.command.params if param.name == name]
            raise InputError(f"{option.opts[0]}: expected together with {mode}, found alone")
