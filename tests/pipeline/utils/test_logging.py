import logging
import re
import sys
from pathlib import Path

import click
import pytest
from commands import run_command as run

from pipeline.utils.cli import run_command
from pipeline.utils.cli_options import config_option
from pipeline.utils.logging import get_logger, log_to_stderr, only_errors, shows_progress
from pipeline.utils.progress import Progress

LEVELS = ("debug", "info", "warning")
ROOT = Path(__file__).parents[3]
PACKAGES = ("pipeline", "teacher_cache", "student", "evaluation")
HANDLERS = re.compile(r"basicConfig|addHandler|\.handlers\b")


@click.command()
@config_option
def command():
    """Logs at every level, shows progress and prints a result."""
    for level in LEVELS:
        getattr(get_logger("package.module"), level)(f"a {level}")
    with Progress(1, "working", "items") as progress:
        progress.update()
    click.echo("result")


def test_imports_install_no_handlers():
    sources = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    users = [path.name for path in sources if HANDLERS.search(path.read_text())]
    # The server of the page silences the libraries that it runs.
    assert sorted(users) == ["logging.py", "serve.py"]


def test_messages_go_to_stderr_and_results_to_stdout():
    done = run(lambda: run_command(command), "eoid")
    assert (done.returncode, done.stdout) == (0, "result\n")
    first, second, progress = done.stderr.splitlines()
    assert (first, second) == ("a info", "warning: a warning")
    assert progress.startswith("working: 100% 1/1 ")


def test_quiet_leaves_warnings_and_results(tmp_path):
    (tmp_path / "options.toml").write_text("quiet = true\n")
    done = run(lambda: run_command(command), "eoid", "--config", tmp_path / "options.toml")
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert done.stderr == "warning: a warning\n"


def test_verbose_adds_debug_messages_and_logger_names():
    done = run(lambda: run_command(command), "eoid", "--verbose")
    assert (done.returncode, done.stdout) == (0, "result\n")
    version, *lines, progress = done.stderr.splitlines()
    assert version.startswith("DEBUG eoid.pipeline.utils.cli_options: eoid of eoid ")
    assert lines == [f"{level.upper()} eoid.package.module: a {level}" for level in LEVELS]
    assert progress.startswith("working: 100% 1/1 ")


def test_quiet_excludes_verbose():
    done = run(lambda: run_command(command), "eoid", "--quiet", "--verbose")
    assert done.returncode == 2 and "--verbose and --quiet" in done.stderr and done.stdout == ""


def test_every_line_is_shown_once(capsys):
    """Also where a library has configured the root logger, and for a command within a command."""
    root = logging.StreamHandler(sys.stdout)
    logging.root.addHandler(root)
    try:
        with log_to_stderr(), log_to_stderr():
            get_logger("package").warning("once")
    finally:
        logging.root.removeHandler(root)
    assert capsys.readouterr() == ("", "warning: once\n")


def test_the_logger_is_as_before_after_a_command():
    logger = logging.getLogger("eoid")
    before = logger.level, logger.propagate, logger.handlers[:]
    with pytest.raises(KeyboardInterrupt), log_to_stderr(logging.DEBUG), only_errors():
        raise KeyboardInterrupt
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_other_processes_than_the_main_one_report_only_errors(capsys):
    logger = get_logger("package")
    with log_to_stderr():
        with only_errors():
            assert not shows_progress()
            logger.warning("hidden")
            logger.error("shown")
        assert shows_progress()
        logger.info("again")
    assert capsys.readouterr().err == "error: shown\nagain\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_no_progress_without_messages(capsys, monkeypatch, terminal, level):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with log_to_stderr(level), Progress(2, "working") as progress:
        progress.update()
    assert capsys.readouterr().err == ""
