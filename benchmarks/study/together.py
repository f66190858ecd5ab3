"""Makes pieces beside each other, each as soon as what it needs is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from benchmarks.demo import INTERRUPTED
from benchmarks.study.pieces import Piece
from benchmarks.study.workshop import StoppedError, Workshop


@dataclass(frozen=True, eq=False)
class Task:
    """A piece that a seed lacks."""

    workshop: Workshop
    piece: Piece

    @property
    def own(self) -> tuple[int, str]:
        """Seed and piece."""
        return self.workshop.seed, self.piece.digest

    @property
    def behind(self) -> set[tuple[int, str]]:
        """What it needs, as `own` of these."""
        return {(self.workshop.seed, need.digest) for _, need in self.piece.needs}

    def is_ready(self) -> bool:
        """Whether all that it needs is made."""
        return all(self.workshop.is_made(need) for _, need in self.piece.needs)


class Here(Executor):
    """Does what is submitted at once, in the caller's thread: one command shows its own lines."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls `fn` and gives what came of it."""
        future = Future[Any]()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def make_together(
    tasks: Sequence[Task],
    jobs: int,
    until: float | None,
    begun: Callable[[Task], None],
    ended: Callable[[Task, bool], None],
) -> list[Task]:
    """Makes pieces, up to `jobs` of them at a time, the first ones first.

    Args:
        tasks: each once, what others need before these.
        jobs: commands that run at a time.
        until: `time.monotonic` after which none is started any more; None for no bound.
        begun: called before a task is begun.
        ended: called after one, and whether it could do its work.

    Returns:
        Tasks that were not begun since the time was over.

    Raises:
        StoppedError: a command was told to stop, or Ctrl-C was pressed; the others have ended.
    """
    waiting, running = list(tasks), dict[Future[bool], Task]()
    failed, stopped = set[tuple[int, str]](), None
    with ThreadPoolExecutor(jobs) if jobs > 1 else Here() as pool:
        while True:
            try:
                for task in list(waiting):
                    if task.behind & failed:
                        failed.add(task.own)
                        waiting.remove(task)
                    elif stopped or len(running) == jobs or not _in_time(until):
                        break
                    elif task.is_ready():
                        waiting.remove(task)
                        begun(task)
                        running[pool.submit(task.workshop.make, task.piece)] = task
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    try:
                        fine = future.result()
                    except StoppedError as error:
                        stopped = stopped or error
                        continue
                    if not fine:
                        failed.add(task.own)
                    ended(task, fine)
            except KeyboardInterrupt:
                # The commands have been told too, and save what they have.
                stopped = StoppedError(INTERRUPTED)
    if stopped:
        raise stopped
    return waiting


def _in_time(until: float | None) -> bool:
    return until is None or time.monotonic() < until
