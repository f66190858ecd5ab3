"""One job's share of a cache that several jobs build without knowing of each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import InputError

Item = TypeVar("Item")
VARIABLES = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Share:
    """Every N-th shard from the I-th on, so that all jobs meet easy and hard images alike.

    Attributes:
        index: I, from 0 on.
        count: N.
    """

    index: int
    count: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This job's items."""
        return items[self.index :: self.count]

    @classmethod
    def parse(cls, text: str) -> Share:
        """Reads `I/N`.

        Raises:
            InputError: something else.
        """
        index, _, count = text.partition("/")
        if index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(int(index), int(count))
        raise InputError(f"--array: expected I/N with I from 0 to N-1, found {text}")

    @classmethod
    def of_slurm(cls, environment: Mapping[str, str] = os.environ) -> Share:
        """The share of this job of a SLURM array, whatever its numbers are.

        Raises:
            InputError: this is no such job, or its array has no equal steps.
        """
        texts = {name: environment.get(VARIABLES + name, "") for name in ("ID", "MIN", "COUNT")}
        step = environment.get(f"{VARIABLES}STEP") or "1"
        if not all(text.isdecimal() for text in (*texts.values(), step)) or not int(step):
            raise InputError(
                f"--array: expected I/N or a job of a SLURM array ({VARIABLES}ID, _MIN, _COUNT),"
                " found neither"
            )
        number, first, count = (int(texts[name]) for name in ("ID", "MIN", "COUNT"))
        index, rest = divmod(number - first, int(step))
        if rest or not 0 <= index < count:
            raise InputError(
                f"--array: expected an array of equal steps, such as 0-7, found job {number} of"
                f" {count} from {first} on; give I/N"
            )
        return cls(index, count)
