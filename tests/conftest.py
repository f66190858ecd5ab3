"""Fixtures shared by all packages' tests."""

import os
from pathlib import Path

import pytest

# Waiting threads of torch's OpenMP spin by default, which costs most of the time where other
# programs want the cores too. Read when torch is loaded, here and in the tests' subprocesses.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GOLDEN = Path(os.environ.get("EOID_GOLDEN_DIR") or Path(__file__).parents[2] / "shared" / "golden")


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(pattern): run with every matching golden file")


def pytest_generate_tests(metafunc):
    """`@pytest.mark.golden("kind_*.npz")` runs a test with `golden_file`, once for every file."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        files = sorted(GOLDEN.glob(marker.args[0])) or [marker.args[0]]
        names = [getattr(file, "stem", "none") for file in files]
        metafunc.parametrize("golden_file", files, ids=names, indirect=True)


@pytest.fixture
def golden_file(request):
    """Path of one golden file; skips without the folder, fails when it holds none of the kind."""
    if not GOLDEN.is_dir():
        pytest.skip(f"golden folder {GOLDEN} is not there (EOID_GOLDEN_DIR)")
    if isinstance(request.param, str):
        pytest.fail(f"golden folder {GOLDEN} holds no {request.param}")
    return request.param
