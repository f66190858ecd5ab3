"""The processor cores that a process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """How many cores this process may use: its affinity, cut by its control groups' quotas."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(int, _cpu_quotas())]))


def _cpu_quotas() -> Iterator[float]:
    """Cores' worth of time that control groups allow, of this process's group and all above it."""
    try:
        groups = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree and no controllers here; version 1 one tree for each set of them.
        trees = ["", "unified"]
        if controllers:
            trees = [controllers, "cpu"] if "cpu" in controllers.split(",") else []
        for tree in trees:
            place = PurePath(path.lstrip("/"))
            for group in (place, *place.parents):
                yield from _quota(CGROUPS / tree / group)


def _quota(group: Path) -> Iterator[float]:
    """A control group's CPU time per wall time; nothing where it sets no limit."""
    files = ((group / "cpu.max",), (group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"))
    for names in files:
        with suppress(OSError, ValueError):
            quota, period = (int(n) for file in names for n in file.read_text().split())
            if quota > 0:
                yield quota / period
