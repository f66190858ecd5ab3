"""The processes that train together: who they are, and what they tell each other.

Started by torchrun, or by anything that sets the same variables (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT), as the batch script does under SLURM.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from pipeline.utils.devices import configure_device, resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger, only_errors

logger = get_logger(__name__)

Value = TypeVar("Value")
NUMERIC_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
# Seconds for all processes of a run to find each other. The variables may be another job's, left in
# the environment, so nobody waits for long; but where a launcher vouches for the others, a machine
# may be slow to load its programs.
RENDEZVOUS_TIMEOUT, LAUNCHED_TIMEOUT = 20.0, 600.0
# Another time than the first of these, for launchers that start processes minutes apart.
TIMEOUT_VARIABLE = "EOID_JOIN_TIMEOUT"
# How long a process waits for another one's word.
STORE_TIMEOUT = timedelta(minutes=30)
# Seconds between two looks whether the others are done; signals are answered in between.
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class DistContext:
    """This process among those of its run; every method is called by all of them.

    Attributes:
        rank, world_size: this process's number and how many there are.
        local_rank, local_world_size: its number among those on its machine, and how many these are.
        cpu_group: the group for messages; it runs on the host, so that no message waits for a GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    cpu_group: Any = None

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes and prints what all of them have to say."""
        return self.rank == 0

    def all_reduce_max(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if self.world_size == 1:
            return list(values)
        found = torch.tensor(values)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, self.cpu_group)
        return found.tolist()

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Values on the host, averaged over all processes."""
        if self.world_size == 1:
            return values
        found = values.clone()
        distributed.all_reduce(found, group=self.cpu_group)
        return found / self.world_size

    def all_gather(self, value: Value) -> list[Value]:
        """Every process's value, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        distributed.all_gather_object(found, value, self.cpu_group)
        return found

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, and only that one, for all of them.

        Raises:
            InputError: it could not; in every process.
        """
        if self.world_size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.is_main_process:
            try:
                made[0] = make()
            except InputError as error:
                made[1] = str(error)
        distributed.broadcast_object_list(made, 0, self.cpu_group)
        if made[1] is not None:
            raise InputError(made[1])
        return made[0]

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Where the body fails for some processes, all of them leave with the first one's reason.

        Raises:
            InputError: what a process said.
        """
        reason = None
        try:
            yield
        except InputError as error:
            reason = str(error)
        reasons = [one for one in self.all_gather(reason) if one is not None]
        if reasons:
            raise InputError(reasons[0])

    def barrier(self) -> None:
        """Waits until all processes have called it.

        Raises:
            InputError: another process ended before.
        """
        try:
            waiting = distributed.barrier(self.cpu_group, async_op=True)
            while not waiting.is_completed():
                time.sleep(POLL_SECONDS)
            waiting.wait()
        except RuntimeError as error:
            raise self.lost_process_error(error) from None

    def lost_process_error(self, error: RuntimeError) -> InputError:
        """What to say where a message did not reach another process."""
        return InputError(
            f"process {self.rank} of {self.world_size}: another process of the run ended too early"
            f" ({' '.join(str(error).split())[:160]})"
        )


SINGLE_PROCESS = DistContext()


@contextmanager
def init_distributed(device: str) -> Iterator[tuple[DistContext, torch.device]]:
    """Joins the other processes of the run, if it has any, and takes this one's device.

    Where the body does not fail, all processes leave at the same time: a scheduler may end a job
    soon after its first process has ended, while another one still scores.

    Args:
        device: `auto|cpu|cuda[:i]`; among several processes each takes the GPU of its local rank,
            or the only one that it is shown.

    Raises:
        InputError: no such device, a wrong variable, two processes with one GPU, the others do not
            come, or one of them ended before the body did.
    """
    rank, size, local_rank = _read_environment()
    if size == 1:
        yield SINGLE_PROCESS, configure_device(resolve_device(device), "auto")
        return
    told = os.environ.get("LOCAL_WORLD_SIZE") or "1"
    if not told.isdecimal() or not 0 < int(told) <= size:
        expected = f"how many of the {size} processes are on this machine"
        raise InputError(f"LOCAL_WORLD_SIZE: expected {expected}, found {told}")
    local_size = int(told)
    # Whoever knows the precision sets it; until then it is where CUDA makes its context.
    own = configure_device(local_device(device, local_rank), "auto")
    on_gpu = own.type == "cuda"
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_rendezvous(rank, size),
            rank=rank,
            world_size=size,
            device_id=own if on_gpu else None,
        )
    except distributed.DistBackendError as error:
        # What is wrong stands in the last line, after where NCCL found it.
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"--device: expected a GPU for every process, found {reason}") from None
    try:
        cpu_group = distributed.new_group(backend="gloo") if on_gpu else distributed.group.WORLD
        context = DistContext(rank, size, local_rank, local_size, cpu_group)
        try:
            with nullcontext() if context.is_main_process else only_errors():
                yield context, own
        except RuntimeError as error:
            # gloo's errors have no type of their own.
            if isinstance(error, distributed.DistBackendError) or "/gloo/" in str(error):
                raise context.lost_process_error(error) from None
            raise
        context.barrier()
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


def _read_environment() -> tuple[int, int, int]:
    """Rank, number of processes, local rank.

    Raises:
        InputError: a variable is missing or wrong.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        text = os.environ.get(name)
        if not text or (name in NUMERIC_VARIABLES and not text.isdecimal()):
            what = "a number" if name in NUMERIC_VARIABLES else "the first process's"
            raise InputError(f"{name}: expected {what}, as WORLD_SIZE is set, found {text}")
    port = int(os.environ["MASTER_PORT"])
    if not 0 < port < 1 << 16:
        raise InputError(f"MASTER_PORT: expected a port, 1 to 65535, found {port}")
    rank, size, local_rank = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    if rank >= size:
        raise InputError(f"RANK: expected a number below WORLD_SIZE, {size}, found {rank}")
    return rank, size, local_rank


def _rendezvous(rank: int, size: int) -> distributed.Store:
    """The store of the run, in which all its processes have reported.

    Whatever may take long is looked at again and again, so that signals are answered.

    Raises:
        InputError: the others do not come, or there is a second process of this rank.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    # torchrun has a store of its own, which outlives its processes and their restarts.
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    by_slurm = os.environ.get("SLURM_STEP_NUM_TASKS") == str(size)
    began, told = time.monotonic(), False
    patience = os.environ.get(TIMEOUT_VARIABLE) or str(RENDEZVOUS_TIMEOUT)
    if not patience.replace(".", "", 1).isdecimal():
        raise InputError(f"{TIMEOUT_VARIABLE}: expected a number of seconds, found {patience}")
    unvouched = float(patience)

    def wait(limit: float, found: str) -> None:
        nonlocal told
        waited = time.monotonic() - began
        if waited > limit:
            raise InputError(
                f"WORLD_SIZE: expected {size} processes that meet at {place}, found {found} after"
                f" {limit:.0f} seconds; unset WORLD_SIZE and RANK if another job left them behind"
                f" ({TIMEOUT_VARIABLE} waits longer)"
            )
        if waited > RENDEZVOUS_TIMEOUT and not told:
            told = True
            logger.info(f"waiting for {size} processes at {place}: {found}")
        time.sleep(POLL_SECONDS)

    limit, opened = LAUNCHED_TIMEOUT if by_slurm else unvouched, None
    while opened is None:
        try:
            opened = _StoreThread(serve=rank == 0 and not by_agent)
        except OSError as error:
            wait(limit, error.strerror or str(error))
    while opened.is_alive():
        wait(limit, "no answer")
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.PrefixStore(f"eoid/{attempt}", opened.store())
        token = secrets.token_hex(8)
        if store.compare_set(f"process {rank}", "", token).decode() != token:
            raise InputError(f"RANK: expected one process {rank} at {place}, found another one")
        limit = LAUNCHED_TIMEOUT if by_slurm or by_agent else unvouched
        while missing := [one for one in range(size) if not store.check([f"process {one}"])]:
            wait(limit, f"{size - len(missing)}")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        expected = f"the store of {size} processes at {place}"
        raise InputError(f"MASTER_ADDR: expected {expected}, found {reason}") from None
    return store


class _StoreThread(threading.Thread):
    """Opens the store at the address that the variables name.

    A socket is tried first, for the store tells of every failure on its own. What answers there
    need not be a store, and then the thread may never end.

    Raises:
        OSError: nothing is there yet; or with `serve` something is.
    """

    def __init__(self, serve: bool) -> None:
        super().__init__(daemon=True)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with (
            socket.create_server(("", port)) if serve else socket.create_connection((host, port), 2)
        ):
            pass
        self._place = ("localhost" if serve else host, port)
        self._serve = serve
        self._found: distributed.TCPStore | RuntimeError | None = None
        self.start()

    def run(self) -> None:
        timeout = timedelta(seconds=RENDEZVOUS_TIMEOUT)
        try:
            self._found = distributed.TCPStore(
                *self._place, is_master=self._serve, timeout=timeout, wait_for_workers=False
            )
        except RuntimeError as error:
            self._found = error

    def store(self) -> distributed.TCPStore:
        """The store, when the thread has ended.

        Raises:
            RuntimeError: it could not be opened.
        """
        if not isinstance(self._found, distributed.TCPStore):
            raise self._found or RuntimeError("no store")
        self._found.set_timeout(STORE_TIMEOUT)
        return self._found


def local_device(name: str, local_rank: int) -> torch.device:
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


@dataclass(frozen=True)
class Execution:
    """How a run uses its machines; decides nothing about its result but rounding.

    Attributes:
        device: of this process.
        context: the processes of the run.
        workers: processes that prepare samples, for each of these.
        accumulation: parts in which a process works through its share of a batch, to need less
            memory.
        compiled: translate the model with torch.compile.
    """

    device: torch.device
    context: DistContext = SINGLE_PROCESS
    workers: int = 0
    accumulation: int = 1
    compiled: bool = False


def wrap_ddp(model: Any, device: torch.device) -> DistributedDataParallel:
    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    if device.type == "cuda":
        options["device_ids"] = [device]
    # Frozen batch norms never change their buffers. torch 2.13 gave the option another name.
    known = signature(DistributedDataParallel).parameters
    old = "forward_sync_buffers" not in known
    options["broadcast_buffers" if old else "forward_sync_buffers"] = False
    return DistributedDataParallel(model, **options)
