import ast
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader

import click
import pytest

from pipeline import cli
from pipeline.utils.cli import device_option, run_command
from pipeline.utils.cli_options import config_option, format_config
from pipeline.utils.errors import InputError
from pipeline.utils.signals import exit_on_sigterm


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line as a user does: (exit code, stdout, stderr)."""

    def call(command, *words):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/eoid-data", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run_command(command)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def raising(error):
    @click.command()
    def command():
        raise error

    return command


@click.command()
@click.argument("place")
@click.option("--count", default=1)
@click.option("--learning-rate", "rate", default=0.5)
@click.option("--name", type=click.Choice(["a", "b"]), required=True)
@click.option("--tag", multiple=True)
@click.option("--loud/--soft", default=False)
@device_option
@config_option
def show(**values):
    """Prints its options."""
    print(values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wrold", "d"], "No such command 'wrold'"),
        (["toy"], "Missing DIR. See eoid-data toy --help."),
        (["convert", "--seed", "1"], "Missing FORM, EXPORT, OUT, --images. See"),
        (["convert", "label-studio", "a.json", "--seed", "1"], "Missing OUT, --images. See"),
        (["convert", *"ab", "--images", "c", "--test-size", "nan"], "at least 0, found nan"),
        (["toy", "d", "--train", "many"], "'many' is not a valid integer"),
        (["toy", "d", "--trian", "3"], "--trian"),
        # As unset variables of a shell give; it would be the current folder.
        (["toy", ""], "found an empty text"),
        (["check", "nowhere"], "nowhere: no such dataset folder"),
    ],
)
def test_wrong_use_is_one_line_and_2(run, words, message):
    code, out, err = run(cli.data, *words)
    assert code == 2 and out == ""
    assert err.startswith("eoid-data: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a.json: b: expected c,\nfound d"), 2, "a.json: b: expected c, found d"),
        (click.ClickException("no"), 2, "no"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "output: No space left on device"),
        (OSError(errno.EFBIG, "File too large"), 2, "output: File too large"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume"),
        (click.Abort(), 130, "interrupted"),
    ],
)
def test_exit_codes(run, error, code, message):
    ended, _, err = run(raising(error))
    assert ended == code
    assert err.strip().splitlines()[-1].startswith("eoid-data: ") and message in err


def test_similar_options_are_those_of_the_help(run):
    """Hidden ones only if there is no other."""

    @click.command()
    @click.option("--learning-rate")
    @click.option("--learning-rates", hidden=True)
    @click.option("--weight-decay", hidden=True)
    def command(**values):
        pass

    for word, shown, hidden in (
        ("--learning-ratez", "--learning-rate?", "--learning-rates"),
        ("--weight-decoy", "--weight-decay", "--learning"),
        ("--xyz", "No such option", "--weight"),
    ):
        code, out, err = run(command, word)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert word in err and shown in err.replace("'", "") and hidden not in err.replace(word, "")


def test_sigterm_ends_a_command_that_resumes_with_75(run):
    @click.command()
    @config_option
    def command():
        with exit_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)

    code, out, err = run(command)
    assert (code, out) == (75, "") and "run the same command again to resume" in err


def test_an_interrupt_waits_for_the_import_of_a_module_in_c(run):
    class Loader(ExtensionFileLoader):
        def exec_module(self, module):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            print("whole")

    @click.command()
    def command():
        Loader("module_in_c", "module_in_c.so").exec_module(None)
        time.sleep(60)

    start = time.monotonic()
    code, out, err = run(command)
    assert (code, out) == (130, "whole\n") and "interrupted" in err
    assert time.monotonic() - start < 50
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), OSError(errno.EIO, "disk broken"), EOFError("no more")]
)
def test_unexpected_errors_are_not_hidden(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["eoid-data"])
    with pytest.raises(type(error)):
        run_command(raising(error))


def test_as_many_files_may_be_open_as_the_system_allows():
    program = """
import resource
from pipeline.utils.cli import raise_open_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
raise_open_file_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert output == "(300, 300)\n"


@pytest.fixture
def config(tmp_path):
    def write(text):
        (tmp_path / "run.toml").write_text(text)
        return tmp_path / "run.toml"

    return write


SET = ["count=3", "learning_rate=1e-3", "name = b", "tag=x", "tag=2", "loud=true", "device=cpu"]
VALUES = {
    "place": "here",
    "count": 3,
    "rate": 0.001,
    "name": "b",
    "tag": ("x", "2"),
    "loud": True,
    "device": "cpu",
}


def test_every_option_can_be_set_in_the_file_and_by_assignments(run, config):
    file = config(
        'count = 3\nlearning-rate = 1e-3\nname = "b"\ntag = ["x", 2]\nloud = true\ndevice = "cpu"'
    )
    for words in (["--config", file], [word for one in SET for word in ("--set", one)]):
        code, out, err = run(show, "here", *words)
        assert (code, err) == (0, "") and ast.literal_eval(out) == VALUES
    out = run(show, "here", "--name", "a", "--set", 'tag=["x", "y"]')[1]
    assert ast.literal_eval(out)["tag"] == ("x", "y")
    assert "'rate': 0.25" in run(show, "here", "--name", "a", "--set", "learning-rate=0.25")[1]


@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_wins_over_set_and_set_over_the_file(run, config, order):
    file = config("count = 1\nlearning_rate = 0.1\ntag = 'f'\nloud = true\nname = 'b'")
    sources = [["--config", file], ["--set", "count=2"], ["--set", "learning-rate=0.2"]]
    sources += [["--count", 3, "--soft"]]
    words = [word for source in sources[::order] for word in source]
    values = ast.literal_eval(run(show, "here", *words)[1])
    assert (values["count"], values["rate"], values["tag"]) == (3, 0.2, ("f",))
    assert (values["name"], values["loud"], values["device"]) == ("b", False, "auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cuont = 3",
            "cuont: expected a setting of eoid-data, such as count, found an unknown one",
        ),
        ("rate = 3", "rate: expected a setting of eoid-data"),
        ("count = 2.5", "count: expected integer"),
        ("count = [1, 2]", "count: expected one value, found [1, 2]"),
        ("tag = [[1]]", "tag: expected a list of values, found [[1]]"),
        ('name = "c"', "name: expected one of a, b, found c"),
        (
            "learning-rate = 1\nlearning_rate = 2",
            "learning_rate: expected every setting once, found learning-rate too",
        ),
        ('loud = "yes"', "loud: expected true or false, found yes"),
    ],
)
def test_wrong_files_name_file_and_field(run, config, text, message):
    code, out, err = run(show, "here", "--config", config(text), "--name", "a")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "run.toml: " in err and message in err


@pytest.mark.parametrize(
    ("assignment", "facts"),
    [
        ("cuont=3", ("cuont: expected a setting of eoid-data", "count")),
        ("count", ("expected KEY=VALUE", "found count")),
        ("count=2.5", ("count: expected integer, found 2.5",)),
        ("loud=yes", ("loud: expected true or false", "found yes")),
        ("tag=[1", ("tag: expected a list", "found [1")),
    ],
)
def test_wrong_assignments_name_key_expected_and_found(run, assignment, facts):
    code, out, err = run(show, "here", "--name", "a", "--set", assignment)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("eoid-data: --set: ")
    for fact in facts:
        assert fact in err


def test_the_printed_file_has_every_setting_and_changes_nothing(run, config):
    text = format_config(show, "Settings of show.", {"count": 7})
    assert "\n# name = ...\n" in text and "\n# tag = ...\n" in text
    values = ast.literal_eval(run(show, "here", "--name", "a", "--config", config(text))[1])
    assert values == {
        **ast.literal_eval(run(show, "here", "--name", "a")[1]),
        "count": 7,
    }


def test_check_prints_a_table_and_ends_with_2_when_something_is_wrong(run, small_dataset, config):
    code, out, _ = run(cli.data, "check", small_dataset)
    assert code == 0 and "38118" in out
    file = small_dataset / "annotations/test_hico.json"
    file.write_text(file.read_text().replace("[10, 20", "[-10, 20"))
    assert run(cli.data, "check", small_dataset)[0] == 0
    assert run(cli.data, "check", small_dataset, "--config", config("strict = true"))[0] == 2
    (small_dataset / "images/test2015/c.jpg").unlink()
    code, out, err = run(cli.data, "check", small_dataset)
    assert code == 2 and "38118" in out
    last = err.splitlines()[-1]
    assert last.startswith(f"eoid-data: {small_dataset}: test: 1 image missing, first")


PIECES = """
import sys
import time
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader
import click
from pipeline.cli import run_command
@click.command()
def command():
    for _ in range(3):
        print("a", "line", "of", "words")
    raise click.UsageError("no")
run_command(command)
"""


def test_a_line_is_written_in_one_piece():
    """Several processes write into one pipe; this socket keeps what is written apart."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with ours, theirs:
        words = [sys.executable, "-c", PIECES]
        done = subprocess.run(words, stdout=theirs, stderr=theirs, env=environment, check=False)
        ours.setblocking(False)
        pieces = []
        with suppress(BlockingIOError):
            while True:
                pieces.append(ours.recv(1 << 16))
    assert done.returncode == 2
    assert pieces[:3] == [b"a line of words\n"] * 3 and len(pieces) == 4
    assert pieces[3].startswith(b"-c: no") and pieces[3].endswith(b"\n")
