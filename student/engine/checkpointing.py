"""The run folder: locking, the last two checkpoints, and the state that they save and restore.

A run keeps its last two checkpoints. `config.json` holds everything that determines the result, so
that a run is only resumed by a command that would give the same one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.drawing.samples import SAMPLES_FOLDER
from evaluation.predictions import PREDICTIONS_FILE
from evaluation.report.write import REPORT_FILE
from evaluation.results import RESULTS_FILE
from pipeline.splits import Split
from pipeline.utils.config_fields import list_settings
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import (
    atomic_write,
    differing_keys,
    read_json,
    shorten_value,
    write_json,
)
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary
from student.config import RECIPE_PARTS
from student.engine.loggers import TENSORBOARD, WANDB, WANDB_ID
from student.engine.metrics_log import EVALUATIONS, METRICS, RANK_LOGS, TESTS
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

CONFIG_FILE, LOCK_FILE, FEW_SHOT_FILE = "config.json", ".lock", "shots.json"
DAMAGED_CHECKPOINT = "checkpoint-damaged.pt"
RUN_FILES = (
    *(CHECKPOINT, PREVIOUS, DAMAGED_CHECKPOINT, BEST, LOAD_REPORT, METRICS, EVALUATIONS, TESTS),
    *(RESULTS_FILE, PREDICTIONS_FILE, REPORT_FILE, FEW_SHOT_FILE, WANDB_ID),
)
RUN_FOLDERS = (RANK_LOGS, TENSORBOARD, WANDB, SAMPLES_FOLDER)
RESUME_MODES = AUTO, NEVER = "auto", "never"
# Entries of the plan that do not matter when a run starts from another run's checkpoint.
IGNORED_PLAN_KEYS = ("pretrained", "backbone_weights", "resume")
# Options that set the entries of the plan outside of the recipe.
PLAN_OPTIONS = {
    "dataset": "--data",
    "cache": "--cache",
    "extra_data": "--extra-data",
    "limit": "--limit",
    "split.name": "--split",
    "split.unseen": "--split",
    "split.distilled_verbs": "--distill-verbs",
    "pretrained": "--pretrained",
    "backbone_weights": "--backbone-weights",
    "resume": "--resume",
}
# Maximum number of differences in an error message.
MAX_CHANGES = 3


def save_latest(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Writes a run's checkpoint and keeps the latest one as the previous one.

    Raises:
        InputError: the file cannot be written; the older checkpoints are unchanged.
    """
    file = run_dir / CHECKPOINT
    try:
        with atomic_write(file) as temporary:
            write_checkpoint(temporary, checkpoint)
            if file.is_file():
                os.replace(file, run_dir / PREVIOUS)
    except (OSError, RuntimeError) as error:
        # torch's writer raises errors of its own after the operating system's.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise InputError(
            f"{file}: cannot be written ({cause.strerror}); older checkpoints are unchanged"
        ) from None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, latest first."""
    return [path for path in (run_dir / CHECKPOINT, run_dir / PREVIOUS) if path.is_file()]


def find_latest_intact(run_dir: Path) -> tuple[Path, str]:
    """The latest undamaged checkpoint of a run that has one.

    Returns:
        The file, and the error message of a damaged later one ("" without).

    Raises:
        InputError: all checkpoints are damaged.
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
    """Verifies the checksums in a checkpoint, which torch ignores when loading."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{file}: expected a torch checkpoint, found {error}") from None
    if damaged is not None:
        raise InputError(f"{file}: expected a whole checkpoint, found damage in {damaged}")


@contextmanager
def claim_run_folder(
    run_dir: Path, plan: dict[str, Any], execution: dict[str, Any], overwrite: bool, resume: str
) -> Iterator[Path | None]:
    """Locks a run folder while the body runs, and prepares it for this run.

    `config.json` gets the plan and the `execution` settings, which do not change the result.

    Yields:
        The result of `find_resume_point`.

    Raises:
        InputError: the folder contains files that are not a run's, another process uses it, or an
            error of `find_resume_point`.
    """
    names = run_dir.is_dir() and {path.name for path in run_dir.iterdir()} - {LOCK_FILE}
    if names and CONFIG_FILE not in names and not overwrite:
        raise InputError(f"{run_dir}: expected a new folder or a run folder, found other files")
    with lock_run_folder(run_dir):
        start = find_resume_point(run_dir, plan, overwrite, resume)
        write_json(run_dir / CONFIG_FILE, {**plan, "execution": execution})
        yield start


@contextmanager
def lock_run_folder(run_dir: Path) -> Iterator[None]:
    """Locks a folder for this process; the system releases the lock however the process ends.

    A new folder is removed if the body fails before it writes more than the configuration.

    Raises:
        InputError: another process has the lock.
    """
    is_new = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            # Unlike locks of `flock`, these are not inherited by DataLoader workers, which may
            # outlive a killed process by some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"{run_dir}: expected a run that no other process is using, found process {holder}"
            ) from None
        except OSError as error:
            logger.warning(
                f"{run_dir}: cannot be locked ({error.strerror}); do not start another run in it"
            )
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        except BaseException:
            # Listing needs a file descriptor, which may be what the body lacked.
            with suppress(OSError):
                files = {path.name for path in run_dir.iterdir()}
                if is_new and files <= {LOCK_FILE, CONFIG_FILE}:
                    shutil.rmtree(run_dir)
            raise


def find_resume_point(
    run_dir: Path, plan: dict[str, Any], overwrite: bool, resume: str
) -> Path | None:
    """Finds the checkpoint to resume, or clears the folder for a new run.

    Args:
        run_dir: the run folder, locked.
        plan: everything that determines the run's result.
        overwrite: replace another run. A run with the same plan is resumed nevertheless, so that a
            command repeated by a cluster loses nothing.
        resume: `AUTO` resumes the folder's run; `NEVER` does not; a checkpoint or another run's
            folder is continued unless the folder's run already has a checkpoint.

    Returns:
        The checkpoint; None starts at the first step.

    Raises:
        InputError: the folder contains another run, all its checkpoints are damaged, or the
            checkpoint to continue is of a run with another plan or lacks its best checkpoint.
    """
    for stale in run_dir.glob(".*.tmp"):
        stale.unlink()
    file = run_dir / CONFIG_FILE
    if file.is_file() and not overwrite:
        _refuse_other_run(file, plan, resume)
    if is_resumable(run_dir, plan, resume):
        latest, damage = find_latest_intact(run_dir)
        if damage:
            # The next save would keep the damaged file as the previous checkpoint and remove the
            # undamaged one.
            os.replace(run_dir / CHECKPOINT, run_dir / DAMAGED_CHECKPOINT)
            logger.warning(f"{damage}; resuming {latest.name}")
        return latest
    source = None if resume in RESUME_MODES else Path(resume)
    best = None
    if source is not None:
        source = source / CHECKPOINT if source.is_dir() else source
        checkpoint = load_checkpoint(source)
        _check_same_plan(source, checkpoint, plan)
        best = _find_best(source, checkpoint)
        if source.resolve().parent == run_dir.resolve():
            raise InputError(f"--resume: expected a checkpoint outside {run_dir}, found one in it")
    for name in RUN_FILES:
        (run_dir / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(run_dir / name, ignore_errors=True)
    file.unlink(missing_ok=True)
    if best is not None:
        with atomic_write(run_dir / BEST) as temporary:
            shutil.copyfile(best, temporary)
    return source


def _find_best(source: Path, checkpoint: Checkpoint) -> Path | None:
    """The best checkpoint of the run of a checkpoint, which the run that continues it may end with.

    Returns:
        The file; None if the run does not keep the best weights, or has no validation yet.

    Raises:
        InputError: the file is missing, or of another step.
    """
    best = checkpoint.state.get("best")
    if checkpoint.recipe.train.keep != "best" or best is None:
        return None
    file = source.with_name(BEST)
    found = load_checkpoint(file).state.get("step") if file.is_file() else "no such file"
    if found != best["step"]:
        raise InputError(
            f"{file}: expected the best checkpoint of {source}, of step {best['step']}, found"
            f" {found}"
        )
    return file


def _refuse_other_run(file: Path, plan: dict[str, Any], resume: str) -> None:
    """Raises:
    InputError: the folder's run has another format or plan, or is not to be resumed.
    """
    advice = "choose a new folder or give --overwrite"
    held = add_default_settings(read_json(file))
    found = held.get("format", "none") if isinstance(held, dict) else type(held).__name__
    if found != plan["format"]:
        raise InputError(f"{file}: format: expected {plan['format']}, found {found}; {advice}")
    # Entries outside the plan, such as "execution", do not matter.
    if changes := _describe_changes({name: held.get(name) for name in plan}, plan):
        raise InputError(
            f"{file.parent}: expected a run with the same settings, found others ({changes});"
            f" {advice}"
        )
    if resume == NEVER:
        expected = "expected a new folder with --resume never"
        raise InputError(f"{file.parent}: {expected}, found this run; {advice}")


def is_resumable(run_dir: Path, plan: dict[str, Any], resume: str) -> bool:
    """Whether the folder has a run of this plan with checkpoints; see `find_resume_point`."""
    file = run_dir / CONFIG_FILE
    if resume == NEVER or not file.is_file():
        return False
    if differing_keys(add_default_settings(read_json(file)), plan):
        return False
    return bool(list_checkpoints(run_dir))


def add_default_settings(plan: Any) -> Any:
    """A run's plan with the defaults of settings that did not exist when the run was started.

    A new setting's default leaves everything as it was, so that such a run can be resumed.
    """
    recipe = plan.get("recipe") if isinstance(plan, dict) else None
    if not isinstance(recipe, dict):
        return plan
    full = {
        part: {**asdict(config()), **recipe[part]}
        for part, config in RECIPE_PARTS.items()
        if isinstance(recipe.get(part), dict)
    }
    return {**plan, "recipe": {**recipe, **full}}


def read_plan_entry(run_dir: Path, name: str) -> Any:
    """An entry of the plan of a folder's run; None if the folder has no run with checkpoints."""
    file = run_dir / CONFIG_FILE
    return read_json(file).get(name) if file.is_file() and list_checkpoints(run_dir) else None


def _check_same_plan(file: Path, checkpoint: Checkpoint, plan: dict[str, Any]) -> None:
    """Checks that a checkpoint's run would have given the same result."""
    if "plan" not in checkpoint.state:
        raise bad_field(file, "state", "that of a training run", "weights alone")
    # Patience says when a run ends, but changes none of its steps.
    ignored = {*IGNORED_PLAN_KEYS, "recipe.train.patience"}
    # A run can be continued with more epochs, unless the learning rate depends on their number.
    if plan["recipe"]["train"]["schedule"] == "step":
        ignored.add("recipe.train.epochs")
    held = add_default_settings(checkpoint.state["plan"])
    if changes := _describe_changes(held, plan, ignored):
        raise InputError(
            f"{file}: expected a checkpoint of a run with the same settings, found others"
            f" ({changes})"
        )


def _describe_changes(
    held: dict[str, Any], wanted: dict[str, Any], ignored: Collection[str] = ()
) -> str:
    """Differences of two plans in one line, by the options that set them; empty without any."""
    options = {
        f"recipe.{part}.{name}": f"--{(described.option or name).replace('_', '-')}"
        for part, config in RECIPE_PARTS.items()
        for name, (described, _) in list_settings(config).items()
    } | PLAN_OPTIONS
    old, new = _flatten(held), _flatten(wanted)
    names = [name for name in old | new if old.get(name) != new.get(name) and name not in ignored]
    # Other entries follow from options.
    changes: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name not in options):
        change = f"{shorten_value(old.get(name))}, now {shorten_value(new.get(name))}"
        changes.setdefault(options.get(name, name), change)
    lines = [f"{option}: {change}" for option, change in changes.items()]
    more = len(lines) - MAX_CHANGES
    return "; ".join(lines[:MAX_CHANGES] + ([f"and {more} more"] if more > 0 else []))


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with keys such as `recipe.train.epochs`."""
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat |= _flatten(entry, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry
    return flat


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
        sources, limit = self.plan.get("extra_data", []), self.plan.get("limit")
        best = self._checkpoint({"step": self.step, "sources": sources, "limit": limit})
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
