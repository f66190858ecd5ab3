"""`Trainer`, the training loop of a student: data loading, steps, checkpoints, logs, validation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch.utils.data import DataLoader

from evaluation.drawing.samples import SAMPLES_FOLDER
from pipeline.utils.devices import convert_out_of_memory
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun
from student.data.dataset import Batch, ConcatTrainingDataset, TrainingBatches, concat_sizes
from student.data.samplers import DistributedBatchSampler, ExtraPool, split_batch_size
from student.engine.checkpointing import RunState
from student.engine.loggers import Logger
from student.engine.metrics_log import (
    CANDIDATES,
    MetricsLogger,
    PendingMetrics,
    StepMetrics,
    Throughput,
    non_finite_message,
)
from student.engine.run_inputs import RunInputs
from student.engine.train_step import TrainStep
from student.inference.batch_predictor import BatchPredictor
from student.models.detector import HOIDetector
from student.utils.distributed import Execution
from student.utils.preemption import StopRequest, StopSignalHandler, exit_process
from student.utils.workers import BatchIterator, loader_options

logger = get_logger(__name__)

# Seconds that a stop request waits for the next batch. The step and the checkpoint that follow have
# to fit into the cluster's grace period as well.
SINGLE_PROCESS_STOP_SECONDS, STOP_SECONDS = 3.0, 20.0


class Trainer:
    """Trains a detector; builds matcher, criterion, optimizer, schedule and EMA from a recipe.

    Args:
        inputs: recipe, split and images.
        model: the detector to train.
        run_dir: folder for checkpoints and logs.
        execution: device, processes, workers and accumulation.
        checkpoint_minutes: maximum time between two checkpoints; one is also written after every
            epoch.
        log_every: number of steps between two records of the metrics log.
        plan: see `RunInputs.plan`; stored in the checkpoints.

    Raises:
        InputError: a step has fewer images than there are processes, or none of a dataset.
    """

    def __init__(
        self,
        inputs: RunInputs,
        model: HOIDetector,
        run_dir: Path,
        execution: Execution,
        checkpoint_minutes: float = 15.0,
        log_every: int = 10,
        plan: dict[str, Any] | None = None,
    ) -> None:
        self.recipe, self.run_dir, self.execution = inputs.recipe, run_dir, execution
        self.checkpoint_seconds, self.log_every = 60 * checkpoint_minutes, log_every
        self.validator, self.tester = inputs.validator, inputs.tester
        datasets = [inputs.images, *inputs.extra]
        self.sampler, images_per_step = self._build_sampler(inputs)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.train_step = TrainStep(
            inputs.recipe,
            model,
            inputs.split,
            self.steps_per_epoch,
            execution,
            [dataset.name for dataset in datasets] if inputs.extra else [],
        )
        self.pending_metrics = PendingMetrics(execution.device)
        self.throughput = Throughput(execution.device)
        vocabulary = inputs.images.vocabulary
        self.state = RunState(self.train_step, vocabulary, inputs.split, run_dir, plan or {})
        self.batches = TrainingBatches(
            ConcatTrainingDataset(datasets) if inputs.extra else inputs.images,
            cast(int, model.backbone.size_divisible),
        )
        self.local_batch_size = -(-images_per_step // execution.context.world_size)

    def _build_sampler(self, inputs: RunInputs) -> tuple[DistributedBatchSampler, int]:
        """The sampler of this process's shares of the batches, and the images of a whole batch."""
        train, context, images = self.recipe.train, self.execution.context, inputs.images
        batch_size, pool = train.batch_size, None
        if inputs.extra:
            pool_size = sum(map(len, inputs.extra))
            batch_size, extra_batch_size = split_batch_size(
                train.batch_size, len(images), pool_size, train.extra_ratio
            )
            logger.info(
                f"images per step: {batch_size} of the dataset,"
                f" {extra_batch_size} of extra datasets"
            )
            extra_sizes = partial(concat_sizes, inputs.extra)
            pool = ExtraPool(extra_sizes, pool_size, len(images), extra_batch_size)
        images_per_step = min(batch_size, len(images)) + train.batch_size - batch_size
        if images_per_step < context.world_size:
            raise InputError(
                f"batch_size: expected an image per step for each of {context.world_size}"
                f" processes, found {images_per_step}"
            )
        sampler = DistributedBatchSampler(
            images.sizes,
            len(images),
            train.epochs,
            batch_size,
            train.seed,
            context.rank,
            context.world_size,
            train.last_batch,
            pool,
        )
        return sampler, images_per_step

    def build_loader(self) -> DataLoader[Batch]:
        """Builds a DataLoader of this process's shares of the remaining batches."""
        self.sampler.first_step = self.step
        height, width = self.sampler.max_pad_size()
        context = self.execution.context
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=self.sampler,
            pin_memory=self.execution.device.type == "cuda",
            # A DataLoader draws a seed when iteration starts. With its own generator, this does not
            # change the numbers of dropout in a resumed run.
            generator=torch.Generator(),
            **loader_options(
                self.execution.workers,
                self.local_batch_size * 3 * height * width,
                context.local_world_size,
            ),
        )

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self.state.step

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.steps_per_epoch * self.recipe.train.epochs

    @property
    def is_finished(self) -> bool:
        """Whether no step remains: all are done, or the scores of validations stopped improving."""
        return self.step == self.total_steps or self.is_stopped_early

    @property
    def is_stopped_early(self) -> bool:
        """Whether `patience` validations after the best one have had no better score."""
        train, best = self.recipe.train, self.state.best
        if not train.patience or best is None:
            return False
        patience = train.patience * train.val_every * self.steps_per_epoch
        return self.state.evaluated - best["step"] >= patience

    @property
    def predictor(self) -> BatchPredictor:
        """A predictor with the weights to predict with (with EMA the averaged ones)."""
        return BatchPredictor(self.train_step.eval_model, self.state.vocabulary, self.recipe.train)

    def train(self, signals: StopSignalHandler, loggers: Sequence[Logger] = ()) -> None:
        """Trains from the current step to the end of the run, which `patience` can bring forward.

        Args:
            signals: entered by the caller; a stop request takes effect after the current step,
                when the state has been saved.
            loggers: see `MetricsLogger`.

        Raises:
            KeyboardInterrupt, SystemExit: a stop was requested; see `exit_process`.
            InputError: a loss is not finite, or the disk is full; the last checkpoint is kept.
        """
        context, total = self.execution.context, self.total_steps
        metrics_log = MetricsLogger(self.run_dir, self.step, total, context, loggers)
        with metrics_log as log, signals.defer():
            # A stop can have come before or during an evaluation.
            self._validate_if_due(log, signals)
            self._test_if_due(log, signals)
            self.train_step.model.train()
            if not self.is_finished:
                with BatchIterator(self.build_loader()) as batches:
                    while not self.is_finished:
                        self._run_step(batches, log, signals)
        if self.is_stopped_early and self.step < total and context.is_main_process:
            logger.info(self._early_stop_message())

    def _early_stop_message(self) -> str:
        patience, best = self.recipe.train.patience, self.state.best
        assert best is not None, "a training stops early only after a validation"
        epoch, best_epoch = (step // self.steps_per_epoch for step in (self.step, best["step"]))
        return (
            f"training ended after epoch {epoch} of {self.recipe.train.epochs}:"
            f" {count_noun(patience, 'validations')} without a better score than epoch {best_epoch}"
            f" (seen {100 * best['score']:.2f}), see --patience"
        )

    def _run_step(
        self, batches: Iterator[Batch], log: MetricsLogger, signals: StopSignalHandler
    ) -> None:
        """Runs one step, and the logging, checkpoint, stop and validation due after it."""
        started = time.perf_counter()
        batch = self._next_batch(batches, log, signals)
        resolved = self._train_batch(batch, started)
        log.advance()
        since_saved = time.monotonic() - self.state.saved_at
        is_due = since_saved >= self.checkpoint_seconds
        # All processes have to agree; the clock of the main process decides.
        stop, checkpoint_due = self._check_and_log(
            resolved, log, signals.request, is_due and self.execution.context.is_main_process
        )
        is_epoch_end = self.step % self.steps_per_epoch == 0
        if is_epoch_end or checkpoint_due or stop:
            self._check_and_log(self.pending_metrics.flush(), log)
            self.state.save()
        if stop:
            self._exit(StopRequest(stop))
        if is_epoch_end:
            self._validate_if_due(log, signals)
            self._test_if_due(log, signals)

    def _next_batch(
        self, batches: Iterator[Batch], log: MetricsLogger, signals: StopSignalHandler
    ) -> Batch:
        """Waits for the next batch; a stop request ends the wait after some seconds."""
        is_single = self.execution.context.world_size == 1
        try:
            with signals.defer_for(SINGLE_PROCESS_STOP_SECONDS if is_single else STOP_SECONDS):
                return next(batches)
        except (KeyboardInterrupt, SystemExit):
            if is_single:
                self._check_and_log(self.pending_metrics.flush(), log)
                self.state.save()
            # Several processes save together, and the others are already in the step of this batch.
            self._exit(signals.request)

    def _train_batch(self, batch: Batch, started: float) -> list[StepMetrics]:
        """Trains on a batch; `started` is the time at which the process began to wait for it."""
        waited = time.perf_counter() - started
        with convert_out_of_memory(partial(self._memory_summary, batch)):
            losses = self.train_step(batch.to(self.execution.device))
        self.state.step += 1
        self.throughput.update(len(batch), time.perf_counter() - started, waited)
        logged = self.step % self.log_every == 0 or self.step == self.total_steps
        record = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "images": self.step * self.recipe.train.batch_size,
            **self.train_step.learning_rates,
            CANDIDATES: self.train_step.candidate_counts._asdict(),
        }
        return self.pending_metrics.put(
            self.step,
            batch.image_ids,
            losses,
            {**record, **self.throughput.compute()} if logged else None,
        )

    def _memory_summary(self, batch: Batch) -> str:
        """Settings that determine the memory of a step, for an out-of-memory error."""
        height, width = batch.pixels.shape[-2:]
        total, size = self.recipe.train.batch_size, self.execution.context.world_size
        return (
            f"batch size {total} over {size} processes, {len(batch)} in this one,"
            f" image size {width} x {height}, accumulation {self.execution.accumulation}"
        )

    def _check_and_log(
        self, resolved: Sequence[StepMetrics], log: MetricsLogger, *flags: int
    ) -> list[int]:
        """Checks and logs metrics, and returns the maximum of each flag over all processes.

        Raises:
            InputError: a loss of some process is not finite.
        """
        context = self.execution.context
        bad, *agreed = context.all_reduce_max(
            any(metrics.non_finite for metrics in resolved), *flags
        )
        if bad:
            gathered = context.all_gather(list(resolved))
            raise InputError(non_finite_message([one for share in gathered for one in share]))
        for metrics in resolved:
            if metrics.record is not None:
                log.log_step(metrics)
        return agreed

    def _exit(self, stop: StopRequest) -> NoReturn:
        if stop is StopRequest.REQUEUE and self.execution.context.is_main_process:
            logger.info(
                f"{self.run_dir}: stopped and saved at step {self.step} of {self.total_steps};"
                " the same command resumes the run"
            )
        exit_process(stop)

    def _test_if_due(self, log: MetricsLogger, signals: StopSignalHandler) -> None:
        """Evaluates the test images after the epochs that the caller wants, once per step."""
        epoch, remainder = divmod(self.step, self.steps_per_epoch)
        is_inside = epoch > 0 and not remainder and self.step < self.total_steps
        if self.tester is None or not is_inside or epoch % self.tester.every:
            return
        if log.has_test(self.step):
            return
        drawings = self.run_dir / SAMPLES_FOLDER / f"test-step-{self.step:07d}"
        with self._evaluation(signals):
            scores = self.tester.evaluate(self.predictor, self.execution, drawings)
        log.log_test(self.step, epoch, scores, drawings)

    @contextmanager
    def _evaluation(self, signals: StopSignalHandler) -> Iterator[None]:
        """Within, the model is evaluated, which does not change the training's random numbers.

        The checkpoint of this step is written, so that a signal may end the evaluation.
        """
        device = self.execution.device
        # Without `gpus`, `fork_rng` would initialise all visible GPUs.
        gpus = [device] if device.type == "cuda" else []
        with signals.deliver(), torch.random.fork_rng(gpus):
            yield
        self.train_step.model.train()

    def _validate_if_due(self, log: MetricsLogger, signals: StopSignalHandler) -> None:
        """Validates after the epochs that the recipe names, once per step."""
        train, (epochs, remainder) = self.recipe.train, divmod(self.step, self.steps_per_epoch)
        is_due = epochs == train.epochs or (train.val_every > 0 and epochs % train.val_every == 0)
        is_done = remainder or self.state.evaluated >= self.step
        if self.validator is None or not is_due or is_done:
            return
        drawings = self.run_dir / SAMPLES_FOLDER / f"step-{self.step:07d}"
        with self._evaluation(signals):
            scores = self.validator.evaluate(self.predictor, self.execution, drawings)
        is_best = self.state.record_score(scores.get("seen", 0.0))
        log.log_validation(self.step, epochs, scores, is_best, drawings)
        if is_best and train.keep == "best":
            self.state.save_best()
        self.state.save()
