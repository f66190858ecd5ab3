"""Progress of long loops on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from pipeline.utils.logging import shows_progress

Item = TypeVar("Item")
# Seconds between plain lines, which stay in the log files of batch jobs.
LINE_INTERVAL = 10.0


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
        self._quiet, self._brief = quiet or not shows_progress(), brief
        self._bar = tqdm(
            total=total,
            desc=title,
            unit=f" {unit}",
            initial=initial,
            disable=self._quiet or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._plain = self._bar.disable
        self._total, self._title, self._unit = total, title, unit
        self._initial, self._done, self._note = initial, initial, ""
        self._start = self._last = time.monotonic()

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished items; `note` (losses, learning rate) is shown after the rate."""
        self._done += count
        self._note = note or self._note
        if not self._plain:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last >= LINE_INTERVAL:
            self._last = time.monotonic()
            self._print_line()

    def close(self) -> None:
        """Closes the bar, or prints the last line."""
        if not self._plain:
            self._bar.close()
        elif not self._brief or self._last > self._start:
            self._print_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print_line(self) -> None:
        if self._quiet:
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._initial) / seconds
        remaining = (self._total - self._done) / rate if rate > 0 else float("inf")
        left = f", {remaining:.0f} s left" if 0 < remaining < float("inf") else ""
        note = f", {self._note}" if self._note else ""
        print(
            f"{self._title}: {self._done}/{self._total} {self._unit},"
            f" {seconds:.0f} s, {rate:.1f} {self._unit}/s{left}{note}",
            file=sys.stderr,
            flush=True,
        )


def track(
    items: Iterable[Item], total: int, title: str, unit: str = "items", brief: bool = False
) -> Iterator[Item]:
    """Iterates over items and shows their `Progress`."""
    with Progress(total, title, unit, brief=brief) as progress:
        for item in items:
            yield item
            progress.update()
