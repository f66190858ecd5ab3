"""Runs trainings beside each other, each in a process of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context, parent_process
from queue import Empty
from typing import Any

from pipeline.progress import Progress
from teacher_cache.interrupts import interrupts_waiting

Report = Callable[[int, str], None]
Work = Callable[[Report], None]
# Seconds without a report after which somebody looks whether the processes still live.
PATIENCE = 1.0


def run_side_by_side(works: Mapping[str, tuple[Work, int]]) -> None:
    """Runs every work in a process of its own, with one progress bar each.

    Args:
        works: by name, a function that is given `report(images, note)`, and its total of images.

    Raises:
        RuntimeError: a process failed, its traceback is in the message; or it was killed.
    """
    context = get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_run, name=name, args=(name, work, queue), daemon=True)
        for name, (work, _) in works.items()
    ]
    bars = {name: Progress(total, name, "images") for name, (_, total) in works.items()}
    try:
        with interrupts_waiting():
            for process in processes:
                process.start()
        running = len(processes)
        while running:
            name, count, note = _next(queue, processes)
            if count is None:
                if note:
                    raise RuntimeError(f"{name} failed:\n{note}")
                bars[name].close()
                running -= 1
            else:
                bars[name].advance(count, note)
    finally:
        for process in processes:
            # One that never started cannot be ended.
            if process.is_alive():
                process.terminate()
                process.join()


def _next(queue: Any, processes: Sequence[Any]) -> tuple[str, int | None, str]:
    """The next report.

    Raises:
        RuntimeError: a process was killed, for want of memory for instance.
    """
    while True:
        try:
            return queue.get(timeout=PATIENCE)
        except Empty:
            for process in processes:
                if process.exitcode:
                    message = f"{process.name} died with exit code {process.exitcode}"
                    raise RuntimeError(message) from None


def _run(name: str, work: Work, queue: Any) -> None:
    def report(count: int, note: str) -> None:
        parent = parent_process()
        if parent is not None and not parent.is_alive():
            # Killed, so that it could not end this process.
            sys.exit(1)
        queue.put((name, count, note))

    try:
        work(report)
    except Exception:
        queue.put((name, None, traceback.format_exc()))
    else:
        queue.put((name, None, ""))
