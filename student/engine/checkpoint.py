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

from evaluation.drawing.samples import SAMPLES_FOLDER
from evaluation.predictions import PREDICTIONS_FILE
from evaluation.report.write import REPORT_FILE
from pipeline.splits import Split
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import (
    atomic_write,
    describe_changes,
    differing_keys,
    read_json,
    write_json,
)
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary
from student.engine.evaluate import RESULTS
from student.engine.metrics_log import EVALUATIONS, METRICS, RANK_LOGS, TENSORBOARD
from student.engine.train_step import TrainStep
from student.utils import seeding
from student.weights.checkpoint_file import (
    BEST,
    CHECKPOINT,
    PREVIOUS,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from student.weights.pretrained import LOAD_REPORT

logger = get_logger(__name__)

STATE_FIELDS = ("step", "generators", "evaluated", "best")


class RunState:
    """A run's position; everything else that a step changes stands in its `TrainStep`.

    Args:
        train_step: what the steps change.
        vocabulary, split: stored with the checkpoints.
        run_dir: folder for them.
        plan: what the run's result depends on, stored too.

    Attributes:
        step: steps done.
        evaluated: the step after which the held-out images were scored last.
        best: score and step of the best of these evaluations.
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
        states = self._context.all_gather(seeding.rng_state(self._device))
        position = {name: getattr(self, name) for name in ("step", "evaluated", "best")}
        state = {**self.train_step.state(), **position, "generators": states, "plan": self.plan}
        self._context.broadcast(lambda: save_latest(self.run_dir, self._checkpoint(state)))
        self.saved_at = time.monotonic()
        logger.debug(f"{self.run_dir}: checkpoint of step {self.step}")

    def save_best(self) -> None:
        """Writes the weights beside the checkpoint, as the best ones."""
        sources = self.plan.get("extra_data", [])
        best = self._checkpoint({"step": self.step, "sources": sources})
        self._context.broadcast(lambda: save_checkpoint(self.run_dir / BEST, best))

    def resume(self, checkpoint: Checkpoint, file: Path) -> None:
        """Goes to where a checkpoint was written.

        Args:
            checkpoint: of a run with the same recipe.
            file: where it comes from, for errors.

        Raises:
            InputError: it holds no training state, or another model's.
        """
        state = checkpoint.state
        missing = [
            name for name in (*STATE_FIELDS, *self.train_step.STATE_FIELDS) if name not in state
        ]
        if missing:
            raise bad_field(file, f"state.{missing[0]}", "the state of a training run", "none")
        try:
            self.train_step.restore(state, checkpoint.weights)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise bad_field(file, "state", "the state of its recipe's training", reason) from None
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
        states = state["generators"]
        if len(states) == self._context.world_size:
            seeding.set_rng_state(states[self._context.rank], self._device)
        else:
            size = self._context.world_size
            said = f"{file}: written by {len(states)} processes, goes on with {size}"
            logger.warning(f"{said}: dropout draws other numbers")
            self._seed_process()

    def _seed_process(self) -> None:
        """Gives this process numbers of its own for dropout; samples draw from their own seeds."""
        seed = self.train_step.recipe.train.seed
        seeding.manual_seed(seed, self._context.rank, self.step)

    def _checkpoint(self, state: dict[str, Any]) -> Checkpoint:
        weights = self.train_step.eval_model.state_dict()
        return Checkpoint(self.train_step.recipe, self.vocabulary, self.split, weights, state)


def save_latest(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Writes a run's checkpoint; the newest so far becomes the one before.

    Raises:
        InputError: the disk does not take it; the older ones are as they were.
    """
    file = run_dir / CHECKPOINT
    try:
        with atomic_write(file) as temporary:
            write_checkpoint(temporary, checkpoint)
            if file.is_file():
                os.replace(file, run_dir / PREVIOUS)
    except (OSError, RuntimeError) as error:
        reason = _os_error_reason(error)
        if reason is None:
            raise
        raise InputError(
            f"{file}: cannot be written ({reason}); {_remaining_line(run_dir)}"
        ) from None


def _os_error_reason(error: BaseException | None) -> str | None:
    """The operating system's reason; torch's writer hides it behind an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return [path for path in (run_dir / CHECKPOINT, run_dir / PREVIOUS) if path.is_file()]


def find_latest_intact(run_dir: Path) -> tuple[Path, str]:
    """The checkpoint that a run can go on from.

    Args:
        run_dir: has written at least one.

    Returns:
        The file, and a line about a newer one that is damaged ("" when there is none).

    Raises:
        InputError: all of them are damaged.
    """
    damage = ""
    for file in list_checkpoints(run_dir):
        try:
            _verify_checksums(file)
            load_checkpoint(file)
        except InputError as error:
            damage = damage or str(error)
        else:
            return file, damage
    raise InputError(damage)


def _verify_checksums(file: Path) -> None:
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


def _remaining_line(run_dir: Path) -> str:
    names = [path.name for path in list_checkpoints(run_dir)]
    return f"{' and '.join(names)} stay as they were" if names else "there is no older one"


CONFIG_FILE, LOCK_FILE, FEW_SHOT_FILE = "config.json", ".lock", "shots.json"
DAMAGED_CHECKPOINT = "checkpoint-damaged.pt"
RUN_FILES = (
    *(CHECKPOINT, PREVIOUS, DAMAGED_CHECKPOINT, BEST, LOAD_REPORT, METRICS, EVALUATIONS),
    *(RESULTS, PREDICTIONS_FILE, REPORT_FILE, FEW_SHOT_FILE),
)
RUN_FOLDERS = (RANK_LOGS, TENSORBOARD, SAMPLES_FOLDER)
RESUME_MODES = AUTO, NEVER = "auto", "never"
# What a run that begins at a checkpoint no longer depends on.
IGNORED_PLAN_KEYS = ("pretrained", "resume")
MAX_CHANGES = 3


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins.

    Attributes:
        checkpoint: the file to go on from; None for the first step.
        message: what to log about it, "" for nothing.
    """

    checkpoint: Path | None
    message: str = ""


@contextmanager
def claim_run_folder(
    run_dir: Path, plan: dict[str, Any], execution: dict[str, Any], overwrite: bool, resume: str
) -> Iterator[ResumePoint]:
    """Makes the folder this run's as long as the body runs, and says where training begins.

    Args:
        run_dir: the folder; made where it is not there.
        plan, overwrite, resume: see `find_resume_point`.
        execution: what else the run was told, for people.

    Raises:
        InputError: it holds other files, another process works in it, or see `find_resume_point`.
    """
    held = run_dir.is_dir() and {path.name for path in run_dir.iterdir()} - {LOCK_FILE}
    if held and CONFIG_FILE not in held and not overwrite:
        raise InputError(f"{run_dir}: expected a new folder or a run, found other files")
    with lock_run_folder(run_dir):
        start = find_resume_point(run_dir, plan, overwrite, resume)
        write_json(run_dir / CONFIG_FILE, {**plan, "execution": execution})
        yield start


@contextmanager
def lock_run_folder(run_dir: Path) -> Iterator[None]:
    """Makes the folder this process's; the system takes the lock back however it ends.

    Raises:
        InputError: another process works in it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            # Unlike flock's, these locks do not pass to worker processes, which outlive a kill
            # by some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"{run_dir}: expected a run that no other process works on, found process {holder}"
            ) from None
        except OSError as error:
            logger.warning(
                f"{run_dir}: nothing keeps a second process out of it here ({error.strerror})"
            )
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def find_resume_point(
    run_dir: Path, plan: dict[str, Any], overwrite: bool, resume: str
) -> ResumePoint:
    """Finds where a run goes on, or clears the folder for it to begin.

    Args:
        run_dir: the folder, locked.
        plan: what the run's result depends on.
        overwrite: replace another run; the same run goes on all the same, so that a command that
            a cluster repeats loses nothing.
        resume: `AUTO` to go on where the folder's run stands; `NEVER` not to; or a checkpoint, or
            another run's folder, to begin from, as long as the run has no checkpoint of its own.

    Raises:
        InputError: the folder holds another run, all its checkpoints are damaged, or the
            checkpoint to begin from belongs to another run.
    """
    for stale in run_dir.glob(".*.tmp"):
        stale.unlink()
    file = run_dir / CONFIG_FILE
    held = read_json(file) if file.is_file() else plan
    found = held.get("format", "none") if isinstance(held, dict) else type(held).__name__
    if found != plan.get("format", "none") and not overwrite:
        raise InputError(
            f"{file}: format: expected {plan['format']}, found {found}; name a new folder or give"
            " --overwrite"
        )
    changed = differing_keys(held, plan)
    if changed and not overwrite:
        raise InputError(
            f"{run_dir}: holds a run with another {' and '.join(changed)}"
            f" ({_describe_changes(held, plan)}); name a new folder or give --overwrite"
        )
    if file.is_file() and not changed and resume == NEVER and not overwrite:
        raise InputError(
            f"{run_dir}: holds this run already; with --resume never,"
            " name a new folder or give --overwrite"
        )
    if is_resumable(run_dir, plan, resume):
        newest, damage = find_latest_intact(run_dir)
        if damage:
            # As the next one's predecessor it would take the place of the one that is whole.
            os.replace(run_dir / CHECKPOINT, run_dir / DAMAGED_CHECKPOINT)
        return ResumePoint(newest, f"{damage}; goes back to {newest.name}" if damage else "")
    begins_from = None if resume in RESUME_MODES else Path(resume)
    if begins_from is not None:
        begins_from = begins_from / CHECKPOINT if begins_from.is_dir() else begins_from
        _check_same_run(begins_from, load_checkpoint(begins_from), plan)
        if begins_from.resolve().parent == run_dir.resolve():
            raise InputError(
                f"--resume: expected a checkpoint outside of {run_dir}, found one in it"
            )
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(run_dir / name, ignore_errors=True)
    file.unlink(missing_ok=True)
    return ResumePoint(begins_from)


def is_resumable(run_dir: Path, plan: dict[str, Any], resume: str) -> bool:
    """Whether a run of this plan has checkpoints to go on from; see `find_resume_point`."""
    file = run_dir / CONFIG_FILE
    held = resume != NEVER and file.is_file() and not differing_keys(read_json(file), plan)
    return held and bool(list_checkpoints(run_dir))


def _describe_changes(held: Any, plan: dict[str, Any]) -> str:
    """What differs, for people: "recipe.targets.topk: 3, now 5", the first few of it."""
    # Some of what stands in the file does not matter.
    old = dict(
        _flat_items({name: held.get(name) for name in plan} if isinstance(held, dict) else {})
    )
    new = dict(_flat_items(plan))
    changed = sorted(name for name in old | new if old.get(name) != new.get(name))[:MAX_CHANGES]
    return describe_changes(*({name: each.get(name) for name in changed} for each in (old, new)))


def _flat_items(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Values by the names that lead to them."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat_items(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def read_plan_entry(run_dir: Path, name: str) -> Any:
    """An entry of the plan of the run in a folder; None where no run has a checkpoint there."""
    file = run_dir / CONFIG_FILE
    return read_json(file).get(name) if file.is_file() and list_checkpoints(run_dir) else None


def _check_same_run(file: Path, checkpoint: Checkpoint, plan: dict[str, Any]) -> None:
    """Raises:
    InputError: the checkpoint's run was to give another result than this one.
    """
    if "plan" not in checkpoint.state:
        raise bad_field(file, "state", "that of a training run", "weights alone")
    held, wanted = (_flatten(value) for value in (checkpoint.state["plan"], plan))
    may_differ = {*IGNORED_PLAN_KEYS}
    # A run may be lengthened, unless its rates depend on its length.
    if wanted.get("recipe.train.schedule") == "step":
        may_differ.add("recipe.train.epochs")
    changed = [name for name in differing_keys(held, wanted) if name not in may_differ]
    if changed:
        raise InputError(
            f"{file}: expected a checkpoint of this run, found one with another"
            f" {' and '.join(changed[:3])}"
        )


def _flatten(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested objects as one, with names like `recipe.train.epochs`."""
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat |= _flatten(entry, f"{before}{name}.")
        else:
            flat[before + name] = entry
    return flat
