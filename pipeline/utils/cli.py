"""What all commands share: `--device`, errors as one line on stderr, and exit codes."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import click
import cloup

from pipeline.utils.cli_options import option
from pipeline.utils.errors import InputError
from pipeline.utils.signals import interrupt_outside_extensions

EXIT_BAD_INPUT = 2
EXIT_UNFINISHED = 3
EXIT_INTERRUPTED = 130
# Enough for all workers and shards. Not more, because programs that close every possible file
# descriptor before they start a process take time in proportion to the limit.
MAX_OPEN_FILES = 65536
# Errors of the operating system about a path that cannot be read or written: wrong use, not a bug.
PATH_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EFBIG,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}

# Settings of the commands' help pages.
HELP_SETTINGS = cloup.Context.settings(
    formatter_settings=cloup.HelpFormatter.settings(max_width=100)
)
device_option = option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:i]",
    help="Device of the models; auto takes a GPU if there is one.",
)
decoding_workers_option = option(
    "--workers",
    type=click.IntRange(min=0),
    show_default="the spare cores, at most 16",
    help="Number of threads that decode images.",
)


def limit_option(images: str) -> Callable[[Callable[..., Any]], Any]:
    """Adds `--limit`; `images` are those that it limits, for its help text."""
    return option(
        "--limit",
        type=click.IntRange(min=1),
        show_default="all images",
        help=f"Take only this number of {images}, at equal distances, for a short trial.",
    )


def run_command(command: click.Command) -> NoReturn:
    """Runs a command line: bad input is one line on stderr and exit 2, an interrupt exit 130."""
    ensure_utf8()
    program = Path(sys.argv[0]).name
    # With PYTHONUNBUFFERED a line is written in pieces, and those of several processes mix.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)
    # Waiting OpenMP threads of torch spin for a long time by default, which takes the cores from
    # other processes. Without spinning, waking up costs more than a short step. One step of the
    # toy student on two idle cores, and beside another training: 0.19 s and 3.3 s by default,
    # 0.21 s and 1.3 s with this value, 0.30 s and 0.4 s without spinning.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # torch's C++ code logs dozens of lines about a failed connection before it raises the error.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    raise_open_file_limit()
    # Before click 8.2 a group without a command ends with exit code 0, later with 2.
    words = sys.argv[1:] or (["--help"] if isinstance(command, click.Group) else [])
    try:
        with interrupt_outside_extensions():
            command.main(words, program, standalone_mode=False)
    except (InputError, click.ClickException, OSError) as error:
        if isinstance(error, OSError) and error.errno not in PATH_ERRNOS:
            raise
        print(f"{program}: {' '.join(_format_error(error, words).split())}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except UnicodeError as error:
        found = repr(error.object) if isinstance(error, UnicodeEncodeError) else error
        print(f"{program}: expected names and texts in UTF-8, found {found}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except (KeyboardInterrupt, click.Abort) as stop:
        # click turns every EOFError, of a file or a connection too, into Abort.
        if isinstance(stop.__context__, EOFError):
            raise stop.__context__ from None
        print(f"{program}: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def ensure_utf8() -> None:
    """Makes this process and those it starts use UTF-8 for file names, whatever the locale.

    If the locale has another encoding, as the C locale does, the process is restarted in Python's
    UTF-8 mode. Bytes that are not UTF-8 are printed as escapes.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def raise_open_file_limit() -> None:
    """Lets this process and those it starts open as many files at once as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS reports a higher limit than it accepts.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _missing_parameters(context: click.Context, words: Sequence[str]) -> list[str]:
    """All required parameters that a command line lacks; click names only the first one."""
    # Groups have no options, so that each has consumed one word.
    start = len(context.command_path.split()) - len(context.find_root().command_path.split())
    given, _, _ = context.command.make_parser(context).parse_args([*words[start:]])
    return [
        parameter.metavar or parameter.human_readable_name
        if isinstance(parameter, click.Argument)
        else max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.required
        and parameter.value_is_missing(parameter.consume_value(context, given)[0])
    ]


def _suggest_shown_options(error: click.NoSuchOption, context: click.Context) -> click.NoSuchOption:
    """The error with similar options of `--help`; hidden ones only if none of these is similar."""
    shown = [
        name
        for parameter in context.command.get_params(context)
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]
    similar = get_close_matches(error.option_name, shown) or error.possibilities
    return click.NoSuchOption(error.option_name, error.message, similar, context)


def _format_error(error: InputError | click.ClickException | OSError, words: Sequence[str]) -> str:
    if isinstance(error, click.MissingParameter) and error.ctx is not None:
        missing = _missing_parameters(error.ctx, words)
        return f"Missing {', '.join(missing)}. See {error.ctx.command_path} --help."
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        error = _suggest_shown_options(error, error.ctx)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{error.format_message()} See {error.ctx.command_path} --help."
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror}"
    return str(error)
