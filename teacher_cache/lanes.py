"""The threads of a build: who decodes, cuts and encodes beside whom."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import cache
from types import TracebackType
from typing import Any

import torch

# Threads that decode pictures and cut regions out beside a GPU.
HELPERS = 4
# Of a CPU; each works on a batch of its own, which takes memory.
MOST_LANES = 4


class Lanes:
    """Threads for the steps of a build, as a context manager.

    A GPU has one thread that encodes, and helpers that decode and cut beside it; what they give the
    GPU to do does not queue up with the caller's, who detects meanwhile. The cores of a CPU
    are dealt out to a few lanes, each of which decodes, cuts and encodes batches of its own with
    its own torch threads: several matrix products of few threads each use the cores better than
    one that all cores share, above all where other work holds up one of its parts.

    Whoever leaves by an exception waits for the work that runs, not for what is queued.

    Args:
        device: where the models run.

    Attributes:
        helpers: decode and cut.
        encoders: run the image tower.
    """

    helpers: Executor
    encoders: Executor

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads()
        self._on_cpu = device.type == "cpu"
        if self._on_cpu:
            lanes = min(self._threads, MOST_LANES)
            share = -(-self._threads // lanes)
            self._pools = [_Pool(lanes, initializer=torch.set_num_threads, initargs=(share,))]
        else:
            options: dict[str, Any] = {}
            if device.type == "cuda":
                stream = _side_stream(device)
                if stream is not None:
                    stream.wait_stream(torch.cuda.current_stream(device))
                options = {"initializer": _take_gpu, "initargs": (device, stream)}
            self._pools = [_Pool(HELPERS, **options), _Pool(1, **options)]
        self.helpers, self.encoders = self._pools[0], self._pools[-1]

    def make_room(self) -> None:
        """Waits, on a CPU, until the lanes are empty: the caller is to work with all cores."""
        if self._on_cpu:
            wait(self._pools[0].unfinished)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=kind is not None)
        # What a lane was given would be the number of every thread that is new to torch.
        torch.set_num_threads(self._threads)


@cache
def _side_stream(device: torch.device) -> Any:
    """A GPU's second stream, always the same one: memory that was used in one stream is not used
    again in another. None where there is none to be had; then all share the first."""
    try:
        return torch.cuda.Stream(device)
    except RuntimeError:
        return None


def _take_gpu(device: torch.device, stream: Any) -> None:
    """Makes a GPU and its stream a new thread's current ones."""
    torch.cuda.set_device(device)
    if stream is not None:
        torch.cuda.set_stream(stream)


class _Pool(ThreadPoolExecutor):
    """Knows the work that it has not finished."""

    def __init__(self, threads: int, **options: Any) -> None:
        super().__init__(threads, **options)
        self.unfinished: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        self.unfinished = {one for one in (*self.unfinished, future) if not one.done()}
        return future
