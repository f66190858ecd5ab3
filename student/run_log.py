"""What a run tells while it trains: progress, `metrics.jsonl`, each process's log, TensorBoard."""

from __future__ import annotations

import json
import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

from pipeline.errors import InputError
from pipeline.progress import Progress
from student.distributed import Team
from student.metrics import EVALUATIONS, METRICS, rewind
from student.readings import Reading
from student.step import IMAGES

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
