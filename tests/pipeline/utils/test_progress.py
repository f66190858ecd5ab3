import logging
import sys
from types import SimpleNamespace

import pytest

from pipeline.utils import progress
from pipeline.utils.logging import log_to_stderr
from pipeline.utils.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Replaces the time of `progress` by a value that tests set."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_plain_lines_have_rate_and_remaining_time(capsys, clock):
    with Progress(100, "reading", "images") as bar:
        for second in range(1, 41):
            clock[0] = second
            bar.update(2, note=f"loss {second}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0] == "reading:  20% 20/100 [00:10<00:40,  2.00 images/s, loss 10]"
    assert lines[-1] == "reading:  80% 80/100 [00:40<00:10,  2.00 images/s, loss 40]"


def test_rate_of_a_resumed_run(capsys, clock):
    with Progress(100, "reading", "images", initial=60) as bar:
        clock[0] = 10.0
        bar.update(20)
    assert "80/100 [00:10<00:10,  2.00 images/s]" in capsys.readouterr().err
    with Progress(100, "reading", "images") as bar:
        clock[0] = 20.0
        bar.update(5)
    assert " 0.50 images/s]" in capsys.readouterr().err
    with Progress(0, "reading", "images"):
        pass
    assert capsys.readouterr().err.startswith("reading: 0 images [00:00")


@pytest.mark.parametrize("seconds, num_lines", [(0, 0), (9, 0), (10, 2)])
def test_brief_work_prints_lines_only_if_it_takes_long(capsys, clock, seconds, num_lines):
    with Progress(2, "checking", "files", brief=True) as bar:
        clock[0] = float(seconds)
        bar.update(2)
    assert len(capsys.readouterr().err.splitlines()) == num_lines


def test_quiet_progress_prints_nothing(capsys, clock):
    with Progress(2, "reading", "images", quiet=True) as bar:
        clock[0] = 20.0
        bar.update()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_and_log_lines_between_progress(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with log_to_stderr(), Progress(4, "reading", "images") as bar:
        logging.getLogger("eoid.pipeline").info("a.jpg: no such image")
        bar.update(4, note="loss 1")
    shown = capsys.readouterr()
    assert shown.err.replace("\r", "\n").splitlines().count("a.jpg: no such image") == 1
    assert ("\r" in shown.err) == terminal and shown.out == ""
    assert all(fact in shown.err for fact in ("4/4", "images/s", "loss 1"))


def test_interrupted_loop_prints_its_progress(capsys):
    with pytest.raises(KeyboardInterrupt), Progress(5, "reading") as bar:
        bar.update(2)
        raise KeyboardInterrupt
    assert "2/5" in capsys.readouterr().err
