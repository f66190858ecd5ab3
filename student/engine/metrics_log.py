"""What a run tells while it trains: progress, `metrics.jsonl`, each process's log, TensorBoard."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from torch import Tensor

from pipeline.utils.devices import start_download
from pipeline.utils.errors import InputError
from pipeline.utils.files import write_text
from pipeline.utils.progress import Progress
from student.losses.criterion import IMAGES
from student.utils.distributed import Team

RANK_LOGS = "logs"
TENSORBOARD = "tensorboard"
NOT_LOSSES = ("total", "gradient")


class Pace:
    """How quickly a process works, and how long it waits for samples, since the last record.

    Args:
        device: whose memory is told: a GPU's, or this process's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, images: int, seconds: float, waited: float) -> None:
        """Counts a step of so many images, and the part of its seconds that went into waiting."""
        self._images += images
        self._seconds += seconds
        self._waited += waited

    def take(self) -> dict[str, float]:
        """The figures, for a record; counting starts anew."""
        seconds = max(self._seconds, 1e-9)
        figures = {
            "images_per_second": round(self._images / seconds, 2),
            "data_wait_share": round(self._waited / seconds, 4),
            "memory_gb": round(peak_memory(self._device) / 1e9, 3),
        }
        self._images, self._seconds, self._waited = 0, 0.0, 0.0
        return figures


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on a GPU, or that this process took on its host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class RunLog:
    """Writes readings down; to be entered. Lines after the step where the run stands go.

    Args:
        run: folder of the run.
        step, total: optimiser steps done, and of the whole run.
        team: the run's processes; all of them write.
        tensorboard: also write event files into `RUN/tensorboard`.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, run: Path, step: int, total: int, team: Team, tensorboard: bool = False
    ) -> None:
        self._run, self._step, self._total, self._team = run, step, total, team
        self._open = ExitStack()
        self._all: TextIO | None = None
        self._own: TextIO | None = None
        self._board: Any = None
        self._note = ""
        self._board_wanted = tensorboard and team.first

    def __enter__(self) -> RunLog:
        progress = Progress(
            self._total, "training", "steps", self._step, quiet=not self._team.first
        )
        self._progress = self._open.enter_context(progress)
        if self._team.first:
            self._all = self._append(self._run / METRICS)
            rewind(self._run / EVALUATIONS, self._step)
        if self._team.size > 1:
            self._own = self._append(self._run / RANK_LOGS / f"rank-{self._team.rank}.jsonl")
        if self._board_wanted:
            folder = self._run / TENSORBOARD
            self._board = self._open.enter_context(summary_writer(folder, self._step + 1))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def advance(self) -> None:
        """Counts a step."""
        self._progress.advance(note=self._note)

    def write(self, reading: Reading) -> None:
        """Writes a reading with a record; called by all processes."""
        assert reading.record is not None
        if self._own is not None:
            own = _line(reading, reading.values) | {"image_ids": reading.image_ids}
            self._own.write(json.dumps(own) + "\n")
            self._own.flush()
        rate = reading.record["images_per_second"]
        numbers = torch.tensor([*reading.values.values(), rate], dtype=torch.float64)
        *mean, rate = self._team.mean(numbers).tolist()
        line = _line(reading, dict(zip(reading.values, mean, strict=True)), self._team.size)
        line["images_per_second"] = round(self._team.size * rate, 2)
        self._note = summary(line)
        if self._all is not None:
            self._all.write(json.dumps(line) + "\n")
            self._all.flush()
        if self._board is not None:
            losses = {f"losses/{name}": value for name, value in line.pop("losses").items()}
            for source, values in line.pop("sources", {}).items():
                losses[f"{source}/{IMAGES}"] = values[IMAGES]
                losses |= {f"{source}/{name}": value for name, value in values["losses"].items()}
            self._show(reading.step, {**line, **losses})

    def evaluated(self, step: int, epoch: int, metrics: dict[str, float], best: bool) -> None:
        """Writes the scores of the held-out images; called by the first process at least."""
        if not self._team.first:
            return
        line = {"step": step, "epoch": epoch, "metrics": metrics, "best": best}
        with open(self._run / EVALUATIONS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        scores = ", ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())
        print(f"epoch {epoch}, held out: {scores}{' (best so far)' if best else ''}", flush=True)
        self._show(step, {f"held_out/{name}": value for name, value in metrics.items()})

    def _show(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _append(self, path: Path) -> TextIO:
        path.parent.mkdir(exist_ok=True)
        rewind(path, self._step)
        return self._open.enter_context(open(path, "a", encoding="utf-8"))


def _line(reading: Reading, values: dict[str, float], processes: int = 1) -> dict[str, Any]:
    """A reading as the log has it; `values` are means over so many processes."""
    assert reading.record is not None
    losses: dict[str, float] = {}
    sources: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        source, slash, loss = name.rpartition("/")
        if slash and loss == IMAGES:
            sources.setdefault(source, {"losses": {}})[IMAGES] = round(value * processes)
        elif slash:
            sources.setdefault(source, {"losses": {}})["losses"][loss] = value
        elif name not in NOT_LOSSES:
            losses[name] = value
    return {
        **reading.record,
        "loss": values["total"],
        "losses": losses,
        "gradient_norm": values["gradient"],
        **({"sources": sources} if sources else {}),
    }


def summary(line: dict[str, Any]) -> str:
    """A record in a few words, for people who wait."""
    losses = ", ".join(f"{name} {value:.2f}" for name, value in line["losses"].items())
    return (
        f"loss {line['loss']:.2f}, {line['images_per_second']:.1f} images/s,"
        f" waiting {line['data_wait_share']:.0%}, {line['memory_gb']:.1f} GB,"
        f" lr {line['lr']:.1e}, {losses}"
    )


def summary_writer(folder: Path, step: int) -> Any:
    """TensorBoard's writer into a folder; what stands there from this step on is hidden.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard: expected the package tensorboard, found none;"
            " pip install 'eoid[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=step)


@dataclass(frozen=True, eq=False)
class Reading:
    """The numbers of one step.

    Attributes:
        step: how many steps were done after it.
        image_ids: this process's images.
        values: losses, `total` and `gradient` by name.
        record: what else the log says about the step; None where it is not logged.
    """

    step: int
    image_ids: tuple[str, ...]
    values: dict[str, float]
    record: dict[str, Any] | None

    @property
    def not_finite(self) -> list[str]:
        """Names of values that are not finite numbers."""
        return [name for name, value in self.values.items() if not math.isfinite(value)]


@dataclass(frozen=True, eq=False)
class _OnItsWay:
    """A reading whose numbers may still be on the device; `vector` waits for them."""

    step: int
    image_ids: tuple[str, ...]
    names: tuple[str, ...]
    vector: Callable[[], Tensor]
    record: dict[str, Any] | None

    def arrived(self) -> Reading:
        values = dict(zip(self.names, self.vector().tolist(), strict=True))
        return Reading(self.step, self.image_ids, values, self.record)


class Readings:
    """Brings each step's numbers to the host one step later.

    On a GPU they are copied behind the work that makes them, and read when the next step's
    matching has waited for the device anyway. On a CPU they are there at once.

    Args:
        device: where steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._late = device.type == "cuda"
        self._waiting: list[_OnItsWay] = []

    def put(
        self,
        step: int,
        image_ids: tuple[str, ...],
        values: dict[str, Tensor],
        record: dict[str, Any] | None,
    ) -> list[Reading]:
        """Takes a step's numbers, still on the device.

        Returns:
            The readings that have arrived: the step's own, or the one before.
        """
        vector = start_download(torch.stack(list(values.values())))
        self._waiting.append(_OnItsWay(step, image_ids, tuple(values), vector, record))
        return self._read(len(self._waiting) - self._late)

    def rest(self) -> list[Reading]:
        """All readings that have not arrived, after waiting for them."""
        return self._read(len(self._waiting))

    def _read(self, count: int) -> list[Reading]:
        readings = [one.arrived() for one in self._waiting[:count]]
        del self._waiting[:count]
        return readings


def not_finite(readings: Sequence[Reading]) -> str:
    """What to say about the readings of a step some of whose numbers are not finite.

    A gradient is everybody's; where a loss went wrong too, its process has the images.
    """
    wrong = [one for one in readings if set(one.not_finite) - {"gradient"}]
    wrong = wrong or [one for one in readings if one.not_finite]
    first = [one for one in wrong if one.step == wrong[0].step]
    names = dict.fromkeys(name for one in first for name in one.not_finite)
    images = ", ".join(image for one in first for image in one.image_ids)
    return f"step {wrong[0].step}: {', '.join(names)} not finite on images {images}"


METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


def rewind(path: Path, step: int) -> None:
    """Drops what a killed run logged after its last checkpoint; those steps come again.

    Args:
        path: the log; nothing happens where there is none.
        step: optimiser steps done at the checkpoint.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _logged_by(line, step)]
    if kept != lines:
        write_text(path, "".join(kept))


def _logged_by(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        # A power cut can leave anything at the end of a file.
        return False
