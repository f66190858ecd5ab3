"""The options of all commands, as users see them."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from evaluation.cli import evaluation
from pipeline.cli import data
from student.cli import train
from student.inference.cli import predict
from teacher_cache.cli import cache

OPTIONS = Path(__file__).parent / "data" / "options.txt"
COMMANDS = {
    "eoid-data": data,
    "eoid-cache": cache,
    "eoid-train": train,
    "eoid-eval": evaluation,
    "eoid-predict": predict,
}
IMPORTS = """
import sys
from {module} import main
sys.argv = ["command", *{words}]
try:
    main()
except SystemExit as ended:
    assert ended.code == 0
loaded = {{"torch", "torchvision", "open_clip", "h5py", "dask", "numpy"}} & set(sys.modules)
assert not loaded, loaded
"""


def leaves():
    """All commands without sub-commands: name and command."""
    for name, command in COMMANDS.items():
        if isinstance(command, click.Group):
            for sub_name in sorted(command.commands):
                yield f"{name} {sub_name}", command.commands[sub_name]
        else:
            yield name, command


def visible_options():
    """One line for each option that `--help` shows."""
    return [
        f"{name} {'/'.join([*option.opts, *option.secondary_opts])}"
        for name, command in leaves()
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    ]


def test_the_list_of_visible_options_is_frozen():
    now, frozen = visible_options(), OPTIONS.read_text().splitlines()
    added, removed = sorted(set(now) - set(frozen)), sorted(set(frozen) - set(now))
    assert not added and not removed, (
        f"options added: {added}, removed: {removed}. If that is intended, run"
        " `PYTHONPATH=. python tests/test_options.py` and mention the change in CHANGELOG.md."
    )


@pytest.mark.parametrize("command", [pytest.param(each, id=name) for name, each in leaves()])
def test_every_command_is_quiet_or_verbose_on_request(command):
    assert {"quiet", "verbose"} <= {option.name for option in command.params}


@pytest.mark.parametrize(
    ("command", "most"), [(train.commands["student"], 30), (cache.commands["build"], 30)]
)
def test_long_commands_show_a_page_of_options(command, most):
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert sum(not one.hidden for one in options) <= most < len(options)


@pytest.mark.parametrize("command", [pytest.param(each, id=name) for name, each in leaves()])
def test_every_option_has_a_sentence(command):
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help and option.help[0].isupper() and option.help.endswith("."), option


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("pipeline.cli", ["toy", "--help"]),
        ("teacher_cache.cli", ["build", "--help"]),
        ("teacher_cache.cli", ["config"]),
        ("student.cli", ["student", "--help"]),
        ("student.cli", ["config", "--preset", "toy"]),
        ("evaluation.cli", ["hico", "--help"]),
        ("student.inference.cli", ["--help"]),
    ],
)
def test_help_loads_no_numerical_library(module, words):
    program = IMPORTS.format(module=module, words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    OPTIONS.write_text("\n".join(visible_options()) + "\n")
