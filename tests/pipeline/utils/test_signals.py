import signal
import subprocess
import sys

import pytest

from pipeline.utils.signals import restore_interrupt_handler


def test_what_an_import_does_to_ctrl_c_does_not_last():
    before = signal.getsignal(signal.SIGINT)
    with restore_interrupt_handler():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_ctrl_c_with_slurms_library_loaded():
    answer = "import signal, teacher_cache.cluster.slurm; print(signal.getsignal(signal.SIGINT))"
    told = subprocess.run([sys.executable, "-c", answer], capture_output=True, text=True)
    assert "default_int_handler" in told.stdout, told.stderr
