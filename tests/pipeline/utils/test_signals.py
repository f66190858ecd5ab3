import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.utils.signals import ignore_interrupts, restore_interrupt_handler


def test_restore_interrupt_handler():
    before = signal.getsignal(signal.SIGINT)
    with restore_interrupt_handler():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before


def test_ignore_interrupts_in_the_main_thread_only():
    def handler_inside():
        with ignore_interrupts():
            return signal.getsignal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    assert handler_inside() is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler_inside).result() is before


@pytest.mark.slow
def test_importing_dask_jobqueue_keeps_the_interrupt_handler():
    code = "import signal, teacher_cache.cluster.slurm; print(signal.getsignal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "default_int_handler" in done.stdout, done.stderr
