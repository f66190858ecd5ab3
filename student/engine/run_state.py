"""`RunState`, the position of a training run, saved in its checkpoints and restored from them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipeline.splits import Split
from pipeline.utils.errors import bad_field
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary
from student.engine.run_folder import save_latest
from student.engine.train_step import TrainStep
from student.utils import seeding
from student.weights.checkpoint_file import BEST, Checkpoint, save_checkpoint

logger = get_logger(__name__)

STATE_FIELDS = ("step", "generators", "evaluated", "best")


class RunState:
    """Position of a run, and saving and restoring of its checkpoints.

    All other state that a step changes is in its `TrainStep`.

    Args:
        train_step: model, optimizer, schedule and EMA.
        vocabulary, split, plan: stored in the checkpoints.
        run_dir: folder of the checkpoints.

    Attributes:
        step: number of steps done.
        evaluated: step of the last validation.
        best: score and step of the best validation; None before the first.
        saved_at: `time.monotonic()` at the last checkpoint, or at the start.
    """

    def __init__(
        self,
        train_step: TrainStep,
        vocabulary: Vocabulary,
        split: Split,
        run_dir: Path,
        plan: dict[str, Any],
    ) -> None:
        self.train_step, self.run_dir = train_step, run_dir
        self.vocabulary, self.split, self.plan = vocabulary, split, plan
        self.step, self.evaluated = 0, 0
        self.best: dict[str, Any] | None = None
        self.saved_at = time.monotonic()
        self._context, self._device = train_step.execution.context, train_step.execution.device
        if not self._context.is_main_process:
            self._seed_process()

    def record_score(self, score: float) -> bool:
        """Records the score of a validation; returns whether it is the best so far."""
        self.evaluated = self.step
        is_best = self.best is None or score > self.best["score"]
        if is_best:
            self.best = {"score": score, "step": self.step}
        return is_best

    def save(self) -> None:
        """Writes the run's checkpoint; to be called by all processes.

        Raises:
            InputError: the file cannot be written.
        """
        states = self._context.all_gather(seeding.rng_state(self._device))
        position = {name: getattr(self, name) for name in ("step", "evaluated", "best")}
        state = {**self.train_step.state(), **position, "generators": states, "plan": self.plan}
        self._context.broadcast(lambda: save_latest(self.run_dir, self._checkpoint(state)))
        self.saved_at = time.monotonic()
        logger.debug(f"{self.run_dir}: checkpoint of step {self.step}")

    def save_best(self) -> None:
        """Writes the current weights as the best checkpoint."""
        sources = self.plan.get("extra_data", [])
        best = self._checkpoint({"step": self.step, "sources": sources})
        self._context.broadcast(lambda: save_checkpoint(self.run_dir / BEST, best))

    def resume(self, checkpoint: Checkpoint, file: Path) -> None:
        """Restores the state of a checkpoint of a run with the same recipe.

        Raises:
            InputError: the checkpoint has no training state, or that of another model.
        """
        state = checkpoint.state
        for name in (*STATE_FIELDS, *self.train_step.STATE_FIELDS):
            if name not in state:
                raise bad_field(file, f"state.{name}", "the state of a training run", "none")
        try:
            self.train_step.restore(state, checkpoint.weights)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise bad_field(file, "state", "the state of its recipe's training", reason) from None
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
        states, size = state["generators"], self._context.world_size
        if len(states) == size:
            seeding.set_rng_state(states[self._context.rank], self._device)
        else:
            logger.warning(
                f"{file}: written by {len(states)} processes, resumed with {size}:"
                " dropout draws other random numbers"
            )
            self._seed_process()

    def _seed_process(self) -> None:
        """Seeds dropout differently in each process; samples are seeded by epoch and index."""
        seed = self.train_step.recipe.train.seed
        seeding.manual_seed(seed, self._context.rank, self.step)

    def _checkpoint(self, state: dict[str, Any]) -> Checkpoint:
        weights = self.train_step.eval_model.state_dict()
        return Checkpoint(self.train_step.recipe, self.vocabulary, self.split, weights, state)
