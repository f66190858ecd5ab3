"""Console commands in the process of the tests, which has loaded the libraries already, and in
processes forked from one that has."""

import io
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from evaluation.cli import main as eval_main
from pipeline.cli import main as data_main
from student.cli import main as train_main
from student.inference.cli import main as predict_main
from teacher_cache.cli import main as cache_main


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


MAINS = {
    "eoid-data": data_main,
    "eoid-cache": cache_main,
    "eoid-train": train_main,
    "eoid-eval": eval_main,
    "eoid-predict": predict_main,
}


def run_words(name, *words):
    """Runs a command by its name; it must succeed."""
    done = run_command(MAINS[name], name, *words)
    assert done.returncode == 0, (name, words, done.stderr)


def run_script(script, folder):
    """Runs commands of the documentation in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in filter(None, script.replace("\\\n", " ").splitlines()):
            run_words(*shlex.split(line))
