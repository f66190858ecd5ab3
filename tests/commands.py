"""Console commands in the process of the tests, which has loaded the libraries already, and in
processes forked from one that has."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest


def run_command(main, name, *words):
    """What a command, the entry point `main` called `name`, returns and prints for these words."""
    out, err = io.StringIO(), io.StringIO()
    words = [name, *map(str, words)]
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", words)
        main()
    return subprocess.CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())


PROGRAM = """
import multiprocessing, os, sys
os.environ.update({environment!r})
multiprocessing.set_start_method(None, force=True)
sys.argv = ["eoid-train", *{words!r}]
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open({log!r} + "." + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
{first}
from student.cli import main
main()
"""


class Command:
    """An `eoid-train` command in a process of its own."""

    def __init__(self, context, log, words, first, environment):
        self.log = log
        words = [str(word) for word in words]
        text = PROGRAM.format(environment=environment, words=words, log=str(log), first=first)
        self.process = context.Process(target=exec, args=(text, {"__name__": "__main__"}))
        self.process.start()

    def __call__(self, seconds=300):
        """Waits for its end: (exit code, stdout, stderr)."""
        self.process.join(seconds)
        out, err = (Path(f"{self.log}.{name}").read_text() for name in ("out", "err"))
        assert self.process.exitcode is not None, err
        return self.process.exitcode, out, err


def run_script(script, folder):
    """Runs commands of the documentation in a folder, with the programs of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
