import os
import signal
import time

import pytest

from student.utils.preemption import (
    STOP_SIGNALS,
    StopRequest,
    StopSignalHandler,
)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "stop"), STOP_SIGNALS.items())
def test_deferred_signals_are_recorded_and_reported_once(number, stop, messages):
    with StopSignalHandler() as signals:
        assert not signals.request
        with signals.defer():
            send(number)
            assert signals.request is stop
            (line,) = messages
            assert line.startswith(f"{number.name}: the run stops after this step")
            send(signal.SIGINT)
            assert signals.request is stop
    assert len(messages) == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_outside_defer_end_the_program(number):
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    ended = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(ended), StopSignalHandler() as signals:
        with signals.defer():
            pass
        send(number)
        pytest.fail("the signal did not end the program")
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before


def test_deliver_within_defer():
    with StopSignalHandler() as signals, signals.defer():
        with pytest.raises(SystemExit), signals.deliver():
            send(signal.SIGTERM)
        send(signal.SIGINT)
        with pytest.raises(SystemExit), signals.deliver():
            pytest.fail("the earlier request was ignored")


@pytest.mark.parametrize("before", [True, False])
def test_defer_for_limits_the_wait(before):
    """A request before or during the wait ends it; after the wait, signals are deferred again."""
    with StopSignalHandler() as signals, signals.defer():
        with signals.defer_for(60):
            send(signal.SIGTERM)
        if not before:
            signals.request = StopRequest.NO
        with pytest.raises(SystemExit), signals.defer_for(0.05):
            if not before:
                send(signal.SIGTERM)
            time.sleep(30)
        send(signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
