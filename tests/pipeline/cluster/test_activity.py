import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from pipeline.cluster import lock
from pipeline.cluster.activity import (
    JOB_VARIABLES,
    RUNNING_TIMEOUT,
    Activity,
    announce,
    running_processes,
)
from pipeline.cluster.lock import LOCK, RECORDS, lock_folder

OTHER_MACHINE = {
    "host": "elsewhere",
    "pid": 7,
    "since": "2024-05-01T12:00:00+02:00",
    "work": "4 worker processes",
    "machine": "of another kernel",
}
HOLD = """
import sys, time
from pathlib import Path
from pipeline.cluster.activity import announce
with announce(Path(sys.argv[1]), "one process"):
    print("running", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def outside_of_jobs(monkeypatch):
    for name in (*JOB_VARIABLES, "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


def records(folder):
    return list(folder.glob(RECORDS))


def test_a_process_is_listed_while_it_works(tmp_path):
    with announce(tmp_path, "shards/00002.h5", 5):
        (one,) = running_processes(tmp_path)
        assert (one.pid, one.work, one.job) == (os.getpid(), "shards/00002.h5", "")
        assert (one.done, one.total) == (0, 5)
        assert abs(one.since.timestamp() - time.time()) < 60
        with announce(tmp_path, "another"):
            assert {each.work for each in running_processes(tmp_path)} == {one.work, "another"}
    assert running_processes(tmp_path) == records(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), announce(tmp_path, "stopped"):
        raise KeyboardInterrupt
    assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "81"}, "81"),
        (
            {"SLURM_JOB_ID": "81", "SLURM_ARRAY_JOB_ID": "80", "SLURM_ARRAY_TASK_ID": "3"},
            "80_3",
        ),
        ({"PBS_JOBID": "9.head"}, "9.head"),
    ],
)
def test_the_number_of_a_job(tmp_path, monkeypatch, variables, job):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with announce(tmp_path, "one process"):
        assert [each.job for each in running_processes(tmp_path)] == [job]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_heartbeats_tell_how_many_images_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL", 0.02)
    with announce(tmp_path, "shard", 200) as count:
        (path,) = records(tmp_path)
        for images in (1, 99):
            count(images)
        wait_for(lambda: [each.done for each in running_processes(tmp_path)] == [100])
        # The command that removed it knows that the build has ended.
        path.unlink()
        time.sleep(0.1)
        assert records(tmp_path) == []


def test_the_record_of_a_killed_process_does_not_count(tmp_path):
    words = [sys.executable, "-c", HOLD, tmp_path]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    assert [each.pid for each in running_processes(tmp_path)] == [process.pid]
    process.send_signal(signal.SIGKILL)
    if sys.platform == "linux":
        # Ended, but still listed by the system until its parent asks for the exit code.
        wait_for(lambda: running_processes(tmp_path) == [])
    process.wait()
    assert len(records(tmp_path)) == 1 and running_processes(tmp_path) == []
    # The next builder that holds the lock alone removes it.
    with lock_folder(tmp_path) as folder_lock:
        folder_lock.remove_temporary_files()
    assert records(tmp_path) == []


def test_a_process_on_another_machine_counts_while_its_heart_beats(tmp_path):
    path = tmp_path / ".running.12ab"
    path.write_text(json.dumps(OTHER_MACHINE))
    (one,) = running_processes(tmp_path)
    assert one.host == "elsewhere" and one.since.utcoffset().total_seconds() == 7200
    modified = time.time() - RUNNING_TIMEOUT
    os.utime(path, (modified + 20, modified + 20))
    assert running_processes(tmp_path) == [one]
    os.utime(path, (modified - 1, modified - 1))
    assert running_processes(tmp_path) == []


def test_a_container_with_the_name_of_its_host(tmp_path, monkeypatch):
    """Its process ids are others."""
    with announce(tmp_path, "one process"):
        (path,) = records(tmp_path)
        values = json.loads(path.read_text())
    values["pid"] = 2**31 - 1
    path.write_text(json.dumps(values))
    assert running_processes(tmp_path) == []
    path.write_text(json.dumps({**values, "machine": f"{values['machine']} inside"}))
    assert len(running_processes(tmp_path)) == 1


def test_any_damage_of_a_record(tmp_path):
    """A damaged record is left out or says something else, but nothing fails."""
    path = tmp_path / ".running.12ab"
    content = json.dumps({**OTHER_MACHINE, "done": 3, "total": 8}).encode()
    for position in range(len(content)):
        for bit in (1, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            assert all(isinstance(each, Activity) for each in running_processes(tmp_path))
        path.write_bytes(content[:position])
        assert running_processes(tmp_path) == []
    path.write_bytes(content)
    assert len(running_processes(tmp_path)) == 1


def test_a_folder_that_takes_no_record(tmp_path):
    with announce(tmp_path / "absent", "one process") as count:
        count(3)
    assert not (tmp_path / "absent").exists()
    assert running_processes(tmp_path / "absent") == []


def test_a_holder_of_the_lock_without_a_record(tmp_path):
    """As earlier versions and other commands leave it."""
    with lock_folder(tmp_path):
        (holder,) = running_processes(tmp_path)
        assert (holder.pid, holder.work) == (os.getpid(), "")
        with announce(tmp_path, "one process"):
            assert [each.work for each in running_processes(tmp_path)] == ["one process"]
    assert running_processes(tmp_path) == []
    owner = {"host": "elsewhere", "pid": 7, "since": "2024-05-01 12:00:00", "shared": True}
    for change in ({}, {"pid": "seven"}, {"pid": -1}, {"since": "never"}, {"host": None}):
        (tmp_path / LOCK).write_text(json.dumps({**owner, **change}))
        assert len(running_processes(tmp_path)) == (not change)
    modified = time.time() - RUNNING_TIMEOUT - 1
    (tmp_path / LOCK).write_text(json.dumps(owner))
    os.utime(tmp_path / LOCK, (modified, modified))
    assert running_processes(tmp_path) == []


def test_records_are_plain_json(tmp_path):
    with announce(tmp_path, "one process"):
        (path,) = records(tmp_path)
        assert set(json.loads(path.read_bytes())) == set(Activity.__struct_fields__)
        assert msgspec.json.decode(path.read_bytes(), type=Activity).host
