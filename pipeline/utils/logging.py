"""The project's logger.

All messages of commands except their results (issues, resumed work, warnings, validation scores) go
to loggers below `eoid`. Imports install no handlers, so users of the Python interface configure
`logging.getLogger("eoid")` like the logger of any other library. Commands show its records on
stderr.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROJECT = "eoid"
VERBOSE_FORMAT = "%(levelname)s %(name)s: %(message)s"


class _Formatter(logging.Formatter):
    """Names the level of warnings and errors only, as other command-line tools do."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        is_plain = record.levelno < logging.WARNING
        return line if is_plain else f"{record.levelname.lower()}: {line}"


def get_logger(module: str) -> logging.Logger:
    """The logger `eoid.MODULE` of a module.

    Args:
        module: the module's `__name__`.
    """
    return logging.getLogger(f"{PROJECT}.{module}")


def shows_progress() -> bool:
    """Whether progress is shown, that is unless the project's logger shows warnings only.

    Progress is also shown if no level is set.
    """
    return logging.getLogger(PROJECT).level <= logging.INFO


@contextmanager
def log_to_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Shows log records on stderr while the body runs.

    Args:
        level: minimum level of the records; with DEBUG, lines start with their level and logger.
    """
    logger = logging.getLogger(PROJECT)
    handler = _StderrHandler()
    verbose = level <= logging.DEBUG
    handler.setFormatter(logging.Formatter(VERBOSE_FORMAT) if verbose else _Formatter())
    before = logger.level, logger.propagate, logger.handlers[:]
    # Libraries may install handlers of the root logger, which would show every line again.
    logger.propagate, logger.handlers[:] = False, [handler]
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers[:] = before[1:]


@contextmanager
def only_errors() -> Iterator[None]:
    """Hides warnings and other messages while the body runs, for all processes but the first."""
    logger = logging.getLogger(PROJECT)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _StderrHandler(logging.Handler):
    """Writes lines to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # A single write, so that lines of several processes do not mix.
            line = self.format(record) + "\n"
            # There is no progress bar unless tqdm has been imported.
            if tqdm := sys.modules.get("tqdm"):
                tqdm.tqdm.write(line, file=sys.stderr, end="")
            else:
                sys.stderr.write(line)
        except Exception:
            self.handleError(record)
