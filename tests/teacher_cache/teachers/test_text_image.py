import threading

import pytest
import torch

from teacher_cache.teachers.text_image import MAX_CPU_WORKERS, worker_pools

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 6])
def threads(request):
    """Number of torch's threads in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_workers_on_a_cpu_share_torchs_threads(threads):
    barrier = threading.Barrier(min(threads, MAX_CPU_WORKERS), timeout=60)

    def work():
        barrier.wait()
        return threading.current_thread().name, torch.get_num_threads()

    with worker_pools(CPU) as (pool, _):
        futures = [pool.submit(work) for _ in range(barrier.parties)]
        names, thread_counts = zip(*(future.result() for future in futures), strict=True)
        assert torch.get_num_threads() == threads
    assert len(set(names)) == barrier.parties
    assert sum(thread_counts) - len(thread_counts) < threads <= sum(thread_counts)
    assert torch.get_num_threads() == threads


def test_an_exception_cancels_queued_work():
    started, resume, done = threading.Event(), threading.Event(), []

    def first():
        started.set()
        resume.wait(60)
        done.append("first")

    with pytest.raises(KeyboardInterrupt), worker_pools(CPU) as (pool, _):
        pool.submit(first)
        later = pool.submit(done.append, "later")
        assert started.wait(60)
        threading.Timer(0.05, resume.set).start()
        raise KeyboardInterrupt
    assert done == ["first"] and later.cancelled()
