import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from pipeline.cluster import lock
from pipeline.cluster.lock import LOCK, lock_folder
from pipeline.utils.errors import InputError

OWNER = '{"host": "elsewhere", "pid": 7, "since": "2024-05-01 12:00:00", "shared": %s}'


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(lock, "HEARTBEAT_TIMEOUT", 0.6)
    monkeypatch.setattr(lock, "ACQUIRE_TIMEOUT", 0.4)
    monkeypatch.setattr(lock, "POLL_INTERVAL", 0.02)


def test_a_new_folder(tmp_path, messages):
    folder = tmp_path / "new" / "cache"
    with lock_folder(folder):
        assert str(os.getpid()) in (folder / LOCK).read_text()
    assert (folder / LOCK).read_text() == ""
    messages.clear()
    with pytest.raises(KeyboardInterrupt), lock_folder(folder):
        raise KeyboardInterrupt
    assert (folder / LOCK).read_text() == ""
    with lock_folder(folder):
        assert messages == []


@pytest.mark.parametrize("first, second", [(False, False), (False, True), (True, False)])
def test_a_second_command_is_refused_with_the_first_ones_name(tmp_path, first, second):
    with (
        lock_folder(tmp_path, shared=first),
        pytest.raises(InputError, match="is at work here") as caught,
        lock_folder(tmp_path, shared=second),
    ):
        pytest.fail("both hold the lock")
    message = str(caught.value)
    kind = "a job of an array" if first else "another command"
    assert f"{tmp_path}: {kind} (host " in message and f"process {os.getpid()}, since 2" in message
    assert "\n" not in message


def test_jobs_of_an_array_share_the_lock(tmp_path):
    with lock_folder(tmp_path, shared=True), lock_folder(tmp_path, shared=True):
        pass
    with lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path, shared=True):
        (tmp_path / LOCK).write_text(OWNER % "true")
    # The record of another job is kept.
    assert (tmp_path / LOCK).read_text() == OWNER % "true"


@pytest.mark.parametrize("record, kind", [("", "another command"), (OWNER % "true", "a job")])
def test_an_array_job_waits_for_one_that_removes_temporary_files(tmp_path, record, kind):
    """The last job of an array holds the lock exclusively for a moment."""
    path = tmp_path / LOCK
    path.write_text(record)
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with lock_folder(tmp_path, shared=True):
            pass
        path.write_text(record)
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=kind), lock_folder(tmp_path, shared=True):
            pytest.fail("both hold the lock")


def test_the_lock_of_a_killed_process_is_free(tmp_path, messages):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from pipeline.cluster.lock import LOCK, lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {process.pid}"), lock_folder(tmp_path):
        pytest.fail("both hold the lock")
    process.send_signal(signal.SIGKILL)
    process.wait()
    messages.clear()
    with lock_folder(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert messages == []


def disable_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)


@contextmanager
def heartbeat(path):
    """The heartbeat of an owner on another machine."""
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("shared", [False, True])
def test_locks_that_other_machines_do_not_see(tmp_path, monkeypatch, locks, shared, messages):
    if not locks:
        disable_locks(monkeypatch)
    path = tmp_path / LOCK
    path.write_text(OWNER % str(shared).lower())
    with (
        heartbeat(path),
        pytest.raises(InputError, match="host elsewhere, process 7, since 2024"),
        lock_folder(tmp_path),
    ):
        pytest.fail("both hold the lock")
    messages.clear()
    with lock_folder(tmp_path):
        assert f'"pid": {os.getpid()}' in path.read_text()
    assert len(messages) == 1 and "host elsewhere" in messages[0]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"host": 3}'])
def test_a_damaged_lock_file_is_ignored(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with lock_folder(tmp_path):
        pass


def full_disk(monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize(
    ("prepare", "text"), [(disable_locks, "is at work here"), (full_disk, "another command")]
)
def test_without_locks_or_without_records(tmp_path, monkeypatch, prepare, text):
    prepare(monkeypatch)
    with (
        lock_folder(tmp_path),
        pytest.raises(InputError, match=text),
        lock_folder(tmp_path),
    ):
        pytest.fail("both hold the lock")
    with lock_folder(tmp_path):
        pass


@pytest.fixture
def temporary_files(tmp_path):
    (tmp_path / "shards").mkdir()
    paths = [tmp_path / "shards" / ".00000.h5.12ab.tmp", tmp_path / ".manifest.json.12ab.tmp"]
    for path in (*paths, tmp_path / "shards" / "00001.h5"):
        path.touch()
    (tmp_path / ".repair.12ab.tmp" / "shards").mkdir(parents=True)
    return [*paths, tmp_path / ".repair.12ab.tmp"]


def test_removing_temporary_files(tmp_path, temporary_files):
    with lock_folder(tmp_path) as folder_lock:
        folder_lock.remove_temporary_files()
        assert not any(path.exists() for path in temporary_files)
        assert (tmp_path / "shards" / "00001.h5").exists()
        with pytest.raises(InputError), lock_folder(tmp_path):
            pytest.fail("both hold the lock")


def test_temporary_files_of_running_jobs_are_kept(tmp_path, temporary_files):
    with lock_folder(tmp_path, shared=True) as folder_lock:
        with lock_folder(tmp_path, shared=True) as other:
            other.remove_temporary_files()
        assert all(path.exists() for path in temporary_files)
        folder_lock.remove_temporary_files()
        assert not any(path.exists() for path in temporary_files)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    message = "out: expected a folder, found a file"
    with pytest.raises(InputError, match=message), lock_folder(tmp_path / "out"):
        pass
