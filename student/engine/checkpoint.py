"""Where a training run stands, and how it gets there again."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.drawing.samples import PICTURES
from evaluation.predictions import PREDICTIONS
from evaluation.report.write import REPORT
from pipeline.splits import Split
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import differing_keys, differing_parts, read_json, replacing, write_json
from pipeline.vocabulary import Vocabulary
from student.engine.evaluate import RESULTS
from student.engine.metrics_log import EVALUATIONS, METRICS, RANK_LOGS, TENSORBOARD
from student.engine.train_step import Stepper
from student.utils import seeding as generators
from student.weights.checkpoint_file import (
    BEST,
    CHECKPOINT,
    PREVIOUS,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from student.weights.pretrained import INIT

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


def save_newest(run: Path, checkpoint: Checkpoint) -> None:
    """Writes a run's checkpoint; the newest so far becomes the one before.

    Raises:
        InputError: the disk does not take it; the older ones are as they were.
    """
    file = run / CHECKPOINT
    try:
        with replacing(file) as temporary:
            write_checkpoint(temporary, checkpoint)
            if file.is_file():
                os.replace(file, run / PREVIOUS)
    except (OSError, RuntimeError) as error:
        reason = _system_reason(error)
        if reason is None:
            raise
        raise InputError(f"{file}: cannot be written ({reason}); {_left(run)}") from None


def _system_reason(error: BaseException | None) -> str | None:
    """The operating system's reason; torch's writer hides it behind an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return [path for path in (run / CHECKPOINT, run / PREVIOUS) if path.is_file()]


def newest_whole(run: Path) -> tuple[Path, str]:
    """The checkpoint that a run can go on from.

    Args:
        run: has written at least one.

    Returns:
        The file, and a line about a newer one that is damaged ("" when there is none).

    Raises:
        InputError: all of them are damaged.
    """
    damage = ""
    for file in checkpoints_of(run):
        try:
            _check_content(file)
            load_checkpoint(file)
        except InputError as error:
            damage = damage or str(error)
        else:
            return file, damage
    raise InputError(damage)


def _check_content(file: Path) -> None:
    """Compares every part of a checkpoint with its checksum, which torch does not when loading.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{file}: expected a torch checkpoint, found {error}") from None
    if damaged is not None:
        raise InputError(f"{file}: expected a whole checkpoint, found damage in {damaged}")


def _left(run: Path) -> str:
    names = [path.name for path in checkpoints_of(run)]
    return f"{' and '.join(names)} stay as they were" if names else "there is no older one"


CONFIG, LOCK, SHOTS = "config.json", ".lock", "shots.json"
DAMAGED = "checkpoint-damaged.pt"
FILES = (
    *(CHECKPOINT, PREVIOUS, DAMAGED, BEST, INIT, METRICS, EVALUATIONS),
    *(RESULTS, PREDICTIONS, REPORT, SHOTS),
)
FOLDERS = (RANK_LOGS, TENSORBOARD, PICTURES)
WAYS = AUTO, NEVER = "auto", "never"
# What a run that begins at a checkpoint no longer depends on.
MAY_DIFFER = ("init", "resume")
MOST_CHANGES = 3


@dataclass(frozen=True)
class Start:
    """Where training begins.

    Attributes:
        checkpoint: the file to go on from; None for the first step.
        line: what to tell about it, "" for nothing.
    """

    checkpoint: Path | None
    line: str = ""


@contextmanager
def claimed(
    run: Path, plan: dict[str, Any], execution: dict[str, Any], overwrite: bool, resume: str
) -> Iterator[Start]:
    """Makes the folder this run's as long as the body runs, and says where training begins.

    Args:
        run: the folder; made where it is not there.
        plan, overwrite, resume: see `find_start`.
        execution: what else the run was told, for people.

    Raises:
        InputError: it holds other files, another process works in it, or see `find_start`.
    """
    held = run.is_dir() and {path.name for path in run.iterdir()} - {LOCK}
    if held and CONFIG not in held and not overwrite:
        raise InputError(f"{run}: expected a new folder or a run, found other files")
    with locked(run):
        start = find_start(run, plan, overwrite, resume)
        write_json(run / CONFIG, {**plan, "execution": execution})
        yield start


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Makes the folder this process's; the system takes the lock back however it ends.

    Raises:
        InputError: another process works in it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / LOCK, "a+", encoding="utf-8") as file:
        try:
            # Unlike flock's, these locks do not pass to worker processes, which outlive a kill
            # by some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"{run}: expected a run that no other process works on, found process {holder}"
            ) from None
        except OSError as error:
            print(f"{run}: nothing keeps a second process out of it here ({error.strerror})")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def find_start(run: Path, plan: dict[str, Any], overwrite: bool, resume: str) -> Start:
    """Finds where a run goes on, or clears the folder for it to begin.

    Args:
        run: the folder, locked.
        plan: what the run's result depends on.
        overwrite: replace another run; the same run goes on all the same, so that a command that
            a cluster repeats loses nothing.
        resume: `AUTO` to go on where the folder's run stands; `NEVER` not to; or a checkpoint, or
            another run's folder, to begin from, as long as the run has no checkpoint of its own.

    Raises:
        InputError: the folder holds another run, all its checkpoints are damaged, or the
            checkpoint to begin from belongs to another run.
    """
    for stale in run.glob(".*.tmp"):
        stale.unlink()
    file = run / CONFIG
    held = read_json(file) if file.is_file() else plan
    changed = differing_keys(held, plan)
    if changed and not overwrite:
        raise InputError(
            f"{run}: holds a run with another {' and '.join(changed)} ({_changes(held, plan)});"
            " name a new folder or give --overwrite"
        )
    if file.is_file() and not changed and resume == NEVER and not overwrite:
        raise InputError(
            f"{run}: holds this run already; with --resume never,"
            " name a new folder or give --overwrite"
        )
    if goes_on(run, plan, resume):
        newest, damage = newest_whole(run)
        if damage:
            # As the next one's predecessor it would take the place of the one that is whole.
            os.replace(run / CHECKPOINT, run / DAMAGED)
        return Start(newest, f"{damage}; goes back to {newest.name}" if damage else "")
    begins_from = None if resume in WAYS else Path(resume)
    if begins_from is not None:
        begins_from = begins_from / CHECKPOINT if begins_from.is_dir() else begins_from
        _check_same_run(begins_from, load_checkpoint(begins_from), plan)
        if begins_from.resolve().parent == run.resolve():
            raise InputError(f"--resume: expected a checkpoint outside of {run}, found one in it")
    for name in FILES:
        (run / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    file.unlink(missing_ok=True)
    return Start(begins_from)


def goes_on(run: Path, plan: dict[str, Any], resume: str) -> bool:
    """Whether a run of this plan has checkpoints of its own to go on from; see `find_start`."""
    file = run / CONFIG
    held = resume != NEVER and file.is_file() and not differing_keys(read_json(file), plan)
    return held and bool(checkpoints_of(run))


def _changes(held: Any, plan: dict[str, Any]) -> str:
    """What differs, for people: "recipe.targets.topk: 3, now 5", the first few of it."""
    # Some of what stands in the file does not matter.
    old = dict(_leaves({name: held.get(name) for name in plan} if isinstance(held, dict) else {}))
    new = dict(_leaves(plan))
    changed = sorted(name for name in old | new if old.get(name) != new.get(name))[:MOST_CHANGES]
    return differing_parts(*({name: each.get(name) for name in changed} for each in (old, new)))


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Values by the names that lead to them."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def recorded(run: Path, name: str) -> Any:
    """An entry of the plan of the run in a folder; None where no run has a checkpoint there."""
    file = run / CONFIG
    return read_json(file).get(name) if file.is_file() and checkpoints_of(run) else None


def _check_same_run(file: Path, checkpoint: Checkpoint, plan: dict[str, Any]) -> None:
    """Raises:
    InputError: the checkpoint's run was to give another result than this one.
    """
    if "plan" not in checkpoint.state:
        raise bad_field(file, "state", "that of a training run", "weights alone")
    held, wanted = (_flat(value) for value in (checkpoint.state["plan"], plan))
    may_differ = {*MAY_DIFFER}
    # A run may be lengthened, unless its rates depend on its length.
    if wanted.get("recipe.train.schedule") == "step":
        may_differ.add("recipe.train.epochs")
    changed = [name for name in differing_keys(held, wanted) if name not in may_differ]
    if changed:
        raise InputError(
            f"{file}: expected a checkpoint of this run, found one with another"
            f" {' and '.join(changed[:3])}"
        )


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested objects as one, with names like `recipe.train.epochs`."""
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat |= _flat(entry, f"{before}{name}.")
        else:
            flat[before + name] = entry
    return flat
