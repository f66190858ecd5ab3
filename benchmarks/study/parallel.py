"""Runs commands in parallel, each as soon as its inputs exist."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from benchmarks.demo import INTERRUPTED
from benchmarks.study.artifacts import Artifact
from benchmarks.study.runner import SeedRunner, StoppedError


@dataclass(frozen=True, eq=False)
class Task:
    """A missing artifact of a seed."""

    runner: SeedRunner
    artifact: Artifact

    @property
    def key(self) -> tuple[int, str]:
        """Seed and digest of the artifact."""
        return self.runner.seed, self.artifact.digest

    @property
    def input_keys(self) -> set[tuple[int, str]]:
        """Keys of the inputs."""
        return {(self.runner.seed, source.digest) for _, source in self.artifact.inputs}

    def is_ready(self) -> bool:
        """Whether all inputs exist."""
        return all(self.runner.is_made(source) for _, source in self.artifact.inputs)


class CallerThreadExecutor(Executor):
    """Executes submitted calls at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls `fn`; returns a future with its result or exception."""
        future = Future[Any]()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run_tasks(
    tasks: Sequence[Task],
    jobs: int,
    until: float | None,
    on_start: Callable[[Task], None],
    on_end: Callable[[Task, bool], None],
) -> list[Task]:
    """Runs tasks in their order, up to `jobs` of them at a time.

    Args:
        tasks: distinct tasks, each after those of its inputs.
        jobs: maximum number of commands that run at a time.
        until: value of `time.monotonic` after which no task is started; None for no limit.
        on_start: called with a task before it starts.
        on_end: called with a task after it has ended, and whether it succeeded.

    Returns:
        Tasks that were not started before `until`.

    Raises:
        StoppedError: a command was interrupted, or Ctrl-C was pressed; all commands have ended.
    """
    waiting, running = list(tasks), dict[Future[bool], Task]()
    failed, stopped = set[tuple[int, str]](), None
    with ThreadPoolExecutor(jobs) if jobs > 1 else CallerThreadExecutor() as pool:
        while True:
            try:
                for task in list(waiting):
                    if task.input_keys & failed:
                        failed.add(task.key)
                        waiting.remove(task)
                    elif stopped or len(running) == jobs or not _in_time(until):
                        break
                    elif task.is_ready():
                        waiting.remove(task)
                        on_start(task)
                        running[pool.submit(task.runner.make, task.artifact)] = task
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    try:
                        succeeded = future.result()
                    except StoppedError as error:
                        stopped = stopped or error
                        continue
                    if not succeeded:
                        failed.add(task.key)
                    on_end(task, succeeded)
            except KeyboardInterrupt:
                # The commands have received the signal too, and save their state.
                stopped = StoppedError(INTERRUPTED)
    if stopped:
        raise stopped
    return waiting


def _in_time(until: float | None) -> bool:
    return until is None or time.monotonic() < until
