"""Runs the missing experiments of the study and writes tables, figures and one page of results.

Every run is an ordinary command of this project, with its own folder. Finished runs are reused and
interrupted ones resume, so that the same call continues after Ctrl-C or a kill. Runs whose results
are recorded are not repeated, so that a study can continue on another machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.study.experiments import EXPERIMENTS, Experiment
from benchmarks.study.results import is_recorded, read_records, write_experiment, write_page
from benchmarks.study.runner import Runner, Task
from pipeline.utils.cli import run_command

RESULTS = Path(__file__).parent / "results"
MAX_JOBS = 8


def run_study(
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    runner: Runner,
    results: Path,
    budget: float | None = None,
    rerun: bool = False,
) -> int:
    """Runs the missing commands and writes tables, figures and page.

    Args:
        experiments: experiments in the order of their execution.
        seeds: seeds of toy datasets, models and students.
        runner: runner of the commands.
        results: folder of tables and figures.
        budget: minutes after which no further command is started; None for no limit.
        rerun: whether recorded runs are repeated.

    Returns:
        See `Runner.run`.
    """
    tasks = missing_tasks(experiments, seeds, runner, None if rerun else results)
    if not tasks:
        runner.report(f"nothing to run: all results are in {results} (--rerun runs all again)")
    try:
        return runner.run(tasks, budget)
    finally:
        for experiment in experiments:
            write_experiment(experiment, runner, experiment.seeds or seeds, results)
        write_page(results)


def missing_tasks(
    experiments: Sequence[Experiment], seeds: Sequence[int], runner: Runner, results: Path | None
) -> list[Task]:
    """The commands to run for rows without values in the folder `results`; for all rows if it is
    None."""
    records = {} if results is None else read_records(results)
    return runner.missing(
        (seed, artifact)
        for experiment in experiments
        for variant in experiment.variants
        for seed in experiment.seeds or seeds
        if not is_recorded(records, variant, seed)
        for artifact in variant.artifacts
    )


def _parse_seeds(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise click.BadParameter(f"expected numbers from 0 on, found {text!r}")
    return tuple(dict.fromkeys(map(int, words)))


@click.command(help=__doc__)
@click.option("--out", type=Path, default=Path("study"), help="Folder of the runs.")
@click.option("--results", type=Path, default=RESULTS, help="Folder of tables and figures.")
@click.option("--seeds", default="0,1,2", callback=_parse_seeds, help="Seeds, such as 0,1,2.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([experiment.name for experiment in EXPERIMENTS]),
    help="Run only this experiment.",
)
@click.option("--jobs", type=click.IntRange(1), help="Parallel commands; default: one per core.")
@click.option("--rerun", is_flag=True, help="Repeat recorded runs too.")
@click.option("--budget", type=float, metavar="MINUTES", help="Stop after this time.")
@click.option("--list", "only_list", is_flag=True, help="List experiments and missing runs.")
def main(
    out: Path,
    results: Path,
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    jobs: int | None,
    rerun: bool,
    budget: float | None,
    only_list: bool,
) -> None:
    experiments = [each for each in EXPERIMENTS if not only or each.name in only]
    # Small models use cores best with one thread each.
    cores = os.cpu_count() or 1
    jobs = jobs or (1 if torch.cuda.is_available() else min(MAX_JOBS, cores))
    runner = Runner(out.absolute(), jobs)
    if only_list:
        recorded = None if rerun else results
        for each in experiments:
            count = len(missing_tasks([each], seeds, runner, recorded))
            print(f"{each.name:<22} {count:>3} commands to run: {each.title}")
        return
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    code = run_study(experiments, seeds, runner, results, budget, rerun)
    print(f"\n{results / 'README.md'}")
    sys.exit(code)


if __name__ == "__main__":
    run_command(main)
