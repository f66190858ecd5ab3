"""Runs the commands of the study, each once, in parallel and as soon as its inputs exist."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from benchmarks.demo import SIGNALLED, shell_code, start_command
from benchmarks.study.artifacts import SPLITS, Artifact

FAILED, INTERRUPTED = 1, SIGNALLED + signal.SIGINT
# Exit codes of commands that failed: unexpected errors, and invalid input. Others mean that a
# command was stopped.
FAILURES = (1, 2)
# A seed and an artifact of it.
Task = tuple[int, Artifact]


def run_command(words: Sequence[str], log: Path | None) -> int:
    """Runs a command and returns its exit code as a shell does; see `start_command`."""
    return shell_code(start_command(words, log))


@dataclass(frozen=True)
class Runner:
    """Runs commands below a folder.

    Attributes:
        out: folder of the study.
        jobs: number of commands that run at a time; with more than one, their output goes to files.
        execute: runs a command, with its output in a file unless that is None, and returns its exit
            code.
        report: shows a line of text.
    """

    out: Path
    jobs: int = 1
    execute: Callable[[Sequence[str], Path | None], int] = run_command
    report: Callable[[str], None] = print

    def folder(self, seed: int, artifact: Artifact) -> Path:
        """The folder of an artifact."""
        return self.out / f"seed-{seed}" / artifact.folder

    def is_made(self, seed: int, artifact: Artifact) -> bool:
        """Whether the artifact's command has succeeded."""
        return self.folder(seed, artifact).with_suffix(".done").is_file()

    def missing(self, wanted: Iterable[Task]) -> list[Task]:
        """Missing artifacts among these and their inputs, each once, inputs first."""
        found: dict[tuple[int, str], Task] = {}
        for seed, artifact in wanted:
            if (seed, artifact.digest) not in found and not self.is_made(seed, artifact):
                for _, source in self.missing((seed, each) for each in artifact.inputs.values()):
                    found.setdefault((seed, source.digest), (seed, source))
                found[seed, artifact.digest] = (seed, artifact)
        return list(found.values())

    def run(self, tasks: Sequence[Task], budget: float | None = None) -> int:
        """Runs commands; commands that depend on a failed one are left out.

        Args:
            tasks: missing artifacts, in the order of their execution.
            budget: minutes after which no further command is started; None for no limit.

        Returns:
            0, `FAILED` if a command failed, or the exit code of a command that was stopped.
        """
        waiting, running, code = list(tasks), dict[Future[int], Task](), 0
        end = math.inf if budget is None else time.monotonic() + 60 * budget
        with ThreadPoolExecutor(self.jobs) as pool:
            while True:
                try:
                    for task in list(waiting):
                        if len(running) == self.jobs or code > FAILED or time.monotonic() >= end:
                            break
                        if self._is_ready(task):
                            waiting.remove(task)
                            self.report(
                                f"{task[1].folder}, seed {task[0]}: {len(waiting)} commands follow"
                            )
                            running[pool.submit(self.make, *task)] = task
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        code = max(code, future.result())
                        del running[future]
                except KeyboardInterrupt:
                    # The commands have received the signal too, and save their state.
                    code = INTERRUPTED
        if code > FAILED:
            self.report("stopped; the same command resumes")
        elif waiting and time.monotonic() >= end:
            self.report(f"{budget:g} minutes are over; the same command resumes")
        return code

    def _is_ready(self, task: Task) -> bool:
        seed, artifact = task
        return all(self.is_made(seed, source) for source in artifact.inputs.values())

    def make(self, seed: int, artifact: Artifact) -> int:
        """Runs a command and marks its folder as complete; returns its exit code."""
        folder = self.folder(seed, artifact)
        folder.parent.mkdir(parents=True, exist_ok=True)
        inputs = {name: self.folder(seed, source) for name, source in artifact.inputs.items()}
        words = artifact.words({"out": folder, "seed": seed, "splits": SPLITS, **inputs})
        log = folder.with_suffix(".log") if self.jobs > 1 else None
        code = self.execute(words, log)
        if code in FAILURES:
            where = f", see {log}" if log else ""
            self.report(f"{folder.name}: this command failed; continuing with others{where}")
            return FAILED
        if code == 0:
            folder.with_suffix(".done").touch()
        return code
