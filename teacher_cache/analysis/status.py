"""The state of a cache while it is built: what is done, who runs, rate, time left and damage.

It is read from the folder alone, so that a build need not be asked and any machine that sees the
folder can follow it. Times come from the shards' modification times and from the records of the
running processes (`pipeline/cluster/activity.py`).
"""

from __future__ import annotations

import json as json_module
import math
import shutil
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec

from evaluation.tables import format_percent
from pipeline.cluster.activity import Activity, running_processes
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun, format_bytes, format_duration
from teacher_cache.reader.cache import read_teacher_file
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER
from teacher_cache.reader.manifest import read_manifest
from teacher_cache.reader.shard import ShardLayout, read_layout
from teacher_cache.writer.checksum import has_intact_checksum
from teacher_cache.writer.manifest import planned_shards
from teacher_cache.writer.plan import is_new_folder, read_plan

logger = get_logger(__name__)

# Seconds between two tables of `--watch`.
WATCH_INTERVAL = 5.0
# The rate is that of the latest shards, because workers come and go.
RATE_SHARDS = 100
# What the table lists at most of processes, reasons and problems; `--json` has all.
MAX_ROWS = 12
NAME_WIDTH, TABLE_WIDTH = 12, 80
TIME = "%Y-%m-%d %H:%M:%S"


class Count(msgspec.Struct, frozen=True):
    """Finished and all things of a kind; `total` is None before `build.json` is there."""

    done: int
    total: int | None


class CacheState(msgspec.Struct, frozen=True):
    """The state of a cache, as `--json` prints it.

    Attributes:
        cache: the folder.
        state: "finished", "unfinished" or, with damaged or missing files, "broken".
        shards, images: finished ones; images that could not be read count as finished.
        failed: image id -> error, for images that could not be read.
        running: processes at work, the earliest first.
        images_per_second: rate of the running processes; None before they have made anything.
        seconds_left: time to the end at this rate.
        last_shard: when the latest shard was finished.
        bytes, bytes_expected: size of the files, and their size at the end.
        disk_free: bytes left on the file system; a quota may be lower.
        problems: file name within the folder -> what is wrong with it.
    """

    cache: str
    state: Literal["finished", "unfinished", "broken"]
    shards: Count
    images: Count
    failed: dict[str, str]
    running: list[Activity]
    images_per_second: float | None
    seconds_left: float | None
    last_shard: datetime | None
    bytes: int
    bytes_expected: int | None
    disk_free: int
    problems: dict[str, str]


class _Shard(msgspec.Struct, frozen=True):
    """A finished shard, with its modification time in seconds since 1970."""

    layout: ShardLayout
    modified: float
    size: int

    def __len__(self) -> int:
        return len(self.layout.images) + len(self.layout.failed)


def show_status(cache: Path, watch: bool = False, json: bool = False) -> bool:
    """Prints the state of a cache.

    Args:
        cache: the cache folder.
        watch: print it every few seconds until the cache is finished; on a terminal in place. Waits
            for a folder that does not exist yet.
        json: print `CacheState` as JSON, with `watch` one object per line.

    Returns:
        Whether the cache is finished.

    Raises:
        InputError: the folder is missing or no cache, or files in it are missing or damaged.
    """
    if watch and not cache.exists():
        logger.info(f"{cache}: waiting for a build to make this folder")
        while not cache.exists():
            time.sleep(WATCH_INTERVAL)
    reader, height = StatusReader(cache), 0
    while True:
        state = reader.read()
        if json:
            value = msgspec.to_builtins(state)
            print(
                json_module.dumps(value, indent=None if watch else 2, ensure_ascii=False),
                flush=True,
            )
        else:
            height = _print_table(format_status(state), watch, height)
        if not watch or state.state != "unfinished":
            break
        time.sleep(WATCH_INTERVAL)
    for name, problem in state.problems.items():
        count = f" ({len(state.problems)} problems)" if len(state.problems) > 1 else ""
        raise InputError(f"{cache / name}: {problem}{count}")
    return state.state == "finished"


class StatusReader:
    """Reads the state of a cache, as often as wanted; every shard is opened once.

    It checks what takes little time: the checksums of `manifest.json` and `build.json`, in a
    finished cache that of `teacher.h5`, and of every shard its existence, size, fingerprint, images
    and the positions of its arrays. The arrays themselves are left to `verify_cache`.

    Args:
        folder: the cache folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # By name, size and modification time.
        self._layouts: dict[tuple[str, int, int], ShardLayout] = {}
        self._problems: dict[str, str] = {}

    def read(self) -> CacheState:
        """The present state.

        Raises:
            InputError: the folder is missing, or neither new nor a cache.
        """
        folder, self._problems = self._folder, {}
        if not folder.is_dir():
            found = "a file" if folder.exists() else "none"
            raise InputError(f"{folder}: expected a cache folder, found {found}")
        # The manifest comes first: a build that writes it a moment later has not finished yet.
        manifest, plan = self._read_json(MANIFEST, read_manifest), self._read_json(PLAN, read_plan)
        # A build that has written its plan since the reading is one that starts.
        is_cache = is_new_folder(folder) or any((folder / n).is_file() for n in (PLAN, MANIFEST))
        if manifest is plan is None and not self._problems and not is_cache:
            raise InputError(
                f"{folder}: expected a cache folder with {PLAN} or {MANIFEST}, found neither"
            )
        shards, num_shards, num_images = [], None, None
        if manifest is not None:
            entries = {entry["name"]: entry for entry in manifest["shards"]}
            shards = self._read_shards(entries, manifest["fingerprint"])
            num_images = sum(len(entry["images"]) for entry in entries.values())
            num_shards, num_images = len(entries), num_images + len(manifest["failed"])
        elif plan is not None:
            names = planned_shards(folder)
            shards = self._read_shards(dict.fromkeys(names), plan["fingerprint"])
            num_shards, num_images = len(names), plan["images"]
        self._check_teacher(manifest, plan, bool(shards))
        done, size = sum(map(len, shards)), sum(shard.size for shard in shards)
        paths = [folder / name for name in (PLAN, TEACHER, MANIFEST)]
        other = sum(path.stat().st_size for path in paths if path.is_file())
        running = running_processes(folder)
        rate = _images_per_second(shards, running)
        left = (num_images or 0) - done - _count_started(running)
        last = max((shard.modified for shard in shards), default=None)
        return CacheState(
            cache=str(folder),
            state="broken" if self._problems else "finished" if manifest else "unfinished",
            shards=Count(len(shards), num_shards),
            images=Count(done, num_images),
            failed={name: why for one in shards for name, why in one.layout.failed.items()},
            running=running,
            images_per_second=rate,
            seconds_left=max(0, left) / rate if rate else None,
            last_shard=None if last is None else datetime.fromtimestamp(last, timezone.utc),
            bytes=size + other,
            bytes_expected=other + round(size * num_images / done) if num_images and done else None,
            disk_free=shutil.disk_usage(folder).free,
            problems=self._problems,
        )

    def _read_json(
        self, name: str, read: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """The content of a manifest or plan; None if it is missing or damaged."""
        path = self._folder / name
        if not path.is_file():
            return None
        with self._note_problem(name):
            value = read(self._folder)
            if not has_intact_checksum(path, value):
                raise InputError("is damaged: its own checksum does not match")
            return value
        return None

    def _read_shards(
        self, entries: Mapping[str, dict[str, Any] | None], fingerprint: str
    ) -> list[_Shard]:
        """The shards that are there and not damaged, as far as that is checked.

        Args:
            entries: of each shard's name its entry in the manifest; None in an unfinished cache,
                where shards may be missing.
            fingerprint: that of the cache.
        """
        shards = []
        for name, entry in entries.items():
            path = self._folder / SHARDS / name
            with self._note_problem(f"{SHARDS}/{name}"):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    if entry is not None:
                        raise InputError("is missing") from None
                    continue
                expected = None if entry is None else entry.get("bytes")
                if expected not in (None, stat.st_size):
                    raise InputError(f"expected {expected} bytes, found {stat.st_size}")
                key = (name, stat.st_size, stat.st_mtime_ns)
                if key not in self._layouts:
                    self._layouts[key] = read_layout(path, fingerprint)
                layout = self._layouts[key]
                if entry is not None and layout.images != tuple(entry["images"]):
                    raise InputError(f"expected the images listed in {MANIFEST}, found others")
                shards.append(_Shard(layout, stat.st_mtime, stat.st_size))
        return shards

    def _check_teacher(
        self, manifest: dict[str, Any] | None, plan: dict[str, Any] | None, has_shards: bool
    ) -> None:
        """Checks `teacher.h5`, and in a finished cache the checksums of it and of `build.json`."""
        checksums = {} if manifest is None else manifest.get("files", {})
        for name in (PLAN, TEACHER):
            path = self._folder / name
            # A build writes `teacher.h5` before its first shard.
            is_expected = name in checksums or (name == TEACHER and has_shards)
            if name in self._problems or not (is_expected or path.is_file()):
                continue
            with self._note_problem(name):
                if not path.is_file():
                    raise InputError("is missing")
                if name in checksums and sha256_of_file(path) != checksums[name]:
                    raise InputError(f"is damaged: its checksum is not that in {MANIFEST}")
                if name == TEACHER and (known := manifest or plan):
                    read_teacher_file(path, known["fingerprint"])

    @contextmanager
    def _note_problem(self, name: str) -> Iterator[None]:
        """Notes an error in the `with` block as the problem of a file.

        Network file systems and disks fail with errors that say nothing about other files.
        """
        try:
            yield
        except OSError as error:
            self._problems[name] = f"cannot be read ({error.strerror or error})"
        except InputError as error:
            self._problems[name] = str(error).removeprefix(f"{self._folder / name}: ")


def _images_per_second(shards: Collection[_Shard], running: Sequence[Activity]) -> float | None:
    """Rate of the running processes; None before they have made anything.

    It is that of the shards that were finished after the first of each process, which contains
    the time for loading models or waiting in a queue; before that, what the processes have made of
    their first shards.
    """
    making = [activity for activity in running if activity.total]
    num_first = max(1, len(making))
    start = min((activity.since.timestamp() for activity in running), default=math.inf)
    finished = sorted((shard.modified, len(shard)) for shard in shards if shard.modified > start)
    finished = finished[-RATE_SHARDS - num_first :]
    images = sum(count for _, count in finished[num_first:])
    if images and (seconds := finished[-1][0] - finished[num_first - 1][0]) > 0:
        return images / seconds
    return sum(one.done / max(1, one.seconds) for one in making) or None


def _count_started(running: Sequence[Activity]) -> int:
    """Number of images that are done of unfinished shards; two jobs may make the same one."""
    by_shard: dict[str, int] = defaultdict(int)
    for activity in running:
        by_shard[activity.work] = max(by_shard[activity.work], activity.done)
    return sum(by_shard.values())


def format_status(state: CacheState) -> list[str]:
    """Lines of a table of the state of a cache."""
    now = datetime.now(timezone.utc)
    failed = f", {len(state.failed):,} could not be read" if state.failed else ""
    rows = [
        ("shards", _format_count(state.shards)),
        ("images", _format_count(state.images) + failed),
    ]
    if state.running or state.state == "unfinished":
        rows += _limited("running", _format_processes(state))
    if state.last_shard is not None:
        # The clock of the file server may be ahead of this one.
        ago = format_duration(max(0, (now - state.last_shard).total_seconds()))
        rows.append(("last shard", f"{state.last_shard.astimezone():{TIME}} ({ago} ago)"))
    if state.images_per_second is not None and state.seconds_left is not None:
        rows.append(("rate", f"{state.images_per_second:.3g} images per second"))
        rows.append(("time left", format_duration(state.seconds_left)))
    size = format_bytes(state.bytes)
    if state.state == "unfinished" and state.bytes_expected is not None:
        size += f" of {format_bytes(state.bytes_expected)}"
    rows.append(("disk", f"{size}, {format_bytes(state.disk_free)} left"))
    by_reason = defaultdict(list)
    for image, reason in state.failed.items():
        by_reason[reason].append(image)
    reasons = [
        f"{count_noun(len(images), 'images')}, first {images[0]}: {reason}"
        for reason, images in sorted(by_reason.items(), key=lambda each: -len(each[1]))
    ]
    rows += _limited("failed", reasons)
    rows += _limited("damaged", [f"{name}: {why}" for name, why in state.problems.items()])
    lines = [f"{state.cache}: {state.state}"]
    names = [name for name, _ in rows]
    for row, (name, text) in enumerate(rows):
        title = name if name not in names[:row] else ""
        lines += textwrap.wrap(
            text,
            TABLE_WIDTH,
            initial_indent=f"  {title:<{NAME_WIDTH}}",
            subsequent_indent=" " * (NAME_WIDTH + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _format_count(count: Count) -> str:
    if count.total is None:
        return f"{count.done:,}"
    share = format_percent(count.done / count.total if count.total else 1)
    return f"{count.done:,} of {count.total:,} ({share} %)"


def _limited(name: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Rows of one name, at most `MAX_ROWS` and one that says how many are left out."""
    rows = [(name, text) for text in texts[:MAX_ROWS]]
    if len(texts) > MAX_ROWS:
        rows.append((name, f"and {len(texts) - MAX_ROWS:,} more, which --json lists"))
    return rows


def _format_processes(state: CacheState) -> list[str]:
    """A line for each process: how it makes shards, and the shard that it makes at present."""
    if not state.running:
        if state.shards.total is None:
            return ["no process; no build has started here"]
        if state.shards.done == state.shards.total:
            return [f"no process; eoid-cache verify writes the missing {MANIFEST}"]
        return ["no process; the same eoid-cache build command resumes"]
    by_process = defaultdict(list)
    for activity in state.running:
        by_process[activity.host, activity.pid].append(activity)
    lines = []
    for (host, pid), activities in by_process.items():
        first, job = activities[0], ""
        if first.job:
            job = f", job {first.job}"
        works = [
            each.work + (f", {each.done} of {each.total} images" if each.total else "")
            for each in activities
        ]
        since = f"{first.since.astimezone():{TIME}}"
        work = ", ".join(filter(None, works))
        lines.append(f"{host} (process {pid}{job}) since {since}" + (f": {work}" if work else ""))
    return lines


def _print_table(lines: Sequence[str], watch: bool, height: int) -> int:
    """Prints a table, with `watch` on a terminal in place of the last one of `height` lines.

    Returns:
        The number of lines.
    """
    if watch and sys.stdout.isatty():
        size = shutil.get_terminal_size()
        # Wrapped lines, and lines above the window's edge, could not be replaced.
        lines = [line[: size.columns] for line in lines[: size.lines - 1]]
        if height:
            print(f"\033[{height}F\033[J", end="")
    elif watch and height:
        print()
    print("\n".join(lines), flush=True)
    return len(lines)
