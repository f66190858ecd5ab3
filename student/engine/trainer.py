"""Phase two: the training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch.utils.data import DataLoader

from pipeline.splits import Split
from pipeline.utils.devices import convert_out_of_memory
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary
from student.config import Recipe
from student.data.dataset import (
    Batch,
    ConcatTrainingDataset,
    TrainingBatches,
    TrainingDataset,
    concat_sizes,
)
from student.data.samplers import DistributedBatchSampler, ExtraPool, split_batch_size
from student.engine.checkpoint import RunState
from student.engine.metrics_log import (
    MetricsLogger,
    PendingMetrics,
    StepMetrics,
    Throughput,
    non_finite_message,
)
from student.engine.optimizer import ModelEMA, build_optimizer, build_schedule
from student.engine.train_step import TrainStep
from student.engine.validation import Validator
from student.inference.predict import BatchPredictor
from student.losses.criterion import Criterion
from student.losses.matcher import TwoStageMatcher
from student.models.detector import HOIDetector
from student.utils.distributed import Execution
from student.utils.preemption import StopRequest, StopSignalHandler, exit_process
from student.utils.workers import BatchIterator, loader_options

logger = get_logger(__name__)

# Bytes of a batch by those of its pixels.
TARGETS_FACTOR = 1.25
# Seconds that a request to stop waits for the next batch, after which a step and a checkpoint come.
SINGLE_PROCESS_STOP_SECONDS, STOP_SECONDS = 3.0, 20.0


@dataclass(frozen=True)
class LoggingConfig:
    """What a run does beside training.

    Attributes:
        checkpoint_minutes: longest time between two checkpoints; one is written after every
            epoch too.
        log_every: steps between two lines of the log.
        tensorboard: also log for TensorBoard.
        plan: what the run's result depends on, kept with its checkpoints.
    """

    checkpoint_minutes: float = 15.0
    log_every: int = 10
    tensorboard: bool = False
    plan: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """One training run: where it stands, and how it goes on.

    Args:
        recipe: all settings.
        model: the detector to train.
        images: where samples come from.
        vocabulary, split: stored with the checkpoints.
        run_dir: folder for checkpoints and logs.
        execution: how the machines are used.
        logging_config: checkpoints and logs.
        validator: training images to evaluate on, None for none.
        extra: images of further sources.

    Raises:
        InputError: a step has fewer images than there are processes, or none for a source.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: HOIDetector,
        images: TrainingDataset,
        vocabulary: Vocabulary,
        split: Split,
        run_dir: Path,
        execution: Execution,
        logging_config: LoggingConfig | None = None,
        validator: Validator | None = None,
        extra: Sequence[TrainingDataset] = (),
    ) -> None:
        train, context = recipe.train, execution.context
        self.recipe, self.run_dir, self.execution = recipe, run_dir, execution
        self.logging_config, self.validator = logging_config or LoggingConfig(), validator
        sources = [images, *extra]
        # Headers of all images are read by one process for all.
        for source in sources:
            source.image_sizes = context.broadcast(partial(getattr, source, "image_sizes"))
        own, pool = train.batch_size, None
        if extra:
            pool_size = sum(map(len, extra))
            own, others = split_batch_size(
                train.batch_size, len(images), pool_size, train.extra_ratio
            )
            logger.info(f"every step: {own} images of the dataset, {others} of further sources")
            pool = ExtraPool(partial(concat_sizes, extra), pool_size, len(images), others)
        images_a_step = min(own, len(images)) + train.batch_size - own
        if images_a_step < context.world_size:
            raise InputError(
                f"batch_size: expected an image a step for each of {context.world_size} processes,"
                f" found {images_a_step}"
            )
        self.sampler = DistributedBatchSampler(
            images.sizes,
            len(images),
            train.epochs,
            own,
            train.seed,
            context.rank,
            context.world_size,
            train.last_batch,
            pool,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        # Convolutions are quicker on channels-last maps, on CPUs and GPUs alike.
        model = model.to(execution.device).to(memory_format=torch.channels_last)
        distilled_verbs = torch.from_numpy(split.distilled_verbs).to(execution.device)
        matcher = TwoStageMatcher(recipe.matcher, distilled_verbs)
        optimizer = build_optimizer(model, train, execution.device)
        self.train_step = TrainStep(
            recipe,
            model,
            Criterion(matcher, recipe.losses),
            optimizer,
            build_schedule(optimizer, train, self.steps_per_epoch),
            execution,
            ModelEMA(model, train.ema) if train.ema else None,
            [source.name for source in sources] if extra else [],
        )
        self.pending_metrics, self.throughput = (
            PendingMetrics(execution.device),
            Throughput(execution.device),
        )
        self.state = RunState(self.train_step, vocabulary, split, run_dir, self.logging_config.plan)
        self.batches = TrainingBatches(
            ConcatTrainingDataset(sources) if extra else images,
            cast(int, model.backbone.size_divisible),
        )
        self.local_batch_size = -(-images_a_step // context.world_size)

    def build_loader(self) -> DataLoader[Batch]:
        """Gives this process's share of the steps, from where the run stands."""
        self.sampler.first_step = self.step
        height, width = self.sampler.max_pad_size()
        context = self.execution.context
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=self.sampler,
            pin_memory=self.execution.device.type == "cuda",
            # Iterating draws a number: from here, so that dropout goes on as if never stopped.
            generator=torch.Generator(),
            **loader_options(
                self.execution.workers,
                round(TARGETS_FACTOR * self.local_batch_size * 3 * height * width),
                context.local_world_size,
            ),
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.recipe.train.epochs

    @property
    def predictor(self) -> BatchPredictor:
        """The detector whose weights predict."""
        train = self.recipe.train
        model, vocabulary = self.train_step.eval_model, self.state.vocabulary
        return BatchPredictor(model, vocabulary, train.augmentation, train.precision)

    def train(self, signals: StopSignalHandler) -> None:
        """Trains from where the run stands to its end.

        Args:
            signals: entered by the caller; a request takes effect after the running step, when
                the state is saved.

        Raises:
            KeyboardInterrupt, SystemExit: asked to stop; see `exit_process`.
            InputError: a loss is not finite, or the disk is full; the last good checkpoint stays.
        """
        context = self.execution.context
        with ExitStack() as stack:
            log = stack.enter_context(
                MetricsLogger(
                    self.run_dir,
                    self.step,
                    self.total_steps,
                    context,
                    self.logging_config.tensorboard,
                )
            )
            stack.enter_context(signals.defer())
            self._validate_if_due(log, signals)
            self.train_step.model.train()
            with BatchIterator(self.build_loader()) as batches:
                while self.step < self.total_steps:
                    self._run_step(batches, log, signals)

    def _run_step(
        self, batches: Iterator[Batch], log: MetricsLogger, signals: StopSignalHandler
    ) -> None:
        """One step and what is due after it."""
        started = time.perf_counter()
        batch = self._next_batch(batches, log, signals)
        resolved = self._train_batch(batch, started)
        log.advance()
        late = time.monotonic() - self.state.saved_at >= 60 * self.logging_config.checkpoint_minutes
        stop, timed = self._check_and_log(
            resolved, log, signals.request, late and self.execution.context.is_main_process
        )
        ended = self.step % self.steps_per_epoch == 0
        if ended or timed or stop:
            self._check_and_log(self.pending_metrics.flush(), log)
            self.state.save()
        if stop:
            self._exit(StopRequest(stop))
        if ended:
            self._validate_if_due(log, signals)

    def _next_batch(
        self, batches: Iterator[Batch], log: MetricsLogger, signals: StopSignalHandler
    ) -> Batch:
        """The next batch. A worker may hang: a request to stop does not wait for it for long."""
        alone = self.execution.context.world_size == 1
        try:
            with signals.defer_for(SINGLE_PROCESS_STOP_SECONDS if alone else STOP_SECONDS):
                return next(batches)
        except (KeyboardInterrupt, SystemExit):
            if alone:
                self._check_and_log(self.pending_metrics.flush(), log)
                self.state.save()
            # Several save together, and the others are at work on the step that lacks this batch.
            self._exit(signals.request)

    def _train_batch(self, batch: Batch, started: float) -> list[StepMetrics]:
        """Takes the step of a batch that was waited for since `started`."""
        waited = time.perf_counter() - started
        with convert_out_of_memory(partial(self._memory_summary, batch)):
            losses = self.train_step(batch.to(self.execution.device))
        self.state.step += 1
        self.throughput.update(len(batch), time.perf_counter() - started, waited)
        logged = self.step % self.logging_config.log_every == 0 or self.step == self.total_steps
        record = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "images": self.step * self.recipe.train.batch_size,
            "lr": self.train_step.lr,
        }
        return self.pending_metrics.put(
            self.step,
            batch.image_ids,
            losses,
            {**record, **self.throughput.compute()} if logged else None,
        )

    def _memory_summary(self, batch: Batch) -> str:
        """What a step's memory goes into."""
        height, width = batch.pixels.shape[-2:]
        total, size = self.recipe.train.batch_size, self.execution.context.world_size
        return (
            f"batch size {total} over {size} processes, {len(batch)} in this one,"
            f" image size {width} x {height}, accumulation {self.execution.accumulation}"
        )

    def _check_and_log(
        self, resolved: Sequence[StepMetrics], log: MetricsLogger, *flags: int
    ) -> list[int]:
        """Checks and logs metrics; gives the largest of each flag over all processes.

        Raises:
            InputError: for some process a loss is not finite.
        """
        context = self.execution.context
        bad, *agreed = context.all_reduce_max(any(one.non_finite for one in resolved), *flags)
        if bad:
            found = [one for group in context.all_gather(list(resolved)) for one in group]
            raise InputError(non_finite_message(found))
        for metrics in resolved:
            if metrics.record is not None:
                log.log_step(metrics)
        return agreed

    def _exit(self, stop: StopRequest) -> NoReturn:
        if stop is StopRequest.REQUEUE and self.execution.context.is_main_process:
            logger.info(
                f"{self.run_dir}: told to stop, saved at step {self.step} of {self.total_steps};"
                " the same command goes on from here"
            )
        exit_process(stop)

    def _validate_if_due(self, log: MetricsLogger, signals: StopSignalHandler) -> None:
        """Scores the held-out images where the recipe wants it and it was not done yet."""
        train, (epochs, begun) = self.recipe.train, divmod(self.step, self.steps_per_epoch)
        is_due = epochs == train.epochs or (train.val_every > 0 and epochs % train.val_every == 0)
        done = begun or self.state.evaluated >= self.step
        if self.validator is None or not is_due or done:
            return
        # What is scored is saved, so nothing is lost when a signal ends this. No other process's
        # GPU is touched.
        device = self.execution.device
        gpus = [device] if device.type == "cuda" else []
        with signals.deliver(), torch.random.fork_rng(gpus):
            score = self.validator.evaluate(self.predictor, self.run_dir, self.step, self.execution)
        self.train_step.model.train()
        is_best = self.state.record_score(score.monitored)
        log.log_validation(self.step, epochs, score.metrics, is_best)
        if is_best and train.keep == "best":
            self.state.save_best()
        self.state.save()
