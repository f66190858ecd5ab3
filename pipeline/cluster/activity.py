"""Records of the processes at work in an output folder, for commands on any machine that sees it.

A process keeps a small file in the folder while it works and rewrites it every few seconds. Nothing
else depends on these files: `lock.py` has the lock.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from pipeline.cluster.lock import HEARTBEAT_TIMEOUT, LOCK, RECORDS, heartbeat, read_owner

# Seconds after its last heartbeat for which a process counts as running. Clocks of machines and
# file servers may differ, and network file systems deliver times late.
RUNNING_TIMEOUT = 4 * HEARTBEAT_TIMEOUT
# Variables in which SLURM, PBS, LSF and SGE give a job its number.
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class Activity(msgspec.Struct, frozen=True):
    """What a process works on, as JSON in a file of its own.

    Attributes:
        host, pid: the process.
        since: when it began this work.
        work: what it does: how shards are made, or the file that it makes.
        job: its number in the batch system; empty outside of one.
        machine: see `_machine_id`.
        done, total: finished and all images of a file that it makes.
        seconds: how long it has worked, by its own clock, when `done` was written.
    """

    host: str
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    since: Annotated[datetime, msgspec.Meta(tz=True)]
    work: str = ""
    job: str = ""
    machine: str = ""
    done: Count = 0
    total: Count = 0
    seconds: Count = 0


@contextmanager
def announce(folder: Path, work: str, total: int = 0) -> Iterator[Callable[[int], None]]:
    """Keeps a record of this process in a folder during the `with` block.

    Args:
        folder: the output folder.
        work, total: see `Activity`.

    Yields:
        A function that adds finished images to the record.
    """
    host, done, start = socket.gethostname(), 0, time.monotonic()
    since = datetime.now().astimezone().replace(microsecond=0)
    path = folder / RECORDS.replace("*", secrets.token_hex(6))

    def count(images: int) -> None:
        nonlocal done
        done += images

    def write(mode: str = "r+b") -> None:
        seconds = int(time.monotonic() - start)
        activity = Activity(
            host, os.getpid(), since, work, _job_number(), _machine_id(), done, total, seconds
        )
        # The record is only for information, so that a full disk must not end the command. If it
        # was removed, it is not made again, because a build removes those of workers at its end.
        with suppress(OSError), open(path, mode) as file:
            # In place and never shorter than before, so that a reader finds a whole record.
            file.write(msgspec.json.encode(activity))

    write("xb")
    try:
        with heartbeat(write):
            yield count
    finally:
        with suppress(OSError):
            path.unlink()


def running_processes(folder: Path) -> list[Activity]:
    """The processes at work in a folder, the earliest first: those with a record, and one that
    holds the lock without a record, as other commands and earlier versions do.

    A process counts as running if it wrote its record during the last minute, unless it was one of
    this machine and is gone.
    """
    found = list(filter(None, map(_read_record, folder.glob(RECORDS))))
    holder = _read_holder(folder / LOCK)
    if holder and (holder.host, holder.pid) not in {(each.host, each.pid) for each in found}:
        found.append(holder)
    return sorted(found, key=lambda each: (each.since, each.host, each.pid, each.work))


def _read_record(path: Path) -> Activity | None:
    # Records vanish when their process ends, and a process that is killed may leave an empty one.
    try:
        with open(path, "rb") as file:
            activity = msgspec.json.decode(file.read(), type=Activity)
            return activity if _is_running(activity, file) else None
    except (OSError, UnicodeError, msgspec.MsgspecError):
        return None


def _read_holder(path: Path) -> Activity | None:
    owner = read_owner(path)
    if owner is None:
        return None
    with suppress(OSError, ValueError, TypeError, msgspec.MsgspecError), open(path, "rb") as file:
        since = datetime.fromisoformat(owner.since).astimezone()
        values = {"host": owner.host, "pid": owner.pid, "since": since}
        activity = msgspec.convert(values, Activity)
        return activity if _is_running(activity, file) else None
    return None


def _is_running(activity: Activity, record: BinaryIO) -> bool:
    modified = os.fstat(record.fileno()).st_mtime
    # The year of a damaged record may be one that no calendar function takes.
    if time.time() - modified > RUNNING_TIMEOUT or not 1970 <= activity.since.year < 3000:
        return False
    is_here = activity.host == socket.gethostname()
    if activity.machine:
        is_here = activity.machine == _machine_id()
    if is_here:
        try:
            os.kill(activity.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            # A process of another user.
            return True
        return not _is_zombie(activity.pid)
    return True


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and its parent has not noticed, as in containers whose first
    process does not wait for others. Only Linux tells."""
    with suppress(OSError):
        # The state follows the command's name, which may contain parentheses.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1] == [b"Z"]
    return False


def _job_number() -> str:
    array, row = map(os.environ.get, ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
    if array and row:
        return f"{array}_{row}"
    return next(filter(None, map(os.environ.get, JOB_VARIABLES)), "")


def _machine_id() -> str:
    """Identifies what process ids refer to; host names are not enough, because containers may have
    the name of their host and process ids of their own. Empty if the system does not tell."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""
