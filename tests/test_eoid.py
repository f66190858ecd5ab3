"""The public interface: what `import eoid` gives, and what it does not load."""

import configparser
import json
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
HEAVY = ("torch", "torchvision", "h5py", "numpy", "scipy", "open_clip", "matplotlib")


def loaded_by(code):
    """Those of `HEAVY` that a new process has loaded after running `code`."""
    code += f"\nimport json, sys\nprint(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", DEFINED_IN)
def test_a_name_is_the_object_of_its_module(name):
    assert getattr(eoid, name) is getattr(DEFINED_IN[name], name)


def test_public_names():
    assert sorted(eoid.__all__) == sorted([*DEFINED_IN, "__version__"])
    assert sorted(dir(eoid)) == sorted(eoid.__all__)
    everything = {}
    exec("from eoid import *", everything)
    assert set(eoid.__all__) <= everything.keys()


def test_the_version_is_that_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert eoid.__version__ == setup["metadata"]["version"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"eoid.*'Detectors'"):
        _ = eoid.Detectors
    assert not hasattr(eoid, "torch")
    with pytest.raises(ImportError, match="open_model"):
        exec("from eoid import open_model")


def test_importing_it_loads_nothing_heavy():
    assert loaded_by("import eoid; dir(eoid); eoid.__version__") == set()


def test_datasets_and_caches_are_opened_without_torch():
    code = "import eoid; eoid.open_dataset, eoid.open_cache, eoid.load_vocabulary('vcoco')"
    assert loaded_by(code).isdisjoint({"torch", "torchvision", "open_clip"})
