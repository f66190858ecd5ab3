"""Runs jobs in processes of their own, with a progress bar for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import connection, get_context, resource_tracker
from typing import Any

from pipeline.utils.progress import Progress
from pipeline.utils.signals import defer_interrupts

# Called by a job with a number of images and a progress note.
Report = Callable[[int, str], None]


def run_in_processes(jobs: Mapping[str, tuple[Callable[[Report], None], int]]) -> None:
    """Runs each job in its own process, with a progress bar per job.

    Args:
        jobs: a function and its total number of images, by name. The function is called with
            `report(images, note)`, which advances the progress bar.

    Raises:
        RuntimeError: a job failed (its process has printed a traceback), or its process was killed,
            for example because memory ran out.
    """
    # The first process would start it too, and it unblocks SIGINT when it starts.
    resource_tracker.ensure_running()
    context = get_context("spawn")
    # Processes and their progress bars, by the pipe that they report to.
    running: dict[Any, tuple[Any, Progress]] = {}
    try:
        for name, (job, total) in jobs.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_job, name=name, args=(job, sender))
            running[receiver] = (process, Progress(total, name, "images"))
            with defer_interrupts():
                process.start()
            # Now only the process can write, so that its end is the end of the pipe.
            sender.close()
        while running:
            pipes: list[Any] = connection.wait(list(running))
            for ready in pipes:
                process, bar = running[ready]
                try:
                    bar.update(*ready.recv())
                except EOFError:
                    process.join()
                    if process.exitcode:
                        message = f"{process.name} ended with exit code {process.exitcode}"
                        raise RuntimeError(message) from None
                    bar.close()
                    del running[ready]
    finally:
        for process, _ in running.values():
            # `terminate` raises an error for a process that was not started.
            if process.is_alive():
                process.terminate()
                process.join()


def _run_job(job: Callable[[Report], None], sender: connection.Connection) -> None:
    # The pipe is broken if the parent was killed, which could not terminate this process.
    with suppress(BrokenPipeError):
        job(lambda count, note: sender.send((count, note)))
