"""Distributed training and prediction: process groups, collectives, errors, and device placement.

Processes are started by torchrun, or by any launcher that sets the same variables (RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), such as the SLURM batch script `train.sbatch`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
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
# Seconds in which all processes of a run have to join. The variables may be left over from another
# job, so that the first limit is short. The second one holds where a launcher guarantees that the
# other processes exist, since machines may be slow to load programs.
RENDEZVOUS_TIMEOUT, LAUNCHED_TIMEOUT = 20.0, 600.0
# Environment variable that replaces the first limit, for launchers that start processes slowly.
TIMEOUT_VARIABLE = "EOID_JOIN_TIMEOUT"
# Timeout of messages between processes.
STORE_TIMEOUT = timedelta(minutes=30)
# Interval of polling, in seconds; between two polls Python handles signals.
POLL_SECONDS = 0.05
# Until torch 2.8 a process group waits for gloo's threads while it holds the GIL, which they need
# to release the tensors of the last operation (pytorch/pytorch#154976). They have this time before.
RELEASE_SECONDS = 0.2


@dataclass(frozen=True)
class DistContext:
    """A process of a run and its collective operations, which all processes have to call.

    Attributes:
        rank, world_size: index of the process, and number of processes.
        local_rank, local_world_size: the same among the processes on its machine.
        cpu_group: gloo process group for messages; on the CPU, so that they do not wait for a GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    cpu_group: Any = None

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and logs (rank 0)."""
        return self.rank == 0

    def all_reduce_max(self, *values: int) -> list[int]:
        """The maximum of each value over all processes."""
        if self.world_size == 1:
            return list(values)
        reduced = torch.tensor(values)
        distributed.all_reduce(reduced, distributed.ReduceOp.MAX, self.cpu_group)
        return reduced.tolist()

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """The mean of a CPU tensor over all processes."""
        if self.world_size == 1:
            return values
        summed = values.clone()
        distributed.all_reduce(summed, group=self.cpu_group)
        return summed / self.world_size

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        distributed.all_gather_object(gathered, value, self.cpu_group)
        return gathered

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """Calls `make` in the main process and returns its result, or raises its `InputError`, in
        all processes.
        """
        value: Any = None
        with self.propagate_errors():
            if self.is_main_process:
                value = make()
        return self.all_gather(value)[0]

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Raises an `InputError` of the body in all processes; of several the one of the lowest
        rank.

        Without this, processes that did not fail would wait for the others in the next collective
        operation until its timeout.
        """
        reason = None
        try:
            yield
        except InputError as error:
            reason = str(error)
        reasons = [each for each in self.all_gather(reason) if each is not None]
        if reasons:
            raise InputError(reasons[0])

    def barrier(self) -> None:
        """Waits until all processes have called it; an `InputError` if another process has
        ended.
        """
        try:
            work = distributed.barrier(self.cpu_group, async_op=True)
            # A blocking wait would not let Python handle signals.
            while not work.is_completed():
                time.sleep(POLL_SECONDS)
            work.wait()
        except RuntimeError as error:
            raise self.lost_process_error(error) from None

    def lost_process_error(self, error: RuntimeError) -> InputError:
        """The error to raise where a collective operation failed because another process ended."""
        return InputError(
            f"process {self.rank} of {self.world_size}: another process of the run ended too early"
            f" ({' '.join(str(error).split())[:160]})"
        )


SINGLE_PROCESS = DistContext()


@contextmanager
def init_distributed(device: str) -> Iterator[tuple[DistContext, torch.device]]:
    """Initialises the process group, if there are several processes, and chooses the device.

    Unless the body fails, all processes leave together: schedulers may end a job soon after its
    first process has ended, while another one is still working.

    Args:
        device: `auto|cpu|cuda[:i]`; of several processes each takes the GPU of its local rank, or
            the only GPU visible to it.

    Yields:
        The context and the device of this process.

    Raises:
        InputError: the device does not exist, a variable is missing or invalid, two processes
            share a GPU, the other processes do not join, or one of them ends during the body.
    """
    rank, size, local_rank, local_size = _read_environment()
    if size == 1:
        yield SINGLE_PROCESS, configure_device(resolve_device(device), "auto")
        return
    # Sets the current CUDA device before NCCL creates a context; the caller sets the precision.
    local = configure_device(local_device(device, local_rank), "auto")
    on_gpu = local.type == "cuda"
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_rendezvous(rank, size),
            rank=rank,
            world_size=size,
            device_id=local if on_gpu else None,
        )
    except distributed.DistBackendError as error:
        # The last line names the cause, after NCCL's source lines.
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"--device: expected a GPU for every process, found {reason}") from None
    try:
        cpu_group = distributed.new_group(backend="gloo") if on_gpu else distributed.group.WORLD
        context = DistContext(rank, size, local_rank, local_size, cpu_group)
        try:
            with nullcontext() if context.is_main_process else only_errors():
                yield context, local
        except RuntimeError as error:
            # gloo raises plain RuntimeErrors, with its source path in the message.
            if isinstance(error, distributed.DistBackendError) or "/gloo/" in str(error):
                raise context.lost_process_error(error) from None
            raise
        context.barrier()
    finally:
        time.sleep(RELEASE_SECONDS)
        distributed.destroy_process_group()


def average_counts(counts: Tensor) -> tuple[Tensor, int]:
    """Averages counts over all processes, in one reduction on their device.

    Sums of a process's share divided by these counts average, over processes, to the mean of the
    whole batch, as DDP averages gradients.

    Returns:
        The averaged counts, and the number of processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return counts, 1
    processes = distributed.get_world_size()
    distributed.all_reduce(counts)
    return counts / processes, processes


def _read_environment() -> tuple[int, int, int, int]:
    """Rank, number of processes, and the same among the processes on this machine.

    Raises:
        InputError: a variable is missing or invalid.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0, 1
    size = _read_variable("WORLD_SIZE", 1)
    rank, local_rank = (_read_variable(name, 0, size - 1) for name in ("RANK", "LOCAL_RANK"))
    local_size = _read_variable("LOCAL_WORLD_SIZE", 1, size, default="1")
    if not os.environ.get("MASTER_ADDR"):
        expected = "the address of the first process, as WORLD_SIZE is set"
        raise InputError(f"MASTER_ADDR: expected {expected}, found none")
    _read_variable("MASTER_PORT", 1, (1 << 16) - 1)
    return rank, size, local_rank, local_size


def _read_variable(name: str, low: int, high: int | None = None, default: str = "") -> int:
    text = os.environ.get(name) or default
    if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
        expected = f"a number from {low}" + ("" if high is None else f" to {high}")
        raise InputError(
            f"{name}: expected {expected}, as WORLD_SIZE is set, found {text or 'none'}"
        )
    return int(text)


def _rendezvous(rank: int, size: int) -> distributed.Store:
    """Opens the store of the run and waits until all processes have joined.

    Every wait polls, so that Python can handle signals.

    Raises:
        InputError: processes are missing at the time limit, or two have the same rank.
    """
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    timeout_text = os.environ.get(TIMEOUT_VARIABLE) or str(RENDEZVOUS_TIMEOUT)
    if not timeout_text.replace(".", "", 1).isdecimal():
        raise InputError(f"{TIMEOUT_VARIABLE}: expected a number of seconds, found {timeout_text}")
    # torchrun's agent hosts the store, which exists before the processes and persists over their
    # restarts.
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    by_slurm = os.environ.get("SLURM_STEP_NUM_TASKS") == str(size)
    start, is_logged = time.monotonic(), False

    def wait(limit: float, found: str) -> None:
        nonlocal is_logged
        waited = time.monotonic() - start
        if waited > limit:
            raise InputError(
                f"WORLD_SIZE: expected {size} processes to join at {address}, found {found} after"
                f" {limit:.0f} seconds; unset WORLD_SIZE and RANK if they are left over from"
                f" another job, or set {TIMEOUT_VARIABLE} to wait longer"
            )
        if waited > RENDEZVOUS_TIMEOUT and not is_logged:
            is_logged = True
            logger.info(f"waiting for {size} processes at {address}: {found}")
        time.sleep(POLL_SECONDS)

    opened: list[distributed.TCPStore | RuntimeError] = []
    serve = rank == 0 and not by_agent
    # If something else than a store is at the address, the thread may never end.
    threading.Thread(target=_open_store, args=(serve, opened), daemon=True).start()
    limit = LAUNCHED_TIMEOUT if by_slurm else float(timeout_text)
    while not opened:
        wait(limit, "no answer")
    if isinstance(opened[0], RuntimeError):
        expected = f"the store of {size} processes at {address}"
        reason = str(opened[0]).strip().splitlines()[0]
        raise InputError(f"MASTER_ADDR: expected {expected}, found {reason}")
    opened[0].set_timeout(STORE_TIMEOUT)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = distributed.PrefixStore(f"eoid/{attempt}", opened[0])
    if store.add(f"process {rank}", 1) > 1:
        raise InputError(f"RANK: expected one process {rank} at {address}, found two")
    limit = LAUNCHED_TIMEOUT if by_agent else limit
    while missing := [other for other in range(size) if not store.check([f"process {other}"])]:
        wait(limit, f"{size - len(missing)}")
    return store


def _open_store(serve: bool, opened: list[distributed.TCPStore | RuntimeError]) -> None:
    """Opens the store at MASTER_ADDR:MASTER_PORT; appends it, or an error, to `opened`.

    The address is tested with a plain socket first, since the store itself logs every failure.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    test = socket.create_server if serve else partial(socket.create_connection, timeout=2)
    while True:
        try:
            test(("" if serve else host, port)).close()
            break
        # Nothing listens at the address, or with `serve`, the port is in use.
        except OSError:
            time.sleep(POLL_SECONDS)
    try:
        opened.append(
            distributed.TCPStore(
                "localhost" if serve else host,
                port,
                is_master=serve,
                timeout=timedelta(seconds=RENDEZVOUS_TIMEOUT),
                wait_for_workers=False,
            )
        )
    except RuntimeError as error:
        opened.append(error)


def local_device(name: str, local_rank: int) -> torch.device:
    """The device that `auto|cpu|cuda` names, for a process among several on a machine.

    Raises:
        InputError: there are fewer GPUs than processes, or a single GPU is named.
    """
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    if ":" in name:
        expected = "auto, cpu or cuda with several processes"
        raise InputError(f"--device: expected {expected}, found {name}")
    gpus = torch.cuda.device_count()
    # Schedulers may restrict each task to its GPU, which then has index 0 in every process.
    if gpus == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return device
    if local_rank >= gpus:
        expected = f"a GPU for each of this machine's processes, at least {local_rank + 1}"
        raise InputError(f"--device: expected {expected}, found {gpus}")
    return resolve_device(f"cuda:{local_rank}")


@dataclass(frozen=True)
class Execution:
    """Execution settings of a run; they change its result by rounding only.

    Attributes:
        device: device of this process.
        context: the processes of the run.
        workers: number of DataLoader workers of each process.
        accumulation: number of parts in which a process computes its share of a batch, to save
            memory.
        compiled: compile the model with `torch.compile`.
    """

    device: torch.device
    context: DistContext = SINGLE_PROCESS
    workers: int = 0
    accumulation: int = 1
    compiled: bool = False


def wrap_ddp(model: Any, device: torch.device) -> DistributedDataParallel:
    """Wraps a model on its device in `DistributedDataParallel`."""
    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    if device.type == "cuda":
        options["device_ids"] = [device]
    # Buffers are constant, since batch norm is frozen. torch 2.13 renamed the option.
    parameters = signature(DistributedDataParallel).parameters
    is_renamed = "forward_sync_buffers" in parameters
    options["forward_sync_buffers" if is_renamed else "broadcast_buffers"] = False
    return DistributedDataParallel(model, **options)
