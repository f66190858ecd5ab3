"""Pictures read by threads while the detector works, and batches of one size made of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD_PER_THREAD = 2
# Batches' worth of pictures that may wait for others of their size.
WAITING_BATCHES = 2


def read_ahead(make: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """`map(make, items)` in order, a few items ahead of who asks.

    Args:
        threads: that work; 0 works when asked.
    """
    if threads == 0:
        yield from map(make, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    running: deque[Future[Made]] = deque()
    try:
        for item in items:
            running.append(pool.submit(make, item))
            if len(running) > AHEAD_PER_THREAD * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches_of_one_kind(
    items: Iterable[Item], kind: Callable[[Item], Hashable], batch_size: int
) -> Iterator[list[Item]]:
    """Batches whose items are of one kind, each as soon as it is full.

    So that no item waits long and few are held, the largest unfinished batch goes when
    `WAITING_BATCHES` batches' worth of items wait. The rest follows at the end.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(kind(item), [])
        group.append(item)
        if len(group) == batch_size:
            yield waiting.pop(kind(item))
        elif sum(map(len, waiting.values())) >= WAITING_BATCHES * batch_size:
            yield waiting.pop(max(waiting, key=lambda name: len(waiting[name])))
    yield from waiting.values()
