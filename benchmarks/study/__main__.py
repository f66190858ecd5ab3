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

from benchmarks.demo import run_words
from benchmarks.study.experiment import Experiment
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.page import write_experiment, write_page
from benchmarks.study.pieces import TINY, WHOLE, Scale
from benchmarks.study.records import Records
from benchmarks.study.together import Task, make_together
from benchmarks.study.workshop import StoppedError, Workshop, estimate
from pipeline.utils.errors import InputError

RESULTS = Path(__file__).parent / "results"
MOST_JOBS = 8


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        experiments: in this order, every seed of the first before the second.
        seeds: of toy datasets, models and students.
        out: folder of the runs.
        results: folder of tables and figures.
        scale: how large everything is.
        base: folder of demos whose models are used; None for none.
        budget: minutes after which no further command is started; None for no bound.
        jobs: commands that run at a time; several write their lines into files.
        rerun: also runs what is in `results`.
        execute: runs a command's words, and gives its exit code; see `Workshop`.
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
    execute: Callable[[Sequence[str], Path | None], int] = run_words

    def workshops(self) -> list[Workshop]:
        """One for every seed."""
        return [
            Workshop(self.out, seed, self.execute, self.scale, self.base, logged=self.jobs > 1)
            for seed in self.seeds
        ]

    def records(self) -> Records:
        """What was measured before."""
        return Records.read(self.results)

    def lacks(self, workshops: Sequence[Workshop], records: Records) -> dict[str, list[Task]]:
        """What has to be run, by experiment; see `missing`."""
        return missing(self.experiments, workshops, Records() if self.rerun else records)


def run_study(plan: Plan, say: Callable[[str], None] = print) -> int:
    """Runs what is missing; writes tables and figures whenever an experiment is done.

    Returns:
        0 where all that was asked for is there or the budget is used up, 1 where a command could
        not do its work (the others were run all the same), else the exit code of the command that
        was told to stop.
    """
    workshops, records = plan.workshops(), plan.records()
    lacks = plan.lacks(workshops, records)
    left = {task.own: task for tasks in lacks.values() for task in tasks}
    tasks = list(left.values())
    failed = False

    def begun(task: Task) -> None:
        name = next(name for name, own in lacks.items() if task in own)
        rest = _duration(estimate(workshops, [each.piece for each in left.values()]) / plan.jobs)
        say(
            f"{name}, seed {task.workshop.seed}, {task.piece.folder}:"
            f" {len(left)} commands left, about {rest}"
        )

    def ended(task: Task, fine: bool) -> None:
        nonlocal failed
        del left[task.own]
        if not fine:
            failed = True
            log = task.workshop.log(task.piece)
            say(
                f"{task.piece.folder}: this command failed; continuing with others"
                f"{f', see {log}' if log else ''}"
            )
        for experiment in plan.experiments:
            own = lacks[experiment.name]
            if task in own and not any(each.own in left for each in own):
                write_experiment(experiment, workshops, plan.results, records)

    if not tasks:
        say(f"nothing to run: all results are in {plan.results} (--rerun runs everything again)")
    until = None if plan.budget is None else time.monotonic() + 60 * plan.budget
    code = 0
    try:
        if make_together(tasks, plan.jobs, until, begun, ended):
            say(f"{plan.budget:g} minutes are over; the same command resumes")
    except StoppedError as stopped:
        say("stopped; the same command resumes")
        code = stopped.code
    finally:
        for experiment in plan.experiments:
            write_experiment(experiment, workshops, plan.results, records)
        write_page(EXPERIMENTS, plan.results)
    return code or (1 if failed else 0)


def missing(
    experiments: Sequence[Experiment], workshops: Sequence[Workshop], records: Records
) -> dict[str, list[Task]]:
    """The missing runs of each experiment by its name, without those of earlier experiments."""
    found: dict[str, list[Task]] = {}
    known: set[tuple[int, str]] = set()
    for experiment in experiments:
        own = found.setdefault(experiment.name, [])
        for workshop in workshops:
            pieces = [
                piece
                for variant in experiment.variants
                if not records.has(variant, workshop.scale, workshop.seed)
                for piece in variant.pieces
            ]
            for piece in workshop.missing(pieces):
                task = Task(workshop, piece)
                if task.own not in known:
                    known.add(task.own)
                    own.append(task)
    return found


def list_study(plan: Plan, say: Callable[[str], None] = print) -> None:
    """Lists the experiments, the number of missing runs of each, and their expected time."""
    workshops = plan.workshops()
    lacks = plan.lacks(workshops, plan.records())

    def told(tasks: Sequence[Task]) -> str:
        return _duration(estimate(workshops, [task.piece for task in tasks]) / plan.jobs)

    for experiment in plan.experiments:
        own = lacks[experiment.name]
        say(
            f"{experiment.name:<16} {len(experiment.variants):>2} rows, {len(own):>3} commands to"
            f" run, about {told(own)}: {experiment.title}"
        )
    tasks = [task for own in lacks.values() for task in own]
    say(f"total: {len(tasks)} commands left, about {told(tasks)}")


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
