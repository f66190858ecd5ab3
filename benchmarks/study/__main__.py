"""Runs what is missing of the study and writes what it has found.

Every run is a command that a user could type, echoed as it starts, in a folder of its own; runs
that are there are found again, and a run that was stopped goes on, so that the same call continues
after Ctrl-C or a kill. Two calls with different --seeds may work beside each other on one folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.demo import run_words
from benchmarks.study.experiment import Experiment
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.page import write_experiment, write_page
from benchmarks.study.pieces import TINY, WHOLE, Piece, Scale
from benchmarks.study.workshop import StoppedError, Workshop, estimate
from pipeline.errors import InputError

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        experiments: in this order, every seed of the first before the second.
        seeds: of worlds, models and students.
        out: folder of the runs.
        results: folder of tables and figures.
        scale: how large everything is.
        base: folder of demos whose worlds, models and caches are used; None for none.
        budget: minutes after which no further command is started; None for no bound.
        execute: runs a command's words and gives its exit code.
    """

    experiments: tuple[Experiment, ...]
    seeds: tuple[int, ...]
    out: Path
    results: Path
    scale: Scale = WHOLE
    base: Path | None = None
    budget: float | None = None
    execute: Callable[[Sequence[str]], int] = run_words

    def workshops(self) -> list[Workshop]:
        """One for every seed."""
        return [
            Workshop(self.out, seed, self.execute, self.scale, self.base) for seed in self.seeds
        ]


def run_study(plan: Plan, say: Callable[[str], None] = print) -> int:
    """Runs what is missing; writes tables and figures whenever an experiment is done.

    Returns:
        0 where all that was asked for is there or the budget is used up, 1 where a command could
        not do its work (the others were run all the same), else the exit code of the command that
        was told to stop.
    """
    workshops = plan.workshops()
    started = time.monotonic()
    failed: set[tuple[int, str]] = set()
    code = 0
    try:
        for experiment in plan.experiments:
            for workshop in workshops:
                for piece in workshop.missing(_pieces(experiment)):
                    if plan.budget is not None and time.monotonic() - started > 60 * plan.budget:
                        say(f"{plan.budget:g} minutes are over; the same call goes on from here")
                        return 1 if failed else 0
                    own = (workshop.seed, piece.folder)
                    behind = {(workshop.seed, need.folder) for _, need in piece.needs}
                    if own in failed or behind & failed:
                        failed.add(own)
                        continue
                    say(f"\n{experiment.name}, seed {workshop.seed}: {_left(plan, workshops)}")
                    if not workshop.make(piece):
                        say(f"{piece.folder}: this command failed; going on with others")
                        failed.add(own)
            write_experiment(experiment, workshops, plan.results)
    except StoppedError as stopped:
        say("stopped; the same call goes on from here")
        code = stopped.code
    finally:
        for experiment in plan.experiments:
            write_experiment(experiment, workshops, plan.results)
        write_page(EXPERIMENTS, plan.results)
    return code or (1 if failed else 0)


def list_study(plan: Plan, say: Callable[[str], None] = print) -> None:
    """Tells the experiments, what is missing of each after those before it, and for how long."""
    workshops = plan.workshops()
    known: set[tuple[int, str]] = set()
    for experiment in plan.experiments:
        new = []
        for workshop in workshops:
            for piece in workshop.missing(_pieces(experiment)):
                if (workshop.seed, piece.digest) not in known:
                    known.add((workshop.seed, piece.digest))
                    new.append(piece)
        say(
            f"{experiment.name:<16} {len(experiment.variants):>2} rows, {len(new):>3} commands to"
            f" run, about {_duration(estimate(workshops, new))}: {experiment.title}"
        )
    say(f"in all {_left(plan, workshops)}")


def _pieces(experiment: Experiment) -> list[Piece]:
    """Students and scores of an experiment."""
    runs = [variant.run for variant in experiment.variants]
    return runs + [variant.teacher for variant in experiment.variants if variant.teacher]


def _left(plan: Plan, workshops: Sequence[Workshop]) -> str:
    everything = [piece for experiment in plan.experiments for piece in _pieces(experiment)]
    left = [piece for workshop in workshops for piece in workshop.missing(everything)]
    return f"{len(left)} commands left, about {_duration(estimate(workshops, left))}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(dict.fromkeys(int(part) for part in text.replace(",", " ").split()))
    if not seeds or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers from 0 on, found {text!r}")
    return seeds


def main(words: Sequence[str] | None = None) -> int:
    """Entry point."""
    names = [experiment.name for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(prog="study", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of tables and figures")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="for example 0,1,2")
    parser.add_argument("--only", action="append", choices=names, help="an experiment")
    parser.add_argument("--base", type=Path, help="folder of demos to take from")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="then stop")
    parser.add_argument("--tiny", action="store_true", help="a few pictures, to see that all works")
    parser.add_argument("--list", action="store_true", help="what is there and what is missing")
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
    )
    try:
        if options.list:
            list_study(plan)
            return 0
        code = run_study(plan)
    except InputError as error:
        parser.exit(2, f"study: {error}\n")
    print(f"\n{plan.results / 'README.md'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
