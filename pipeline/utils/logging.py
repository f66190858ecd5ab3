"""The project's logger.

Everything that a command reports beside its results (what was found, dropped or resumed, warnings,
validation scores) goes through loggers below `eoid`. Importing a package installs no handler, so
Python users configure `logging.getLogger("eoid")` as any other library's logger; the commands show
its records on stderr.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROJECT = "eoid"
VERBOSE_FORMAT = "%(levelname)s %(name)s: %(message)s"


def get_logger(module: str) -> logging.Logger:
    """The logger `eoid.MODULE` of a module, which passes its `__name__`."""
    return logging.getLogger(f"{PROJECT}.{module}")


def shows_progress() -> bool:
    """Whether progress is shown: not where the project's logger is set to warnings or errors only.

    Without any configuration the level is unset, and progress is shown.
    """
    return logging.getLogger(PROJECT).level <= logging.INFO


@contextmanager
def log_to_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Shows records of this level and above on stderr while the body runs.

    Args:
        level: with DEBUG or below, lines begin with the record's level and logger.
    """
    logger = logging.getLogger(PROJECT)
    handler = _StderrHandler()
    if level <= logging.DEBUG:
        handler.setFormatter(logging.Formatter(VERBOSE_FORMAT))
    before = logger.level, logger.propagate, logger.handlers[:]
    # Handlers of the root logger, which libraries install too, would show every line again.
    logger.propagate, logger.handlers[:] = False, [handler]
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers[:] = before[1:]


@contextmanager
def only_errors() -> Iterator[None]:
    """Shows only errors while the body runs, for all but a distributed run's main process."""
    logger = logging.getLogger(PROJECT)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _StderrHandler(logging.Handler):
    """Writes lines to stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # In one piece, so that lines of several processes do not mix.
            line = self.format(record) + "\n"
            # There is no bar before tqdm is loaded.
            if tqdm := sys.modules.get("tqdm"):
                tqdm.tqdm.write(line, file=sys.stderr, end="")
            else:
                sys.stderr.write(line)
        except Exception:
            self.handleError(record)
