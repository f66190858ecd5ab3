"""Phase two: the training loop."""

from __future__ import annotations

import sys
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
from pipeline.utils.devices import out_of_memory_line
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.config import Recipe
from student.data.dataset import (
    Batch,
    ImagesOfSources,
    TrainingBatches,
    TrainingImages,
    sizes_of_all,
)
from student.data.samplers import Pool, StepSampler, shares
from student.engine.checkpoint import RunState
from student.engine.metrics_log import Pace, Reading, Readings, RunLog, not_finite
from student.engine.train_step import Stepper
from student.engine.validation import HeldOut
from student.inference.predict import Predictor
from student.models.detector import HOIDetector
from student.utils.distributed import Execution
from student.utils.preemption import Stop, StopSignals, leave
from student.utils.workers import Batches, loader_options

# Bytes of a batch by those of its pixels.
WITH_TARGETS = 1.25
# Seconds that a request to stop waits for the next batch, after which a step and a checkpoint come.
PATIENCE_ALONE, PATIENCE = 3.0, 20.0


@dataclass(frozen=True)
class Upkeep:
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
        run: folder for checkpoints and logs.
        execution: how the machines are used.
        upkeep: checkpoints and logs.
        held_out: training images to evaluate on, None for none.
        extra: images of further sources.

    Raises:
        InputError: a step has fewer images than there are processes, or none for a source.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: HOIDetector,
        images: TrainingImages,
        vocabulary: Vocabulary,
        split: Split,
        run: Path,
        execution: Execution,
        upkeep: Upkeep | None = None,
        held_out: HeldOut | None = None,
        extra: Sequence[TrainingImages] = (),
    ) -> None:
        train, team = recipe.train, execution.team
        self.recipe, self.run, self.execution = recipe, run, execution
        self.upkeep, self.held_out = upkeep or Upkeep(), held_out
        sources = [images, *extra]
        # Headers of all images are read by one process for all.
        for source in sources:
            source.image_sizes = team.from_first(partial(getattr, source, "image_sizes"))
        own, pool = train.batch_size, None
        if extra:
            pool_size = sum(map(len, extra))
            own, others = shares(train.batch_size, len(images), pool_size, train.mix)
            team.say(f"every step: {own} images of the dataset, {others} of further sources")
            pool = Pool(partial(sizes_of_all, extra), pool_size, len(images), others)
        images_a_step = min(own, len(images)) + train.batch_size - own
        if images_a_step < team.size:
            raise InputError(
                f"batch_size: expected an image a step for each of {team.size} processes,"
                f" found {images_a_step}"
            )
        self.sampler = StepSampler(
            images.sizes,
            len(images),
            train.epochs,
            own,
            train.seed,
            team.rank,
            team.size,
            train.last_batch,
            pool,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        # Convolutions are quicker on channels-last maps, on CPUs and GPUs alike.
        model = model.to(execution.device).to(memory_format=torch.channels_last)
        asked = torch.from_numpy(split.asked_verbs)
        names = [source.name for source in sources] if extra else []
        self.stepper = Stepper(recipe, model, asked, self.steps_per_epoch, execution, names)
        self.readings, self.pace = Readings(execution.device), Pace(execution.device)
        self.state = RunState(self.stepper, vocabulary, split, run, self.upkeep.plan)
        self.batches = TrainingBatches(
            ImagesOfSources(sources) if extra else images,
            cast(int, model.backbone.side_multiple),
        )
        self.share = -(-images_a_step // team.size)

    def loader(self) -> DataLoader[Batch]:
        """Gives this process's share of the steps, from where the run stands."""
        self.sampler.first_step = self.step
        height, width = self.sampler.largest_frame()
        team = self.execution.team
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=self.sampler,
            pin_memory=self.execution.device.type == "cuda",
            # Iterating draws a number: from here, so that dropout goes on as if never stopped.
            generator=torch.Generator(),
            **loader_options(
                self.execution.workers,
                round(WITH_TARGETS * self.share * 3 * height * width),
                team.say,
                team.local_size,
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
    def predictor(self) -> Predictor:
        """The detector whose weights predict."""
        train = self.recipe.train
        model, vocabulary = self.stepper.predictor, self.state.vocabulary
        return Predictor(model, vocabulary, train.augmentation, train.precision)

    def train(self, signals: StopSignals) -> None:
        """Trains from where the run stands to its end.

        Args:
            signals: entered by the caller; a request takes effect after the running step, when
                the state is saved.

        Raises:
            KeyboardInterrupt, SystemExit: asked to stop; see `signals.leave`.
            InputError: a loss is not finite, or the disk is full; the last good checkpoint stays.
        """
        team = self.execution.team
        with ExitStack() as stack:
            log = stack.enter_context(
                RunLog(self.run, self.step, self.total_steps, team, self.upkeep.tensorboard)
            )
            stack.enter_context(signals.held())
            self._evaluate_if_due(log, signals)
            self.stepper.model.train()
            with Batches(self.loader()) as batches:
                while self.step < self.total_steps:
                    self._advance(batches, log, signals)

    def _advance(self, batches: Iterator[Batch], log: RunLog, signals: StopSignals) -> None:
        """One step and what is due after it."""
        started = time.perf_counter()
        batch = self._next(batches, log, signals)
        readings = self._step(batch, started)
        log.advance()
        late = time.monotonic() - self.state.saved_at >= 60 * self.upkeep.checkpoint_minutes
        stop, timed = self._settle(readings, log, signals.asked, late and self.execution.team.first)
        ended = self.step % self.steps_per_epoch == 0
        if ended or timed or stop:
            self._settle(self.readings.rest(), log)
            self.state.save()
        if stop:
            self._leave(Stop(stop))
        if ended:
            self._evaluate_if_due(log, signals)

    def _next(self, batches: Iterator[Batch], log: RunLog, signals: StopSignals) -> Batch:
        """The next batch. A worker may hang: a request to stop does not wait for it for long."""
        alone = self.execution.team.size == 1
        try:
            with signals.held_for(PATIENCE_ALONE if alone else PATIENCE):
                return next(batches)
        except (KeyboardInterrupt, SystemExit):
            if alone:
                self._settle(self.readings.rest(), log)
                self.state.save()
            # Several save together, and the others are at work on the step that lacks this batch.
            self._leave(signals.asked)

    def _step(self, batch: Batch, started: float) -> list[Reading]:
        """Takes the step of a batch that was waited for since `started`."""
        waited = time.perf_counter() - started
        with out_of_memory_line(partial(self._work, batch)):
            losses = self.stepper(batch.to(self.execution.device))
        self.state.step += 1
        self.pace.add(len(batch), time.perf_counter() - started, waited)
        logged = self.step % self.upkeep.log_every == 0 or self.step == self.total_steps
        record = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "images": self.step * self.recipe.train.batch_size,
            "lr": self.stepper.rate,
        }
        return self.readings.put(
            self.step, batch.image_ids, losses, {**record, **self.pace.take()} if logged else None
        )

    def _work(self, batch: Batch) -> str:
        """What a step's memory goes into."""
        height, width = batch.pixels.shape[-2:]
        total, size = self.recipe.train.batch_size, self.execution.team.size
        return (
            f"batch size {total} over {size} processes, {len(batch)} in this one,"
            f" image size {width} x {height}, accumulation {self.execution.accumulation}"
        )

    def _settle(self, readings: Sequence[Reading], log: RunLog, *flags: int) -> list[int]:
        """Checks and logs readings; gives the largest of each flag over all processes.

        Raises:
            InputError: for some process a loss is not finite.
        """
        team = self.execution.team
        bad, *agreed = team.largest(any(one.not_finite for one in readings), *flags)
        if bad:
            found = [one for group in team.gather(list(readings)) for one in group]
            raise InputError(not_finite(found))
        for reading in readings:
            if reading.record is not None:
                log.write(reading)
        return agreed

    def _leave(self, stop: Stop) -> NoReturn:
        if stop is Stop.REQUEUE and self.execution.team.first:
            print(
                f"{self.run}: told to stop, saved at step {self.step} of {self.total_steps};"
                " the same command goes on from here",
                file=sys.stderr,
                flush=True,
            )
        leave(stop)

    def _evaluate_if_due(self, log: RunLog, signals: StopSignals) -> None:
        """Scores the held-out images where the recipe wants it and it was not done yet."""
        train, (epochs, begun) = self.recipe.train, divmod(self.step, self.steps_per_epoch)
        is_due = epochs == train.epochs or (
            train.evaluate_every > 0 and epochs % train.evaluate_every == 0
        )
        done = begun or self.state.evaluated >= self.step
        if self.held_out is None or not is_due or done:
            return
        # What is scored is saved, so nothing is lost when a signal ends this. No other process's
        # GPU is touched.
        device = self.execution.device
        gpus = [device] if device.type == "cuda" else []
        with signals.released(), torch.random.fork_rng(gpus):
            score = self.held_out.evaluate(self.predictor, self.run, self.step, self.execution)
        self.stepper.model.train()
        is_best = self.state.take_score(score.choice)
        log.evaluated(self.step, epochs, score.metrics, is_best)
        if is_best and train.keep == "best":
            self.state.save_best()
        self.state.save()
