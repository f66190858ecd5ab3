"""Metrics of a training run: throughput, finiteness checks, `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.tables import METRIC_TITLES, format_percent
from pipeline.utils.devices import copy_to_host_async
from pipeline.utils.files import write_text
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from student.engine.loggers import Logger, log_evaluation
from student.losses.criterion import IMAGE_COUNT
from student.utils.distributed import DistContext

logger = get_logger(__name__)

METRICS, EVALUATIONS, TESTS = "metrics.jsonl", "validation.jsonl", "test.jsonl"
RANK_LOGS = "logs"
# Field of a record with the numbers of candidate pairs, see `CandidateCounts`.
CANDIDATES = "candidates"


class Throughput:
    """Throughput, data waiting time and peak memory of a process since the last record."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images, self._seconds, self._data_seconds = 0, 0.0, 0.0

    def update(self, images: int, seconds: float, waited: float) -> None:
        """Adds a step with its duration, and the part of it in which it waited for data."""
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
    """Writes metrics to `metrics.jsonl`, per-process logs and `loggers`; a context manager.

    When entered, it removes lines of steps after `step`, which are repeated by a resumed run.

    Args:
        run_dir: run folder.
        step, total: numbers of steps done, and of the whole run.
        context: processes of the run, each with a log of its own where there are several.
        loggers: other places that the values and drawings go to, open in the main process.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int,
        total: int,
        context: DistContext,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self._run_dir, self._step, self._total, self._context = run_dir, step, total, context
        self._progress_note, self._loggers = "", loggers

    def __enter__(self) -> MetricsLogger:
        if self._context.is_main_process:
            truncate_log(self._run_dir / METRICS, self._step)
            truncate_log(self._run_dir / EVALUATIONS, self._step)
            truncate_log(self._run_dir / TESTS, self._step)
        if self._context.world_size > 1:
            self._rank_log.parent.mkdir(exist_ok=True)
            truncate_log(self._rank_log, self._step)
        quiet = not self._context.is_main_process
        self._progress = Progress(self._total, "training", "steps", self._step, quiet=quiet)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    @property
    def _rank_log(self) -> Path:
        return self._run_dir / RANK_LOGS / f"rank-{self._context.rank}.jsonl"

    def advance(self) -> None:
        """Advances the progress by a step."""
        self._progress.update(note=self._progress_note)

    def log_step(self, metrics: StepMetrics) -> None:
        """Writes the metrics of a step; to be called by all processes.

        Losses are averaged over the processes, candidates and images per second summed.
        """
        assert metrics.record is not None
        size = self._context.world_size
        if size > 1:
            line = _log_record(metrics, metrics.values) | {"image_ids": metrics.image_ids}
            append_line(self._rank_log, line)
        rate = metrics.record["images_per_second"]
        counts = metrics.record[CANDIDATES]
        numbers = [*metrics.values.values(), *counts.values(), rate]
        reduced = self._context.all_reduce_mean(torch.tensor(numbers, dtype=torch.float64))
        *mean, rate = reduced.tolist()
        num_losses = len(metrics.values)
        losses = dict(zip(metrics.values, mean[:num_losses], strict=True))
        line = _log_record(metrics, losses, size)
        sums = (round(size * count) for count in mean[num_losses:])
        line[CANDIDATES] = dict(zip(counts, sums, strict=True))
        line["images_per_second"] = round(size * rate, 2)
        self._progress_note = progress_line(line)
        if self._context.is_main_process:
            append_line(self._run_dir / METRICS, line)
        if self._loggers:
            scalars = {
                f"{group}/{name}": value
                for group in ("losses", CANDIDATES)
                for name, value in line.pop(group).items()
            }
            for source, values in line.pop("sources", {}).items():
                scalars[f"{source}/{IMAGE_COUNT}"] = values[IMAGE_COUNT]
                scalars |= {f"{source}/{name}": value for name, value in values["losses"].items()}
            for experiment in self._loggers:
                experiment.log_scalars(metrics.step, {**line, **scalars})

    def log_validation(
        self, step: int, epoch: int, metrics: dict[str, float], best: bool, drawings: Path
    ) -> None:
        """Writes the metrics of a validation; does nothing outside the main process."""
        if not self._context.is_main_process:
            return
        line = {"step": step, "epoch": epoch, "metrics": metrics, "best": best}
        append_line(self._run_dir / EVALUATIONS, line)
        scores = _format_scores(metrics)
        logger.info(f"epoch {epoch}, validation: {scores}{' (best so far)' if best else ''}")
        log_evaluation(self._loggers, step, "val", metrics, drawings)

    def has_test(self, step: int) -> bool:
        """Whether the metrics of test images at a step are written; to be called by all processes.

        Lines of later steps and incomplete lines were removed when the logger was entered.
        """
        file = self._run_dir / TESTS
        return self._context.broadcast(
            lambda: file.is_file() and any(line["step"] == step for line in _read_lines(file))
        )

    def log_test(self, step: int, epoch: int, metrics: dict[str, float], drawings: Path) -> None:
        """Writes the metrics of test images; does nothing outside the main process."""
        if not self._context.is_main_process:
            return
        append_line(self._run_dir / TESTS, {"step": step, "epoch": epoch, "metrics": metrics})
        scores = _format_scores(metrics)
        logger.info(f"epoch {epoch}, test: {scores}")
        log_evaluation(self._loggers, step, "test", metrics, drawings)


def _format_scores(metrics: dict[str, float]) -> str:
    """Metrics in percent, by their names in the tables: "seen 50.00, max recall 80.00"."""
    return ", ".join(
        f"{METRIC_TITLES.get(name, name).lower()} {format_percent(value, 2)}"
        for name, value in metrics.items()
    )


def _log_record(
    metrics: StepMetrics, values: dict[str, float], processes: int = 1
) -> dict[str, Any]:
    """The log record of a step; `values` are means over `processes` processes."""
    losses: dict[str, float] = {}
    sources: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        source, slash, loss = name.rpartition("/")
        if not slash:
            losses[name] = value
        elif loss == IMAGE_COUNT:
            sources.setdefault(source, {"losses": {}})[IMAGE_COUNT] = round(value * processes)
        else:
            sources.setdefault(source, {"losses": {}})["losses"][loss] = value
    total, gradient = losses.pop("total"), losses.pop("gradient")
    record = {**(metrics.record or {}), "loss": total, "losses": losses, "grad_norm": gradient}
    return {**record, "sources": sources} if sources else record


def progress_line(line: dict[str, Any]) -> str:
    """Summary of a record for the progress line."""
    losses = ", ".join(f"{name} {value:.2f}" for name, value in line["losses"].items())
    candidates = line[CANDIDATES]
    return (
        f"loss {line['loss']:.2f}, {line['images_per_second']:.1f} images/s,"
        f" waiting {line['data_wait_share']:.0%}, {line['memory_gb']:.1f} GB,"
        f" lr {line['lr']:.1e}, {losses}, {candidates['kept']} of {candidates['total']}"
        " candidates kept"
    )


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


class PendingMetrics:
    """Copies metrics to the host without an additional synchronisation.

    On a GPU the copy is asynchronous and read one step later, after the next step's matching has
    waited for the device. On a CPU metrics are available immediately.
    """

    def __init__(self, device: torch.device) -> None:
        self._delay = 1 if device.type == "cuda" else 0
        self._pending: list[Callable[[], StepMetrics]] = []

    def put(
        self,
        step: int,
        image_ids: tuple[str, ...],
        values: dict[str, Tensor],
        record: dict[str, Any] | None,
    ) -> list[StepMetrics]:
        """Starts to copy the metrics of a step, whose `values` are scalars on the device.

        Returns:
            The metrics that have arrived: on a CPU of this step, on a GPU of the previous one.
        """
        vector = copy_to_host_async(torch.stack(list(values.values())))

        def resolve() -> StepMetrics:
            numbers = dict(zip(values, vector().tolist(), strict=True))
            return StepMetrics(step, image_ids, numbers, record)

        self._pending.append(resolve)
        return self._resolve(self._delay)

    def flush(self) -> list[StepMetrics]:
        """Waits for all metrics that have not arrived, and returns them."""
        return self._resolve(0)

    def _resolve(self, kept: int) -> list[StepMetrics]:
        count = len(self._pending) - kept
        return [self._pending.pop(0)() for _ in range(count)]


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


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Appends a JSON object to a log."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def truncate_log(path: Path, step: int) -> None:
    """Removes the lines of a log, if it exists, after the step of the last checkpoint."""
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
