"""Where a training run stands, and how it gets there again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipeline.errors import bad_field
from pipeline.splits import Split
from pipeline.vocabulary import Vocabulary
from student import generators
from student.checkpoints import BEST, Checkpoint, save_checkpoint
from student.saving import save_newest
from student.step import Stepper

FIELDS = ("step", "generators", "evaluated", "best")


class RunState:
    """A run's position; everything else that a step changes stands in its `Stepper`.

    Args:
        stepper: what the steps change.
        vocabulary, split: stored with the checkpoints.
        run: folder for them.
        plan: what the run's result depends on, stored too.

    Attributes:
        step: steps done.
        evaluated: the step after which the held-out images were scored last.
        best: score and step of the best of these evaluations.
        saved_at: `time.monotonic()` at the last checkpoint, or at the start.
    """

    def __init__(
        self,
        stepper: Stepper,
        vocabulary: Vocabulary,
        split: Split,
        run: Path,
        plan: dict[str, Any],
    ) -> None:
        self.stepper, self.run = stepper, run
        self.vocabulary, self.split, self.plan = vocabulary, split, plan
        self.step, self.evaluated = 0, 0
        self.best: dict[str, Any] | None = None
        self.saved_at = time.monotonic()
        self._team, self._device = stepper.execution.team, stepper.execution.device
        if not self._team.first:
            self._seed_process()

    def take_score(self, score: float) -> bool:
        """Notes the score of the held-out images; True where it is the best so far."""
        self.evaluated = self.step
        is_best = self.best is None or score > self.best["score"]
        if is_best:
            self.best = {"score": score, "step": self.step}
        return is_best

    def save(self) -> None:
        """Writes the run's checkpoint.

        Raises:
            InputError: the disk does not take it.
        """
        states = self._team.gather(generators.capture(self._device))
        position = {name: getattr(self, name) for name in ("step", "evaluated", "best")}
        state = {**self.stepper.state(), **position, "generators": states, "plan": self.plan}
        self._team.from_first(lambda: save_newest(self.run, self._checkpoint(state)))
        self.saved_at = time.monotonic()

    def save_best(self) -> None:
        """Writes the weights beside the checkpoint, as the best ones."""
        sources = self.plan.get("extra", [])
        best = self._checkpoint({"step": self.step, "sources": sources})
        self._team.from_first(lambda: save_checkpoint(self.run / BEST, best))

    def resume(self, checkpoint: Checkpoint, file: Path) -> None:
        """Goes to where a checkpoint was written.

        Args:
            checkpoint: of a run with the same recipe.
            file: where it comes from, for errors.

        Raises:
            InputError: it holds no training state, or another model's.
        """
        state = checkpoint.state
        missing = [name for name in (*FIELDS, *self.stepper.FIELDS) if name not in state]
        if missing:
            raise bad_field(file, f"state.{missing[0]}", "the state of a training run", "none")
        try:
            self.stepper.restore(state, checkpoint.weights)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise bad_field(file, "state", "the state of its recipe's training", reason) from None
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
        states = state["generators"]
        if len(states) == self._team.size:
            generators.restore(states[self._team.rank], self._device)
        else:
            said = f"{file}: written by {len(states)} processes, goes on with {self._team.size}"
            self._team.say(f"{said}: dropout draws other numbers")
            self._seed_process()

    def _seed_process(self) -> None:
        """Gives this process numbers of its own for dropout; samples draw from their own seeds."""
        seed = self.stepper.recipe.train.seed
        generators.seed(seed, self._team.rank, self.step)

    def _checkpoint(self, state: dict[str, Any]) -> Checkpoint:
        weights = self.stepper.predictor.state_dict()
        return Checkpoint(self.stepper.recipe, self.vocabulary, self.split, weights, state)
