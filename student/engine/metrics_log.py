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

from pipeline.utils.devices import copy_to_host_async
from pipeline.utils.errors import InputError
from pipeline.utils.files import write_text
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from student.losses.criterion import IMAGE_COUNT
from student.utils.distributed import DistContext

logger = get_logger(__name__)

RANK_LOGS = "logs"
TENSORBOARD = "tensorboard"
NON_LOSS_VALUES = ("total", "gradient")


class Throughput:
    """How quickly a process works, and how long it waits for samples, since the last record.

    Args:
        device: whose memory is told: a GPU's, or this process's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images, self._seconds, self._data_seconds = 0, 0.0, 0.0

    def update(self, images: int, seconds: float, waited: float) -> None:
        """Counts a step of so many images, and the part of its seconds that went into waiting."""
        self._images += images
        self._seconds += seconds
        self._data_seconds += waited

    def compute(self) -> dict[str, float]:
        """The figures, for a record; counting starts anew."""
        seconds = max(self._seconds, 1e-9)
        figures = {
            "images_per_second": round(self._images / seconds, 2),
            "data_wait_share": round(self._data_seconds / seconds, 4),
            "memory_gb": round(peak_memory(self._device) / 1e9, 3),
        }
        self._images, self._seconds, self._data_seconds = 0, 0.0, 0.0
        return figures


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on a GPU, or that this process took on its host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class MetricsLogger:
    """Writes step metrics; a context manager. Lines after the step where the run stands go.

    Args:
        run_dir: folder of the run.
        step, total: optimiser steps done, and of the whole run.
        context: the run's processes; all of them write.
        tensorboard: also write event files into `RUN/tensorboard`.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, run_dir: Path, step: int, total: int, context: DistContext, tensorboard: bool = False
    ) -> None:
        self._run_dir, self._step, self._total, self._context = run_dir, step, total, context
        self._stack = ExitStack()
        self._metrics_file: TextIO | None = None
        self._rank_file: TextIO | None = None
        self._tensorboard: Any = None
        self._progress_note = ""
        self._use_tensorboard = tensorboard and context.is_main_process

    def __enter__(self) -> MetricsLogger:
        progress = Progress(
            self._total, "training", "steps", self._step, quiet=not self._context.is_main_process
        )
        self._progress = self._stack.enter_context(progress)
        if self._context.is_main_process:
            self._metrics_file = self._open_log(self._run_dir / METRICS)
            truncate_log(self._run_dir / EVALUATIONS, self._step)
        if self._context.world_size > 1:
            self._rank_file = self._open_log(
                self._run_dir / RANK_LOGS / f"rank-{self._context.rank}.jsonl"
            )
        if self._use_tensorboard:
            folder = self._run_dir / TENSORBOARD
            self._tensorboard = self._stack.enter_context(summary_writer(folder, self._step + 1))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def advance(self) -> None:
        """Counts a step."""
        self._progress.update(note=self._progress_note)

    def log_step(self, metrics: StepMetrics) -> None:
        """Writes the metrics of a logged step; called by all processes."""
        assert metrics.record is not None
        if self._rank_file is not None:
            own = _log_record(metrics, metrics.values) | {"image_ids": metrics.image_ids}
            self._rank_file.write(json.dumps(own) + "\n")
            self._rank_file.flush()
        rate = metrics.record["images_per_second"]
        numbers = torch.tensor([*metrics.values.values(), rate], dtype=torch.float64)
        *mean, rate = self._context.all_reduce_mean(numbers).tolist()
        line = _log_record(
            metrics, dict(zip(metrics.values, mean, strict=True)), self._context.world_size
        )
        line["images_per_second"] = round(self._context.world_size * rate, 2)
        self._progress_note = progress_line(line)
        if self._metrics_file is not None:
            self._metrics_file.write(json.dumps(line) + "\n")
            self._metrics_file.flush()
        if self._tensorboard is not None:
            losses = {f"losses/{name}": value for name, value in line.pop("losses").items()}
            for source, values in line.pop("sources", {}).items():
                losses[f"{source}/{IMAGE_COUNT}"] = values[IMAGE_COUNT]
                losses |= {f"{source}/{name}": value for name, value in values["losses"].items()}
            self._add_scalars(metrics.step, {**line, **losses})

    def log_validation(self, step: int, epoch: int, metrics: dict[str, float], best: bool) -> None:
        """Writes the scores of the held-out images; called by the first process at least."""
        if not self._context.is_main_process:
            return
        line = {"step": step, "epoch": epoch, "metrics": metrics, "best": best}
        with open(self._run_dir / EVALUATIONS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        scores = ", ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())
        logger.info(f"epoch {epoch}, validation: {scores}{' (best so far)' if best else ''}")
        self._add_scalars(step, {f"val/{name}": value for name, value in metrics.items()})

    def _add_scalars(self, step: int, values: dict[str, float]) -> None:
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def _open_log(self, path: Path) -> TextIO:
        path.parent.mkdir(exist_ok=True)
        truncate_log(path, self._step)
        return self._stack.enter_context(open(path, "a", encoding="utf-8"))


def _log_record(
    metrics: StepMetrics, values: dict[str, float], processes: int = 1
) -> dict[str, Any]:
    """The metrics of a step as the log has them; `values` are means over so many processes."""
    assert metrics.record is not None
    losses: dict[str, float] = {}
    sources: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        source, slash, loss = name.rpartition("/")
        if slash and loss == IMAGE_COUNT:
            sources.setdefault(source, {"losses": {}})[IMAGE_COUNT] = round(value * processes)
        elif slash:
            sources.setdefault(source, {"losses": {}})["losses"][loss] = value
        elif name not in NON_LOSS_VALUES:
            losses[name] = value
    return {
        **metrics.record,
        "loss": values["total"],
        "losses": losses,
        "grad_norm": values["gradient"],
        **({"sources": sources} if sources else {}),
    }


def progress_line(line: dict[str, Any]) -> str:
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
class StepMetrics:
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
    def non_finite(self) -> list[str]:
        """Names of values that are not finite numbers."""
        return [name for name, value in self.values.items() if not math.isfinite(value)]


@dataclass(frozen=True, eq=False)
class _PendingStep:
    """Metrics that may still be on the device; `vector` waits for them."""

    step: int
    image_ids: tuple[str, ...]
    names: tuple[str, ...]
    vector: Callable[[], Tensor]
    record: dict[str, Any] | None

    def resolve(self) -> StepMetrics:
        values = dict(zip(self.names, self.vector().tolist(), strict=True))
        return StepMetrics(self.step, self.image_ids, values, self.record)


class PendingMetrics:
    """Brings each step's numbers to the host one step later.

    On a GPU they are copied behind the work that makes them, and read when the next step's
    matching has waited for the device anyway. On a CPU they are there at once.

    Args:
        device: where steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._delayed = device.type == "cuda"
        self._pending: list[_PendingStep] = []

    def put(
        self,
        step: int,
        image_ids: tuple[str, ...],
        values: dict[str, Tensor],
        record: dict[str, Any] | None,
    ) -> list[StepMetrics]:
        """Takes a step's numbers, still on the device.

        Returns:
            The metrics that are on the host: the step's own, or the one before.
        """
        vector = copy_to_host_async(torch.stack(list(values.values())))
        self._pending.append(_PendingStep(step, image_ids, tuple(values), vector, record))
        return self._resolve(len(self._pending) - self._delayed)

    def flush(self) -> list[StepMetrics]:
        """All metrics that are not on the host, after waiting for them."""
        return self._resolve(len(self._pending))

    def _resolve(self, count: int) -> list[StepMetrics]:
        resolved = [one.resolve() for one in self._pending[:count]]
        del self._pending[:count]
        return resolved


def non_finite_message(resolved: Sequence[StepMetrics]) -> str:
    """The error message about the metrics of a step some of whose numbers are not finite.

    A gradient is everybody's; where a loss went wrong too, its process has the images.
    """
    wrong = [one for one in resolved if set(one.non_finite) - {"gradient"}]
    wrong = wrong or [one for one in resolved if one.non_finite]
    first = [one for one in wrong if one.step == wrong[0].step]
    names = dict.fromkeys(name for one in first for name in one.non_finite)
    images = ", ".join(image for one in first for image in one.image_ids)
    return f"step {wrong[0].step}: {', '.join(names)} not finite on images {images}"


METRICS, EVALUATIONS = "metrics.jsonl", "validation.jsonl"


def truncate_log(path: Path, step: int) -> None:
    """Drops what a killed run logged after its last checkpoint; those steps come again.

    Args:
        path: the log; nothing happens where there is none.
        step: optimiser steps done at the checkpoint.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_logged_until(line, step)]
    if kept != lines:
        write_text(path, "".join(kept))


def _is_logged_until(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        # A power cut can leave anything at the end of a file.
        return False
