"""Progress of long loops on stderr: tqdm's bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.utils.logging import shows_progress

Item = TypeVar("Item")
# Seconds between plain lines, which stay in the log files of batch jobs.
LINE_INTERVAL = 10.0
# No monitor thread, which would receive signals that `defer_interrupts` blocks in the main thread.
tqdm.monitor_interval = 0
# tqdm's own format turns rates below 1 into "s/ images".
COUNTS = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Progress:
    """Shows the number of finished items, their rate and the remaining time.

    Nothing is shown if the project's logger is set to warnings only (`--quiet`).

    Args:
        total: number of items.
        title: name of the work.
        unit: what the items are, e.g. "images".
        initial: number of items that were finished earlier, by a run that is resumed.
        quiet: show nothing, for all but the first of several processes.
        brief: without a terminal, print nothing about work that ends within `LINE_INTERVAL`.
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str = "items",
        initial: int = 0,
        quiet: bool = False,
        brief: bool = False,
    ) -> None:
        is_quiet, is_terminal = quiet or not shows_progress(), sys.stderr.isatty()
        self._meter: dict[str, Any] = {"total": total, "unit": f" {unit}", "initial": initial}
        bar_format = f"{{l_bar}}{{bar}}| {COUNTS}"
        disable = is_quiet or not is_terminal
        self._bar = tqdm(
            desc=title, disable=disable, dynamic_ncols=True, bar_format=bar_format, **self._meter
        )
        self._title = title
        self._is_plain, self._is_brief = not is_quiet and not is_terminal, brief
        self._done, self._note = initial, ""
        self._start = self._last = time.monotonic()

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished items; `note` (losses, learning rate) is shown after the rate."""
        self._done += count
        self._note = note or self._note
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.update(count)
        if self._is_plain and time.monotonic() - self._last >= LINE_INTERVAL:
            self._last = time.monotonic()
            self._print_line()

    def extend(self, count: int) -> None:
        """Adds `count` items that are still to be done."""
        self._meter["total"] += count
        self._bar.total = self._meter["total"]

    def close(self) -> None:
        """Closes the bar, or prints the last line."""
        self._bar.close()
        if self._is_plain and not (self._is_brief and self._last == self._start):
            self._print_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print_line(self) -> None:
        elapsed = time.monotonic() - self._start
        line = tqdm.format_meter(
            self._done,
            elapsed=elapsed,
            ncols=None if self._meter["total"] else 0,
            prefix=self._title,
            postfix=self._note,
            bar_format=f"{{desc}}: {{percentage:3.0f}}% {COUNTS}" if self._meter["total"] else None,
            **self._meter,
        )
        print(line, file=sys.stderr, flush=True)


def track(
    items: Iterable[Item], total: int, title: str, unit: str = "items", brief: bool = False
) -> Iterator[Item]:
    """Iterates over items and shows their `Progress`."""
    with Progress(total, title, unit, brief=brief) as progress:
        for item in items:
            yield item
            progress.update()
