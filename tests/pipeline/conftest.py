"""Fixtures of the ground floor's tests."""

import json
from pathlib import Path

import pytest

from pipeline.vocabulary import load_vocabulary

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def hico():
    return load_vocabulary("hico-det")


@pytest.fixture(scope="session")
def vcoco():
    return load_vocabulary("vcoco")


@pytest.fixture(scope="session")
def real_file():
    """Path of a real annotation file by its name; skips where it is not there."""

    def path(name):
        if not (REAL_DATA / name).is_file():
            pytest.skip(f"{REAL_DATA / name} is not there")
        return REAL_DATA / name

    return path


@pytest.fixture
def save(tmp_path):
    """Writes a JSON value to a file and returns its path."""

    def write(value, name="annotations.json"):
        path = tmp_path / name
        path.write_text(json.dumps(value))
        return path

    return write
