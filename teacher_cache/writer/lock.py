"""Who is building in a cache folder: one builder alone, or the jobs of an array together.

The lock spares work and never guards correctness: whatever several builders do at once, every file
appears whole, and the same inputs make the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from teacher_cache.reader.format import LOCK, SHARDS

logger = get_logger(__name__)

# A builder shows every so many seconds that it lives, and is taken for dead after some silence.
HEARTBEAT_INTERVAL = 5.0
HEARTBEAT_TIMEOUT = 3 * HEARTBEAT_INTERVAL
# How long a job of an array waits for another one that is just tidying up.
ACQUIRE_TIMEOUT = 30.0
POLL_INTERVAL = 0.2


@dataclass(frozen=True)
class LockOwner:
    """What a builder writes of itself into the lock file.

    Attributes:
        host, pid: the process.
        since: local time, for people.
        shared: whether it is a job of an array.
    """

    host: str
    pid: int
    since: str
    shared: bool

    def __str__(self) -> str:
        kind = "a job of an array" if self.shared else "another builder"
        return f"{kind} (host {self.host}, process {self.pid}, since {self.since})"


@dataclass(frozen=True)
class FolderLock:
    """A folder that is held.

    Attributes:
        folder: the cache.
        descriptor: of the locked file.
        shared: whether others may hold it too.
    """

    folder: Path
    descriptor: int
    shared: bool

    def remove_temporary_files(self) -> None:
        """Removes what killed writers left, unless others hold the folder too.

        The hold of a job of an array may be lost here, so this is the last that it does.
        """
        if self.shared and _try_lock(self.descriptor, fcntl.LOCK_EX) is not True:
            return
        for folder in (self.folder, self.folder / SHARDS):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path, shared: bool = False) -> Iterator[FolderLock]:
    """Holds a cache folder while the body builds in it.

    The lock is the operating system's `flock`, which network file systems pass on to their server;
    it ends with the process, however that ends. Where locks do not reach other machines, or do not
    exist, the heartbeat tells: the lock file's time moves on as long as its holder lives.

    Args:
        folder: the cache; made when missing.
        shared: hold it together with others who share.

    Raises:
        InputError: somebody else builds in the folder; says who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    now = datetime.now().isoformat(" ", "seconds")
    own = LockOwner(socket.gethostname(), os.getpid(), now, shared)
    with open(path, "a+b") as file:
        _acquire(folder, file.fileno(), own)
        _write_owner(file.fileno(), json.dumps(asdict(own)))
        try:
            with _heartbeat(file.fileno()):
                yield FolderLock(folder, file.fileno(), shared)
        finally:
            if _read_owner(path) == own:
                _write_owner(file.fileno(), "")


def _acquire(folder: Path, descriptor: int, own: LockOwner) -> None:
    path = folder / LOCK
    deadline = time.monotonic() + ACQUIRE_TIMEOUT
    while (taken := _try_lock(descriptor, fcntl.LOCK_SH if own.shared else fcntl.LOCK_EX)) is False:
        other = _read_owner(path)
        # The last job of an array holds the folder alone for a moment.
        may_be_tidying = own.shared and (other is None or other.shared)
        if not may_be_tidying or time.monotonic() > deadline:
            raise _locked_error(folder, other)
        time.sleep(POLL_INTERVAL)
    other = _read_owner(path)
    if other is None or (own.shared and other.shared):
        return
    # A granted lock proves that the last holder on this machine is gone, but not on another one.
    if taken and other.host == own.host:
        return
    logger.info(
        f"{folder}: was held by {other}; waiting up to {HEARTBEAT_TIMEOUT:.0f} s for its heartbeat"
    )
    if _has_heartbeat(path):
        raise _locked_error(folder, other)


def _try_lock(descriptor: int, kind: int) -> bool | None:
    """Whether the lock was granted; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _locked_error(folder: Path, holder: LockOwner | None) -> InputError:
    who = holder or "another builder"
    return InputError(f"{folder}: {who} is at work here; wait for it, end it or give another --out")


@contextmanager
def _heartbeat(descriptor: int) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_INTERVAL):
            # A heartbeat that fails must not end a build that goes on.
            with suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _has_heartbeat(path: Path) -> bool:
    """Whether somebody gives the lock file a new time."""
    first = _modified_time(path)
    deadline = time.monotonic() + HEARTBEAT_TIMEOUT
    while time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)
        if _modified_time(path) != first:
            return True
    return False


def _modified_time(path: Path) -> int:
    # Network file systems tell the present time of a file to those who open it.
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _write_owner(descriptor: int, text: str) -> None:
    # Without the holder's name the lock still holds, so a full disk does no harm here.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())


def _read_owner(path: Path) -> LockOwner | None:
    try:
        return LockOwner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
