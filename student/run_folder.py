"""A run's folder: whose it is, what lies in it, and where its training goes on."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.predictions import PREDICTIONS
from evaluation.report import REPORT
from pipeline.errors import InputError, bad_field
from pipeline.files import differing_keys, read_json, write_json
from student.checkpoints import BEST, CHECKPOINT, PREVIOUS, Checkpoint, load_checkpoint
from student.evaluate import RESULTS
from student.init_report import INIT
from student.metrics import EVALUATIONS, METRICS
from student.pictures import PICTURES
from student.run_log import RANK_LOGS, TENSORBOARD
from student.saving import checkpoints_of, newest_whole
from teacher_cache.format import differing_parts

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
