import threading

import pytest
import torch

from teacher_cache.extraction.extract import MOST_LANES, Lanes

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 6])
def threads(request):
    """torch's threads of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_lanes_of_a_cpu_share_its_threads(threads):
    together = threading.Barrier(min(threads, MOST_LANES), timeout=60)

    def work():
        together.wait()
        return threading.current_thread().name, torch.get_num_threads()

    with Lanes(CPU) as lanes:
        done = [lanes.helpers.submit(work) for _ in range(together.parties)]
        names, shares = zip(*(one.result() for one in done), strict=True)
        assert torch.get_num_threads() == threads
    assert len(set(names)) == together.parties
    assert sum(shares) - len(shares) < threads <= sum(shares)
    assert torch.get_num_threads() == threads


def test_room_for_the_caller():
    go_on, done = threading.Event(), []
    with Lanes(CPU) as lanes:
        lanes.make_room()
        for number in range(8):
            lanes.encoders.submit(lambda number=number: (go_on.wait(60), done.append(number)))
        threading.Timer(0.05, go_on.set).start()
        lanes.make_room()
        assert sorted(done) == list(range(8))


def test_an_exception_leaves_queued_work_undone():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        go_on.wait(60)
        done.append("first")

    with pytest.raises(KeyboardInterrupt), Lanes(torch.device("meta")) as lanes:
        lanes.encoders.submit(first)
        later = lanes.encoders.submit(done.append, "later")
        assert begun.wait(60)
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert done == ["first"] and later.cancelled()
