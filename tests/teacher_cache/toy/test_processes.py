"""Every test runs a program of its own: processes, and what they do when they are stopped."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

PROGRAM = """
import os, signal, sys, time
from teacher_cache.toy.train import run_in_processes

def good(report):
    for _ in range(3):
        report(2, "well")

def fails(report):
    raise ValueError("no such thing")

def dies(report):
    os.kill(os.getpid(), signal.SIGKILL)

def running():
    # In one piece: `print` may write a line in several, and two processes write here.
    os.write(1, b"running\\n")

def endless(report):
    running()
    while True:
        report(1, "")
        time.sleep(0.02)

def deaf(report):
    running()
    time.sleep(600)

if __name__ == "__main__":
    works = {name: globals()[name] for name in sys.argv[1:]}
    try:
        run_in_processes({name: (work, 6) for name, work in works.items()})
    except RuntimeError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the program with some of its works, in a process group of its own."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    started = []

    def call(*works):
        process = subprocess.Popen(
            [sys.executable, str(program), *works],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def gone(group):
    """Whether all processes of a group end within a while."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_all_run_to_their_end(start):
    process = start("good")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "good: 6/6 images" in said


def test_a_failure_ends_the_others_and_tells_why(start):
    process = start("deaf", "fails")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "fails failed:" in said and "ValueError: no such thing" in said
    assert gone(process.pid)


def test_a_killed_process_is_missed(start):
    process = start("deaf", "dies")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "dies died with exit code -9" in said
    assert gone(process.pid)


@pytest.mark.parametrize("early", [False, True])
def test_an_interrupt_ends_all_quietly(start, early):
    process = start("deaf", "endless")
    assert process.stdout.readline() == "running\n"
    if not early:
        assert process.stdout.readline() == "running\n"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in said
    assert gone(process.pid)


def test_a_killed_program_takes_its_processes_along(start):
    process = start("endless")
    assert process.stdout.readline() == "running\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=300)
    assert gone(process.pid)
