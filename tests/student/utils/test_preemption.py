import os
import signal
import time

import pytest

from student.utils.preemption import EXIT_REQUEUE, STOPPING, Stop, StopSignals, leave


def send(number):
    os.kill(os.getpid(), number)


def test_what_is_asked_decides_the_exit():
    with pytest.raises(KeyboardInterrupt):
        leave(Stop.INTERRUPT)
    with pytest.raises(SystemExit) as left:
        leave(Stop.REQUEUE)
    assert left.value.code == EXIT_REQUEUE


@pytest.mark.parametrize(("number", "stop"), STOPPING.items())
def test_work_with_a_state_to_save_is_not_broken(number, stop):
    with StopSignals() as signals:
        assert not signals.asked
        with signals.held():
            send(number)
            assert signals.asked is stop
            send(signal.SIGINT)
            assert signals.asked is stop


@pytest.mark.parametrize("number", STOPPING)
def test_other_work_ends_at_once(number):
    before = [signal.getsignal(one) for one in STOPPING]
    ended = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(ended), StopSignals() as signals:
        with signals.held():
            pass
        send(number)
        pytest.fail("still at work")
    assert [signal.getsignal(one) for one in STOPPING] == before


def test_inside_held_work_there_may_be_some_that_ends_at_once():
    with StopSignals() as signals, signals.held():
        with pytest.raises(SystemExit), signals.released():
            send(signal.SIGTERM)
        send(signal.SIGINT)
        with pytest.raises(SystemExit), signals.released():
            pytest.fail("asked before")


@pytest.mark.parametrize("before", [True, False])
def test_a_wait_is_held_for_a_while_only(before):
    """Whether it is asked before the wait or during it; after the wait all is held again."""
    with StopSignals() as signals, signals.held():
        with signals.held_for(60):
            send(signal.SIGTERM)
        if not before:
            signals.asked = Stop.NO
        with pytest.raises(SystemExit), signals.held_for(0.05):
            if not before:
                send(signal.SIGTERM)
            time.sleep(30)
        send(signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
