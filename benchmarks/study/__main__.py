"""Runs the missing experiments of the study and writes tables, figures and one page of results.

Every run is an ordinary command of this project, with its own folder. Finished runs are reused and
interrupted ones resume, so that the same call continues after Ctrl-C or a kill. Runs whose results
are recorded are not repeated, so that a study can continue on another machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.demo import run_command
from benchmarks.study.artifacts import TINY, WHOLE, Scale
from benchmarks.study.experiment import Experiment
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.page import write_experiment, write_page
from benchmarks.study.parallel import Task, run_tasks
from benchmarks.study.records import Records
from benchmarks.study.runner import SeedRunner, StoppedError, estimate
from pipeline.utils.errors import InputError

RESULTS = Path(__file__).parent / "results"
MOST_JOBS = 8


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        experiments: experiments in the order of their execution.
        seeds: seeds of toy datasets, models and students.
        out: folder of the runs.
        results: folder of tables and figures.
        scale: size of datasets and trainings.
        base: folder of demos whose models are used; None for none.
        budget: minutes after which no further command is started; None for no limit.
        jobs: number of commands that run at a time; with more than one, their output goes to files.
        rerun: whether recorded runs are repeated.
        execute: runs a command and returns its exit code; see `SeedRunner`.
    """

    experiments: tuple[Experiment, ...]
    seeds: tuple[int, ...]
    out: Path
    results: Path
    scale: Scale = WHOLE
    base: Path | None = None
    budget: float | None = None
    jobs: int = 1
    rerun: bool = False
    execute: Callable[[Sequence[str], Path | None], int] = run_command

    def runners(self) -> list[SeedRunner]:
        """One runner per seed."""
        return [
            SeedRunner(self.out, seed, self.execute, self.scale, self.base, logged=self.jobs > 1)
            for seed in self.seeds
        ]

    def records(self) -> Records:
        """Recorded results."""
        return Records.read(self.results)

    def missing_tasks(
        self, runners: Sequence[SeedRunner], records: Records
    ) -> dict[str, list[Task]]:
        """Tasks to run, by experiment; see `missing`."""
        return missing(self.experiments, runners, Records() if self.rerun else records)


def run_study(plan: Plan, report: Callable[[str], None] = print) -> int:
    """Runs the missing commands; writes tables and figures whenever an experiment is complete.

    Returns:
        0 if all results are complete or the budget is used up, 1 if a command failed (commands that
        do not depend on it are run all the same), else the exit code of the interrupted command.
    """
    runners, records = plan.runners(), plan.records()
    tasks_by_experiment = plan.missing_tasks(runners, records)
    left = {task.key: task for tasks in tasks_by_experiment.values() for task in tasks}
    tasks = list(left.values())
    failed = False

    def on_start(task: Task) -> None:
        name = next(name for name, own in tasks_by_experiment.items() if task in own)
        rest = _duration(estimate(runners, [each.artifact for each in left.values()]) / plan.jobs)
        report(
            f"{name}, seed {task.runner.seed}, {task.artifact.folder}:"
            f" {len(left)} commands left, about {rest}"
        )

    def on_end(task: Task, succeeded: bool) -> None:
        nonlocal failed
        del left[task.key]
        if not succeeded:
            failed = True
            log = task.runner.log(task.artifact)
            report(
                f"{task.artifact.folder}: this command failed; continuing with others"
                f"{f', see {log}' if log else ''}"
            )
        for experiment in plan.experiments:
            own = tasks_by_experiment[experiment.name]
            if task in own and not any(each.key in left for each in own):
                write_experiment(experiment, runners, plan.results, records)

    if not tasks:
        report(f"nothing to run: all results are in {plan.results} (--rerun runs everything again)")
    until = None if plan.budget is None else time.monotonic() + 60 * plan.budget
    code = 0
    try:
        if run_tasks(tasks, plan.jobs, until, on_start, on_end):
            report(f"{plan.budget:g} minutes are over; the same command resumes")
    except StoppedError as stopped:
        report("stopped; the same command resumes")
        code = stopped.code
    finally:
        for experiment in plan.experiments:
            write_experiment(experiment, runners, plan.results, records)
        write_page(EXPERIMENTS, plan.results)
    return code or (1 if failed else 0)


def missing(
    experiments: Sequence[Experiment], runners: Sequence[SeedRunner], records: Records
) -> dict[str, list[Task]]:
    """The missing runs of each experiment by its name, without those of earlier experiments."""
    found: dict[str, list[Task]] = {}
    known: set[tuple[int, str]] = set()
    for experiment in experiments:
        own = found.setdefault(experiment.name, [])
        for runner in runners:
            artifacts = [
                artifact
                for variant in experiment.variants
                if not records.has(variant, runner.scale, runner.seed)
                for artifact in variant.artifacts
            ]
            for artifact in runner.missing(artifacts):
                task = Task(runner, artifact)
                if task.key not in known:
                    known.add(task.key)
                    own.append(task)
    return found


def list_study(plan: Plan, report: Callable[[str], None] = print) -> None:
    """Lists the experiments, the number of missing runs of each, and their expected time."""
    runners = plan.runners()
    tasks_by_experiment = plan.missing_tasks(runners, plan.records())

    def duration(tasks: Sequence[Task]) -> str:
        return _duration(estimate(runners, [task.artifact for task in tasks]) / plan.jobs)

    for experiment in plan.experiments:
        own = tasks_by_experiment[experiment.name]
        report(
            f"{experiment.name:<16} {len(experiment.variants):>2} rows, {len(own):>3} commands to"
            f" run, about {duration(own)}: {experiment.title}"
        )
    tasks = [task for own in tasks_by_experiment.values() for task in own]
    report(f"total: {len(tasks)} commands left, about {duration(tasks)}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def usual_jobs() -> int:
    """Number of commands run in parallel: one per core, or one on a machine with a GPU.

    Small models use cores best with one thread each.
    """
    return 1 if torch.cuda.is_available() else min(MOST_JOBS, os.cpu_count() or 1)


def _share_cores(jobs: int) -> None:
    """Divides the cores among the commands, unless the environment sets the number of threads."""
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {text!r}")
    return count


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(dict.fromkeys(int(part) for part in text.replace(",", " ").split()))
    if not seeds or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers from 0 on, found {text!r}")
    return seeds


def main(words: Sequence[str] | None = None) -> int:
    """Entry point."""
    names = [experiment.name for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(prog="study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("study"), help="Folder of the runs.")
    parser.add_argument("--results", type=Path, help="Folder of tables and figures.")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="Seeds, such as 0,1,2.")
    parser.add_argument("--only", action="append", choices=names, help="Run only this experiment.")
    parser.add_argument("--base", type=Path, help="Folder of demos whose models are used.")
    parser.add_argument("--jobs", type=_count, help="Parallel commands; default: one per core.")
    parser.add_argument("--rerun", action="store_true", help="Repeat recorded runs too.")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="Stop after this time.")
    parser.add_argument("--tiny", action="store_true", help="Use few images, as a test.")
    parser.add_argument("--list", action="store_true", help="List experiments and missing runs.")
    options = parser.parse_args(words)
    chosen = options.only or names
    plan = Plan(
        tuple(each for each in EXPERIMENTS if each.name in chosen),
        options.seeds,
        options.out.absolute(),
        options.results or (options.out / "results" if options.tiny else RESULTS),
        TINY if options.tiny else WHOLE,
        None if options.base is None else options.base.absolute(),
        options.budget,
        options.jobs or usual_jobs(),
        options.rerun,
    )
    try:
        if options.list:
            list_study(plan)
            return 0
        _share_cores(plan.jobs)
        code = run_study(plan)
    except InputError as error:
        parser.exit(2, f"study: {error}\n")
    print(f"\n{plan.results / 'README.md'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
