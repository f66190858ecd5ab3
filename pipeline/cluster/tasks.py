"""The tasks of a command or of one job of an array, and the order in which they are done.

The jobs of an array share a folder without a scheduler, and nobody claims a shard. A job does its
own share first and then shards of other jobs that are still missing, so that a slow or lost job
holds nobody up. Two jobs may make the same shard: it has equal bytes and appears at once, so that
only time is lost.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from pipeline.utils.text import count_noun

logger = get_logger(__name__)

Item = TypeVar("Item")
ARRAY_PREFIX = "SLURM_ARRAY_TASK_"
# Seconds between the starts of an array's jobs, and between the first and the last one at most.
START_INTERVAL, MAX_START_DELAY = 1.0, 30.0


class Task(Protocol):
    """The work on one shard. Tasks are sent to workers, so they hold paths instead of models."""

    @property
    def name(self) -> str:
        """The shard's name in messages."""

    def __len__(self) -> int:
        """Number of images."""

    def absolute(self: TaskType) -> TaskType:
        """The same task with absolute paths, for processes with other working folders."""


TaskType = TypeVar("TaskType", bound=Task)


@dataclass(frozen=True)
class ArrayShare:
    """A job's share of the shards: every `count`-th one, starting with number `index`.

    Interleaved shares take about equally long, even if images at the end of a dataset have more
    pairs than those at its beginning.

    Attributes:
        index, count: the job's number, from 0 on, and the number of jobs.
        own_only: the job ends after its share and leaves missing shards to the other jobs, which
            may work in folders of their own.
    """

    index: int
    count: int
    own_only: bool = False

    def __str__(self) -> str:
        return f"job {self.index}/{self.count} of an array"

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        return items[self.index :: self.count]

    def start_delay(self) -> float:
        """Seconds to wait before the job starts, so that not all of them load models at once."""
        return self.index * min(START_INTERVAL, MAX_START_DELAY / self.count)

    @classmethod
    def parse(cls, text: str) -> ArrayShare:
        """Parses `I/N`.

        Raises:
            InputError: the text has another form, or I is not below N.
        """
        numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if numbers and int(numbers[1]) < int(numbers[2]):
            return cls(int(numbers[1]), int(numbers[2]))
        raise InputError(f"--array: expected I/N with I from 0 to N-1, found {text}")

    @classmethod
    def from_slurm(cls, environment: Mapping[str, str] = os.environ) -> ArrayShare:
        """The share of this job of a SLURM array, whose numbers may start anywhere.

        Raises:
            InputError: this is not a job of an array, or the array's numbers have unequal steps.
        """
        texts = {name: environment.get(ARRAY_PREFIX + name, "") for name in ("ID", "MIN", "COUNT")}
        step = environment.get(f"{ARRAY_PREFIX}STEP") or "1"
        if not all(text.isdecimal() for text in (*texts.values(), step)) or not int(step):
            raise InputError(
                f"--array: expected I/N or a job of a SLURM array ({ARRAY_PREFIX}ID, _MIN, _COUNT),"
                " found neither"
            )
        number, first, count = (int(texts[name]) for name in ("ID", "MIN", "COUNT"))
        index, rest = divmod(number - first, int(step))
        if rest or not 0 <= index < count:
            raise InputError(
                f"--array: expected an array of equal steps, such as 0-7, found job {number} of"
                f" {count} from {first} on; give I/N instead"
            )
        return cls(index, count)


@dataclass(frozen=True)
class Postponed:
    """Result of a task that was not done; `task` is to be done once no other task is left."""

    task: Any
    reason: str = ""


class TaskQueue(Generic[TaskType]):
    """Hands out the tasks of a command, or of one job of an array, by their numbers.

    Unfinished tasks of the job's share come first. Then the job takes over tasks of other jobs that
    are still missing, and looks for them again before each one. A slow job is at the near end of
    its share, so the list begins with the last task; job I of N takes the task at (2 I + 1) / (2 N)
    of the list's length, so that two jobs seldom make the same shard before the list is short.
    Where all shards take equally long and one of the jobs is ten times slower, this is at most one
    shard slower than the best distribution; in an order that is shuffled for each job, it would be
    two to four. Postponed tasks come last, in the same order.

    Args:
        tasks: all tasks of the output folder, in their order.
        is_finished: whether the shard of a task is finished.
        share: the job's share; None for a command that does all tasks.

    Attributes:
        tasks: see above; a postponed task takes the place of the original.
        pending, finished: the tasks of the share that were not finished before, and the others.
        records: results of the tasks that were done.
        total, done: numbers of images of the share, and of its finished tasks.
    """

    def __init__(
        self,
        tasks: Sequence[TaskType],
        is_finished: Callable[[TaskType], bool],
        share: ArrayShare | None = None,
    ) -> None:
        self.tasks, self.records = list(tasks), list[Any]()
        self._is_finished, self._share = is_finished, share or ArrayShare(0, 1)
        rows = range(len(tasks))
        own = self._share.select(rows)
        self._own = deque(self._missing(own))
        self.pending = [self.tasks[row] for row in self._own]
        self.finished = [self.tasks[row] for row in sorted(set(own).difference(self._own))]
        self._others = [] if self._share.own_only else sorted(set(rows) - set(own), reverse=True)
        if not self._own:
            self._others = self._missing(self._others)
        # Tasks of other jobs that this job has taken over; and those that have to be done again.
        self._taken, self._postponed = set[int](), list[int]()
        self.total, self.done = self._count(own), sum(map(len, self.finished))

    def __len__(self) -> int:
        """Number of tasks that may be left beside those that are handed out."""
        return len(self._own) + len(self._others) + len(self._postponed)

    def pop(self, progress: Progress) -> int | None:
        """The number of the next task, or None.

        `progress` counts images of the tasks that the job has to do and of those among them that it
        finds finished.
        """
        while self._own:
            row = self._own.popleft()
            if self._missing([row]):
                return row
            progress.update(len(self.tasks[row]))
        known = self._others
        self._others = self._missing(known)
        progress.update(self._count(self._taken.intersection(known).difference(self._others)))
        if self._others:
            if not self._taken:
                logger.info(
                    "this job's share is finished; making"
                    f" {count_noun(len(self._others), 'shards')} of other jobs that are missing"
                )
            place = (2 * self._share.index + 1) * len(self._others) // (2 * self._share.count)
            row = self._others.pop(place)
            if row not in self._taken:
                self._taken.add(row)
                progress.extend(len(self.tasks[row]))
            return row
        if not self._postponed:
            return None
        again, self._postponed = sorted(self._postponed), []
        self._own.extend(row for row in again if row not in self._taken)
        self._others = [row for row in reversed(again) if row in self._taken]
        return self.pop(progress)

    def put(self, row: int, result: Any) -> bool:
        """Takes the result of a task; returns False for one that is `Postponed`."""
        if isinstance(result, Postponed):
            self.tasks[row] = result.task
            self._postponed.append(row)
            logger.debug(f"{result.task.name}: is made later: {result.reason}")
            return False
        self.records.append(result)
        # Messages of worker processes do not reach this command's logger.
        logger.debug(str(result))
        return True

    def report(self, folder: Path) -> None:
        """Logs what this job of an array did beside its share, and what another job did too."""
        repeated = sum(record.repeated for record in self.records)
        if self._taken or repeated:
            logger.info(
                f"{folder}: this job made {count_noun(len(self.records), 'shards')},"
                f" {len(self._taken)} of them of other jobs; {repeated} were made by another job at"
                " the same time"
            )

    def _missing(self, rows: Iterable[int]) -> list[int]:
        return [row for row in rows if not self._is_finished(self.tasks[row])]

    def _count(self, rows: Iterable[int]) -> int:
        return sum(len(self.tasks[row]) for row in rows)
