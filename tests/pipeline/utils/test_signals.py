import signal
from concurrent.futures import ThreadPoolExecutor

from pipeline.utils.signals import ignore_interrupts


def test_ignore_interrupts_in_the_main_thread_only():
    def handler_inside():
        with ignore_interrupts():
            return signal.getsignal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    assert handler_inside() is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler_inside).result() is before
