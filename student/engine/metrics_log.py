"""Metrics of a training run: throughput, finiteness checks, `metrics.jsonl`, TensorBoard."""

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

METRICS, EVALUATIONS = "metrics.jsonl", "validation.jsonl"
RANK_LOGS = "logs"
TENSORBOARD = "tensorboard"
NON_LOSS_VALUES = ("total", "gradient")


class Throughput:
    """Throughput and data waiting time of a process since the last record.

    Args:
        device: device of the process, whose peak memory is reported.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images, self._seconds, self._data_seconds = 0, 0.0, 0.0

    def update(self, images: int, seconds: float, waited: float) -> None:
        """Adds a step.

        Args:
            images: number of images.
            seconds: duration of the step.
            waited: part of the duration in which the process waited for data.
        """
        self._images += images
        self._seconds += seconds
        self._data_seconds += waited

    def compute(self) -> dict[str, float]:
        """Returns the values for a record, and starts a new interval."""
        seconds = max(self._seconds, 1e-9)
        values = {
            "images_per_second": round(self._images / seconds, 2),
            "data_wait_share": round(self._data_seconds / seconds, 4),
            "memory_gb": round(peak_memory(self._device) / 1e9, 3),
        }
        self._images, self._seconds, self._data_seconds = 0, 0.0, 0.0
        return values


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, or of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # `ru_maxrss` is in bytes on macOS and in KiB on Linux.
    return peak if sys.platform == "darwin" else 1024 * peak


class MetricsLogger:
    """Writes metrics to `metrics.jsonl`, per-process logs and TensorBoard; a context manager.

    When entered, it removes lines of steps after `step`, which are repeated by a resumed run.

    Args:
        run_dir: run folder.
        step: number of steps done.
        total: number of steps of the whole run.
        context: processes of the run, each with a log of its own where there are several.
        tensorboard: also write event files to `RUN/tensorboard`.

    Raises:
        InputError: TensorBoard is requested and not installed.
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
        """Advances the progress by a step."""
        self._progress.update(note=self._progress_note)

    def log_step(self, metrics: StepMetrics) -> None:
        """Writes the metrics of a step, averaged over processes; to be called by all of them."""
        assert metrics.record is not None
        if self._rank_file is not None:
            line = _log_record(metrics, metrics.values) | {"image_ids": metrics.image_ids}
            self._rank_file.write(json.dumps(line) + "\n")
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
        """Writes the metrics of a validation; does nothing outside the main process."""
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
    """The log record of a step; `values` are means over `processes` processes."""
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
    """Summary of a record for the progress line."""
    losses = ", ".join(f"{name} {value:.2f}" for name, value in line["losses"].items())
    return (
        f"loss {line['loss']:.2f}, {line['images_per_second']:.1f} images/s,"
        f" waiting {line['data_wait_share']:.0%}, {line['memory_gb']:.1f} GB,"
        f" lr {line['lr']:.1e}, {losses}"
    )


def summary_writer(folder: Path, step: int) -> Any:
    """A TensorBoard writer that hides events of this and later steps from earlier attempts.

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
    """Metrics of one step in one process.

    Attributes:
        step: number of steps done, including this one.
        image_ids: images of the process.
        values: losses, `total` and `gradient` by name.
        record: further fields of the log record; None if the step is not logged.
    """

    step: int
    image_ids: tuple[str, ...]
    values: dict[str, float]
    record: dict[str, Any] | None

    @property
    def non_finite(self) -> list[str]:
        """Names of the values that are NaN or infinite."""
        return [name for name, value in self.values.items() if not math.isfinite(value)]


@dataclass(frozen=True, eq=False)
class _PendingStep:
    """Metrics of a step being copied to the host; calling `vector` waits for the copy."""

    step: int
    image_ids: tuple[str, ...]
    names: tuple[str, ...]
    vector: Callable[[], Tensor]
    record: dict[str, Any] | None

    def resolve(self) -> StepMetrics:
        values = dict(zip(self.names, self.vector().tolist(), strict=True))
        return StepMetrics(self.step, self.image_ids, values, self.record)


class PendingMetrics:
    """Copies metrics to the host without an additional synchronisation.

    On a GPU the copy is asynchronous and read one step later, after the next step's matching has
    waited for the device. On a CPU metrics are available immediately.

    Args:
        device: device of the training.
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
        """Starts to copy the metrics of a step.

        Args:
            step, image_ids, record: see `StepMetrics`.
            values: scalars on the device by name.

        Returns:
            The metrics that have arrived: on a CPU of this step, on a GPU of the previous one.
        """
        vector = copy_to_host_async(torch.stack(list(values.values())))
        self._pending.append(_PendingStep(step, image_ids, tuple(values), vector, record))
        return self._resolve(len(self._pending) - self._delayed)

    def flush(self) -> list[StepMetrics]:
        """Waits for all metrics that have not arrived, and returns them."""
        return self._resolve(len(self._pending))

    def _resolve(self, count: int) -> list[StepMetrics]:
        resolved = [pending.resolve() for pending in self._pending[:count]]
        del self._pending[:count]
        return resolved


def non_finite_message(resolved: Sequence[StepMetrics]) -> str:
    """Error message that names step, values and images of the first step with non-finite values.

    The gradient is common to all processes, so that it does not show whose images are the cause.
    Processes with non-finite losses are therefore preferred.
    """
    wrong = [metrics for metrics in resolved if set(metrics.non_finite) - {"gradient"}]
    wrong = wrong or [metrics for metrics in resolved if metrics.non_finite]
    first = [metrics for metrics in wrong if metrics.step == wrong[0].step]
    names = dict.fromkeys(name for metrics in first for name in metrics.non_finite)
    images = ", ".join(image for metrics in first for image in metrics.image_ids)
    return f"step {wrong[0].step}: {', '.join(names)} not finite on images {images}"


def truncate_log(path: Path, step: int) -> None:
    """Removes the lines of steps after the last checkpoint, which a resumed run repeats.

    Args:
        path: the log file, which need not exist.
        step: step of the checkpoint.
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
        # A power failure can leave arbitrary bytes at the end of a file.
        return False
