import threading

import pytest
import torch

from teacher_cache.extraction.extract import MAX_CPU_WORKERS, WorkerPools

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 6])
def threads(request):
    """torch's threads of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_lanes_of_a_cpu_share_its_threads(threads):
    together = threading.Barrier(min(threads, MAX_CPU_WORKERS), timeout=60)

    def work():
        together.wait()
        return threading.current_thread().name, torch.get_num_threads()

    with WorkerPools(CPU) as pools:
        done = [pools.image_pool.submit(work) for _ in range(together.parties)]
        names, shares = zip(*(one.result() for one in done), strict=True)
        assert torch.get_num_threads() == threads
    assert len(set(names)) == together.parties
    assert sum(shares) - len(shares) < threads <= sum(shares)
    assert torch.get_num_threads() == threads


def test_room_for_the_caller():
    go_on, done = threading.Event(), []
    with WorkerPools(CPU) as pools:
        pools.wait_until_idle()
        for number in range(8):
            pools.encoder_pool.submit(lambda number=number: (go_on.wait(60), done.append(number)))
        threading.Timer(0.05, go_on.set).start()
        pools.wait_until_idle()
        assert sorted(done) == list(range(8))


def test_an_exception_leaves_queued_work_undone():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        go_on.wait(60)
        done.append("first")

    with pytest.raises(KeyboardInterrupt), WorkerPools(torch.device("meta")) as pools:
        pools.encoder_pool.submit(first)
        later = pools.encoder_pool.submit(done.append, "later")
        assert begun.wait(60)
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert done == ["first"] and later.cancelled()
