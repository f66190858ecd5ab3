import json

import numpy as np
import pytest

from evaluation.analysis.training_log import (
    KEPT_CANDIDATES,
    LEARNING_RATE,
    TOTAL_LOSS,
    read_training_log,
)
from pipeline.utils.errors import InputError

LINE = {"step": 10, "lr": 0.1, "loss": 3.0, "losses": {"verb_soft": 1.0, "object": 2.0}}


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def read(text):
        path.write_text(text)
        return read_training_log(path)

    return read


def test_no_log(tmp_path, log):
    assert read_training_log(None) is None
    assert read_training_log(tmp_path / "none.jsonl") is None
    assert log("") is None


def test_reads_series(log):
    second = {"step": 20, "lr": 0.2, "loss": 2.0, "losses": {"object": 1.5, "object_0": 9.0}}
    second["candidates"] = {"total": 9, "kept": 4}
    found = log(f"{json.dumps(LINE)}\n\n{json.dumps(second)}\n")
    assert found.steps.tolist() == [10, 20]
    names = [TOTAL_LOSS, "verbs: soft targets", "object", LEARNING_RATE, KEPT_CANDIDATES]
    assert list(found.series) == names
    assert found.series[KEPT_CANDIDATES][1] == 4 and np.isnan(found.series[KEPT_CANDIDATES][0])
    assert found.series["object"].tolist() == [2.0, 1.5]
    assert np.isnan(found.series["verbs: soft targets"][1])


def test_unfinished_last_line_is_left_out(log):
    assert len(log(f'{json.dumps(LINE)}\n{{"step": 20, "lo').steps) == 1


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1.0}', '{"step": "ten"}'])
def test_wrong_lines_are_named(log, line):
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2: expected"):
        log(f"{json.dumps(LINE)}\n{line}\n")
