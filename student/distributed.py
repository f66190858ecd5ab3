"""The processes that train together: who they are, and what they tell each other.

Started by torchrun, or by anything that sets the same variables (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT), as the batch script does under SLURM.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from pipeline.devices import configure_device, resolve_device
from pipeline.errors import InputError

Value = TypeVar("Value")
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
PLACES = ("MASTER_ADDR", "MASTER_PORT")
# Seconds between two looks whether the others are done; signals are answered in between.
POLL = 0.05


@dataclass(frozen=True)
class Team:
    """This process among those of its run; every method but `say` is called by all of them.

    Attributes:
        rank, size: this process's number and how many there are.
        local_rank, local_size: its number among those on its machine, and how many these are.
        control: the group for messages; it runs on the host, so that no message waits for a GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes and prints what all of them have to say."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Prints a line, once for all processes."""
        if self.first:
            print(text, flush=True)

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, self.control)
        return found.tolist()

    def mean(self, values: Tensor) -> Tensor:
        """Values on the host, averaged over all processes."""
        if self.size == 1:
            return values
        found = values.clone()
        distributed.all_reduce(found, group=self.control)
        return found / self.size

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, self.control)
        return found

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, and only that one, for all of them.

        Raises:
            InputError: it could not; in every process.
        """
        if self.size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.first:
            try:
                made[0] = make()
            except InputError as error:
                made[1] = str(error)
        distributed.broadcast_object_list(made, 0, self.control)
        if made[1] is not None:
            raise InputError(made[1])
        return made[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where the body fails for some processes, all of them leave with the first one's reason.

        Raises:
            InputError: what a process said.
        """
        reason = None
        try:
            yield
        except InputError as error:
            reason = str(error)
        reasons = [one for one in self.gather(reason) if one is not None]
        if reasons:
            raise InputError(reasons[0])

    def leave_together(self) -> None:
        """Waits until all processes have called it.

        Raises:
            InputError: another process ended before.
        """
        try:
            waiting = distributed.barrier(self.control, async_op=True)
            while not waiting.is_completed():
                time.sleep(POLL)
            waiting.wait()
        except RuntimeError as error:
            raise InputError(
                f"process {self.rank} of {self.size}: another process of the run ended too early"
                f" ({' '.join(str(error).split())[:160]})"
            ) from None


ALONE = Team()


@contextmanager
def join_team(device: str) -> Iterator[tuple[Team, torch.device]]:
    """Joins the other processes of the run, if it has any, and takes this one's device.

    Where the body does not fail, all processes leave at the same time: a scheduler may end a job
    soon after its first process has ended, while another one still scores.

    Args:
        device: `auto|cpu|cuda[:i]`; among several processes each takes the GPU of its local rank,
            or the only one that it is shown.

    Raises:
        InputError: no such device, a wrong variable, or two processes with one GPU.
    """
    rank, size, local_rank = _variables()
    if size == 1:
        yield ALONE, configure_device(resolve_device(device), "auto")
        return
    # Whoever knows the precision sets it; until then it is where CUDA makes its context.
    own = configure_device(own_device(device, local_rank), "auto")
    on_gpu = own.type == "cuda"
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            rank=rank,
            world_size=size,
            device_id=own if on_gpu else None,
        )
    except distributed.DistBackendError as error:
        # What is wrong stands in the last line, after where NCCL found it.
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"--device: expected a GPU for every process, found {reason}") from None
    try:
        control = distributed.new_group(backend="gloo") if on_gpu else distributed.group.WORLD
        local_size = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        team = Team(rank, size, local_rank, local_size, control)
        yield team, own
        team.leave_together()
    finally:
        distributed.destroy_process_group()


def average_counts(counts: Tensor) -> tuple[Tensor, int]:
    """Counts averaged over processes, in one reduction on their device, and how many these are.

    Sums divided by them average to the whole batch's mean.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return counts, 1
    processes = distributed.get_world_size()
    distributed.all_reduce(counts)
    return counts / processes, processes


def _variables() -> tuple[int, int, int]:
    """Rank, number of processes, local rank."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0
    for name in (*NUMBERS, *PLACES):
        text = os.environ.get(name)
        if not text or (name in NUMBERS and not text.isdecimal()):
            what = "a number" if name in NUMBERS else "the first process's"
            raise InputError(f"{name}: expected {what}, as WORLD_SIZE is set, found {text}")
    rank, size, local_rank = (int(os.environ[name]) for name in NUMBERS)
    return rank, size, local_rank


def own_device(name: str, local_rank: int) -> torch.device:
    """The device of one of several processes on a machine.

    Raises:
        InputError: there is none for it.
    """
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    if ":" in name:
        expected = "auto, cpu or cuda with several processes"
        raise InputError(f"--device: expected {expected}, found {name}")
    gpus = torch.cuda.device_count()
    # Schedulers may show each task nothing but a GPU of its own.
    if gpus == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return device
    if local_rank >= gpus:
        expected = f"a GPU for each of this machine's processes, at least {local_rank + 1}"
        raise InputError(f"--device: expected {expected}, found {gpus}")
    return resolve_device(f"cuda:{local_rank}")
