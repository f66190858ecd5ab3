"""The options of all commands, as users see them."""

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
def test_every_option_has_a_sentence(command):
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert {"quiet", "verbose"} <= {option.name for option in options}
    for option in options:
        assert option.help and option.help[0].isupper() and option.help.endswith("."), option


@pytest.mark.parametrize("command", [train.commands["student"], cache.commands["build"]])
def test_long_commands_show_a_page_of_options(command):
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert sum(not one.hidden for one in options) <= 32 < len(options)


if __name__ == "__main__":
    OPTIONS.write_text("\n".join(visible_options()) + "\n")
