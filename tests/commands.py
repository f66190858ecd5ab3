"""Console commands in the process of the tests, which has loaded the libraries already."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

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
