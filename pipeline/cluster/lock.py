"""Lock on an output folder: held by one command, or shared by the jobs of a job array.

The lock only keeps several commands from doing the same work. Results do not depend on it: files
are written atomically, and equal inputs give equal bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger

logger = get_logger(__name__)

LOCK = ".lock"
# Records of the processes at work, see `activity.py`.
RECORDS = ".running.*"

# Seconds between updates of the lock file's modification time, and seconds without an update after
# which its owner counts as dead.
HEARTBEAT_INTERVAL = 5.0
HEARTBEAT_TIMEOUT = 3 * HEARTBEAT_INTERVAL
# Seconds that an array job waits for another one that holds the lock exclusively, which it does
# only while it removes temporary files.
ACQUIRE_TIMEOUT = 30.0
POLL_INTERVAL = 0.2


@dataclass(frozen=True)
class LockOwner:
    """The command that holds the lock, as JSON in the lock file; `shared` for a job of an array."""

    host: str
    pid: int
    since: str
    shared: bool

    def __str__(self) -> str:
        kind = "a job of an array" if self.shared else "another command"
        return f"{kind} (host {self.host}, process {self.pid}, since {self.since})"


@dataclass(frozen=True)
class FolderLock:
    """A held lock; other jobs of an array may hold a `shared` one as well."""

    folder: Path
    descriptor: int
    shared: bool

    def remove_temporary_files(
        self, patterns: Sequence[str] = (".*.tmp", "*/.*.tmp", RECORDS)
    ) -> None:
        """Removes what killed writers left, unless other jobs hold the lock as well.

        A shared lock may be lost here, because `flock` does not convert it atomically; array jobs
        therefore call this last.
        """
        if self.shared and _try_lock(self.descriptor, fcntl.LOCK_EX) is not True:
            return
        for path in [path for pattern in patterns for path in self.folder.glob(pattern)]:
            # Repairs of caches work in a temporary folder.
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path, shared: bool = False) -> Iterator[FolderLock]:
    """Holds the lock on an output folder during the `with` block.

    The lock is an `flock`, which network file systems forward to their server and which ends with
    the process. Some file systems have no locks, or locks that other machines do not see. A
    heartbeat covers these: the owner updates the lock file's modification time.

    Args:
        folder: the output folder; created if missing.
        shared: share the lock with others that share it.

    Raises:
        InputError: the folder is a file, or another command, which is named, holds the lock.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, found a file")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    now = datetime.now().isoformat(" ", "seconds")
    owner = LockOwner(socket.gethostname(), os.getpid(), now, shared)
    with open(path, "a+b") as file:
        _acquire(folder, file.fileno(), owner)
        _write_owner(file.fileno(), json.dumps(asdict(owner)))
        try:
            with heartbeat(partial(os.utime, file.fileno())):
                yield FolderLock(folder, file.fileno(), shared)
        finally:
            # Another array job may have written its own record since.
            if read_owner(path) == owner:
                _write_owner(file.fileno(), "")


def _acquire(folder: Path, descriptor: int, owner: LockOwner) -> None:
    path = folder / LOCK
    deadline = time.monotonic() + ACQUIRE_TIMEOUT
    operation = fcntl.LOCK_SH if owner.shared else fcntl.LOCK_EX
    while (granted := _try_lock(descriptor, operation)) is False:
        other = read_owner(path)
        # The last job of an array holds the lock exclusively while it removes temporary files.
        may_be_cleaning = owner.shared and (other is None or other.shared)
        if not may_be_cleaning or time.monotonic() > deadline:
            raise _locked_error(folder, other)
        time.sleep(POLL_INTERVAL)
    other = read_owner(path)
    if other is None or (owner.shared and other.shared):
        return
    # A granted lock proves that a previous owner on this host is gone, but says nothing about one
    # on another host.
    if granted and other.host == owner.host:
        return
    logger.info(
        f"{folder}: was held by {other}; waiting up to {HEARTBEAT_TIMEOUT:.0f} s for its heartbeat"
    )
    if _has_heartbeat(path):
        raise _locked_error(folder, other)


def _try_lock(descriptor: int, operation: int) -> bool | None:
    """Whether the lock was granted; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _locked_error(folder: Path, owner: LockOwner | None) -> InputError:
    holder = owner or "another command"
    return InputError(
        f"{folder}: {holder} is at work here; wait for it, end it or give another --out"
    )


@contextmanager
def heartbeat(beat_once: Callable[[], None]) -> Iterator[None]:
    """Calls a function every few seconds, in a thread, during the `with` block."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_INTERVAL):
            # A failed update, as on a full disk, must not end the command.
            with suppress(OSError):
                beat_once()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _has_heartbeat(path: Path) -> bool:
    """Whether the lock file's modification time changes within the timeout."""
    first = _modified_time(path)
    deadline = time.monotonic() + HEARTBEAT_TIMEOUT
    while time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)
        if _modified_time(path) != first:
            return True
    return False


def _modified_time(path: Path) -> int:
    # Network file systems cache attributes; only opening a file is sure to fetch its present time.
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _write_owner(descriptor: int, text: str) -> None:
    # The record is only for messages and heartbeats. On a full disk the lock works without it.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())


def read_owner(path: Path) -> LockOwner | None:
    """The holder that a lock file names; None without one or if the file is damaged."""
    try:
        return LockOwner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
