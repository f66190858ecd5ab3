"""Results files with changed fields."""

import json
from itertools import count

import pytest

PATHS = {
    "dataset_path": "toy",
    "predictions": "{}/predictions.json",
    "metrics_log": "{}/metrics.jsonl",
}
# Results whose other files are not there.
NO_FILES = {**dict.fromkeys(PATHS), "extra": {}}


@pytest.fixture
def change(runs, tmp_path):
    """`change("control", field=value)`: a results file of a run with other fields."""
    numbers = count()

    def write(run, /, **fields):
        value = json.loads((runs / run / "results.json").read_text())
        value |= {key: str(runs / path.format(run)) for key, path in PATHS.items()}
        file = tmp_path / f"run {next(numbers)}" / "results.json"
        file.parent.mkdir()
        file.write_text(json.dumps(value | fields))
        return file

    return write


@pytest.fixture
def bare(change):
    """A results file of the teacher without other files, with few classes."""

    def write(**fields):
        file = change("teacher", **NO_FILES, **fields)
        value = json.loads(file.read_text())
        file.write_text(
            json.dumps({**value, "per_class": dict(list(value["per_class"].items())[::10])})
        )
        return file

    return write
