"""Other places that a training run is logged to (`--log-to`): TensorBoard, Weights & Biases.

`metrics_log` writes the run folder's own logs and passes its values on to these loggers.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from evaluation.drawing.samples import sample_sheet
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_text, write_text
from pipeline.utils.logging import get_logger, shows_progress

logger = get_logger(__name__)

# Names in a run folder. The identifier of the W&B run lets a resumed training continue it.
TENSORBOARD, WANDB, WANDB_ID = "tensorboard", "wandb", "wandb-id.txt"
PROJECT = "eoid"


class Logger(Protocol):
    """Where scalars and images of training steps go."""

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values of a step, by names such as "losses/verb_hard"."""

    def log_image(self, step: int, name: str, image: Image.Image) -> None:
        """Adds an image of a step."""


class _PackageLogger:
    """Passes calls on to a package; after an error the training continues without it.

    A disk may be full, and the process of W&B may be killed, e.g. if memory is short.
    """

    def __init__(self, package: str) -> None:
        self._package, self._is_lost = package, False

    def _call(self, method: Callable[..., object], *arguments: object) -> None:
        if self._is_lost:
            return
        try:
            method(*arguments)
        # W&B does not say what its methods raise: its errors, those of connections and files.
        except Exception as error:
            self._is_lost = True
            logger.warning(
                f"--log-to {self._package}: no more values are logged after an error"
                f" ({type(error).__name__}: {' '.join(str(error).split())}); resuming the training"
                " logs again"
            )


class TensorBoardLogger(_PackageLogger):
    """Writes event files to `RUN/tensorboard`.

    Args:
        run_dir: run folder.
        step: number of steps done; events of later steps, of earlier attempts, are hidden.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        super().__init__(TENSORBOARD)
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=step + 1)
        self._excepthook, threading.excepthook = threading.excepthook, self._report

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        for name, value in values.items():
            self._call(self._writer.add_scalar, name, value, step)

    def log_image(self, step: int, name: str, image: Image.Image) -> None:
        """See `Logger`."""
        pixels = np.asarray(image.convert("RGB"))
        self._call(partial(self._writer.add_image, dataformats="HWC"), name, pixels, step)

    def close(self, exit_code: int) -> None:
        """Writes what is buffered."""
        self._call(self._writer.close)
        threading.excepthook = self._excepthook

    def _report(self, error: threading.ExceptHookArgs) -> None:
        # The writer's thread passes its errors on to the next call, which reports them.
        if not type(error.thread).__module__.startswith(f"{TENSORBOARD}."):
            self._excepthook(error)


class WandbLogger(_PackageLogger):
    """Writes a run of Weights & Biases, whose local files are in `RUN/wandb`.

    The package's environment variables apply (WANDB_MODE=offline, WANDB_ENTITY, ...). A resumed
    training has the same W&B run. What it repeats of the stopped one has equal values.

    Args:
        run_dir: run folder.
        name: name of the run.
        settings: settings of the run, nested dicts.

    Raises:
        InputError: nobody is logged in, or the server is out of reach.
    """

    def __init__(self, run_dir: Path, name: str, settings: dict[str, Any]) -> None:
        from wandb import Error, Settings, init

        super().__init__(WANDB)
        identifier = _wandb_id(run_dir / WANDB_ID)
        # Without a network W&B gives up after minutes.
        logger.info(
            f"--log-to {WANDB}: opening run {identifier}, which needs no server with"
            " WANDB_MODE=offline"
        )
        try:
            # The progress line and the messages stay what they are. W&B says in a few lines where
            # the run is, and does not repeat its values at the end.
            console = Settings(console="off", quiet=True)
            if not shows_progress():
                console.silent = True
            self._run = init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=identifier,
                resume="allow",
                name=name,
                dir=str(run_dir),
                config=settings,
                allow_val_change=True,
                settings=console,
            )
            # W&B's own step would refuse values of steps that a resumed run repeats.
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        # W&B's settings raise pydantic's ValidationError, a ValueError, for values of variables
        # such as WANDB_MODE; a lost process of W&B raises an OSError.
        except (Error, ValueError, OSError) as error:
            raise InputError(
                f"--log-to {WANDB}: {' '.join(str(error).split())}; WANDB_MODE=offline logs to"
                " files alone"
            ) from None

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._call(self._run.log, {**values, "step": step})

    def log_image(self, step: int, name: str, image: Image.Image) -> None:
        """See `Logger`."""
        from wandb import Image as WandbImage

        self._call(lambda: self._run.log({name: WandbImage(image), "step": step}))

    def close(self, exit_code: int) -> None:
        """Sends what is buffered; W&B calls a run with an exit code other than 0 failed."""
        self._call(self._run.finish, exit_code)


def log_evaluation(
    loggers: Sequence[Logger],
    step: int,
    kind: str,
    metrics: Mapping[str, float | None],
    folder: Path,
) -> None:
    """Passes the scores of an evaluation, and a sheet of its drawings, to loggers.

    Args:
        loggers: where they go.
        step: number of steps done.
        kind: "val" or "test", the first part of the names.
        metrics: scores as fractions; None without ground truth.
        folder: drawings of `evaluation.drawing.samples.draw_samples`.
    """
    if not loggers:
        return
    scores = {f"{kind}/{name}": value for name, value in metrics.items() if value is not None}
    sheet = sample_sheet(folder)
    for one in loggers:
        one.log_scalars(step, scores)
        if sheet is not None:
            one.log_image(step, f"{kind}/pictures", sheet)


def require_packages(names: Sequence[str]) -> None:
    """Checks that the packages of loggers are installed, before anything else is loaded.

    Raises:
        InputError: one is missing.
    """
    for name in names:
        try:
            # A folder of such a name in the working directory would be importable too.
            if name == TENSORBOARD:
                from torch.utils.tensorboard import SummaryWriter  # noqa: F401
            else:
                from wandb import init  # noqa: F401
        except ImportError:
            raise InputError(
                f"--log-to {name}: expected the package {name}, found none; pip install '.[{name}]'"
            ) from None


@contextmanager
def open_loggers(
    names: Sequence[str], run_dir: Path, step: int, name: str, settings: dict[str, Any]
) -> Iterator[list[Logger]]:
    """Opens loggers, and closes them at the end of the body.

    Args:
        names: values of `--log-to`.
        run_dir, step, name, settings: see `TensorBoardLogger` and `WandbLogger`.

    Raises:
        InputError: W&B cannot be used.
    """
    opened: list[TensorBoardLogger | WandbLogger] = []
    exit_code = 1
    try:
        for kind in dict.fromkeys(names):
            opened.append(
                TensorBoardLogger(run_dir, step)
                if kind == TENSORBOARD
                else WandbLogger(run_dir, name, settings)
            )
        yield list(opened)
        exit_code = 0
    finally:
        with ExitStack() as stack:
            for one in opened:
                stack.callback(one.close, exit_code)


def _wandb_id(file: Path) -> str:
    """The identifier of the run's W&B run, which the first training chooses.

    Raises:
        InputError: the file contains something else.
    """
    if not file.is_file():
        write_text(file, f"{secrets.token_hex(8)}\n")
    identifier = read_text(file).strip()
    if not re.fullmatch(r"[\w-]{1,64}", identifier, re.ASCII):
        expected = "the identifier of a W&B run; remove the file to begin a new one"
        raise bad_field(file, "line 1", expected, identifier or "nothing")
    return identifier
