import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

PROGRAM = """
import os, signal, sys, time
from teacher_cache.toy.processes import run_in_processes

def good(report):
    for _ in range(3):
        report(2, "well")

def fails(report):
    raise ValueError("bad value")

def dies(report):
    os.kill(os.getpid(), signal.SIGKILL)

def running():
    # Two processes write to this pipe; `print` may split a line into several writes.
    os.write(1, b"running\\n")

def endless(report):
    running()
    while True:
        report(1, "")
        time.sleep(0.02)

def without_report(report):
    running()
    time.sleep(600)

if __name__ == "__main__":
    jobs = {name: globals()[name] for name in sys.argv[1:]}
    try:
        run_in_processes({name: (job, 6) for name, job in jobs.items()})
    except RuntimeError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def start_program(tmp_path):
    """`start_program(*jobs)` runs jobs of `PROGRAM` in a process group of its own."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    started = []

    def start(*jobs):
        process = subprocess.Popen(
            [sys.executable, str(program), *jobs],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def has_ended(group):
    """Whether all processes of a group end within 30 seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_job_runs_to_its_end(start_program):
    process = start_program("good")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "good: 100% 6/6 [" in stderr


@pytest.mark.parametrize(
    ("job", "facts"),
    [("fails", ("exit code 1", "ValueError: bad value")), ("dies", ("exit code -9",))],
)
def test_a_failed_job_is_reported_and_ends_the_others(start_program, job, facts):
    process = start_program("without_report", job)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1 and f"{job} ended with {facts[0]}" in stderr
    assert all(fact in stderr for fact in facts) and has_ended(process.pid)


@pytest.mark.parametrize("early", [False, True])
def test_an_interrupt_ends_all_jobs_without_traceback(start_program, early):
    process = start_program("without_report", "endless")
    assert process.stdout.readline() == "running\n"
    if not early:
        assert process.stdout.readline() == "running\n"
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert has_ended(process.pid)


def test_jobs_end_when_the_program_is_killed(start_program):
    process = start_program("endless")
    assert process.stdout.readline() == "running\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=300)
    assert has_ended(process.pid)
