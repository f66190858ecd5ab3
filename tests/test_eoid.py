"""The public interface: what `import eoid` gives, and what it does not load."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import eoid
import pipeline.datasets.dataset
import pipeline.vocabulary
import student.inference.detector
import student.weights.load
import teacher_cache.reader.cache

ROOT = Path(__file__).parents[1]
DEFINED_IN = {
    "Detector": student.inference.detector,
    "load_model": student.weights.load,
    "load_vocabulary": pipeline.vocabulary,
    "open_cache": teacher_cache.reader.cache,
    "open_dataset": pipeline.datasets.dataset,
}
HEAVY = {"torch", "torchvision", "h5py", "numpy", "scipy", "open_clip", "matplotlib"}


def test_public_names():
    assert sorted(eoid.__all__) == sorted(dir(eoid)) == sorted([*DEFINED_IN, "__version__"])
    everything = {}
    exec("from eoid import *", everything)
    for name, module in DEFINED_IN.items():
        assert everything[name] is getattr(module, name)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert everything["__version__"] == setup["metadata"]["version"]
    with pytest.raises(AttributeError, match=r"eoid.*'Detectors'"):
        _ = eoid.Detectors


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("dir(eoid); eoid.__version__", HEAVY),
        ("eoid.open_dataset, eoid.open_cache", {"torch", "torchvision", "open_clip"}),
    ],
)
def test_importing_it_loads_nothing_heavy(code, heavy):
    code = f"import eoid, sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint(heavy)


def entry_points():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().split("\n")
    return dict(line.split(" = ") for line in lines)


@pytest.mark.parametrize("command", entry_points())
def test_an_interrupt_while_a_command_is_imported_is_one_line(command, tmp_path):
    """Ctrl-C comes when click, the first package that takes time, is imported."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    module, _, function = entry_points()[command].partition(":")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
sys.argv = ["/somewhere/{command}"]
from {module} import {function}
{function}()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"{command}: interrupted\n"
