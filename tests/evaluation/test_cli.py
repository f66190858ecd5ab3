import json
from functools import partial

import pytest
from commands import run_command

from evaluation.cli import main

eoid_eval = partial(run_command, main, "eoid-eval")


@pytest.fixture
def toy_files(runs):
    predictions = runs / "distilled" / "predictions.json"
    annotations = runs / "toy" / "annotations" / "test_hico.json"
    return [predictions, "--annotations", annotations, "--vocabulary", "toy"]


def test_hico(toy_files, tmp_path):
    options = ["--split", "ua", "--setting", "known-object", "--nms", "--nms-threshold", "0.6"]
    done = eoid_eval("hico", *toy_files, *options, "--json", tmp_path / "new" / "scores.json")
    assert done.returncode == 0, done.stderr
    assert "known-object setting" in done.stdout
    value = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert value["setting"] == "known_object"
    assert value["nms"] == {"human_power": 1.0, "object_power": 0.5, "threshold": 0.6}
    assert f"{100 * value['metrics']['unseen']:.2f}" in done.stdout


def test_warnings_go_to_stderr(runs, toy_files, tmp_path):
    entries = json.loads((runs / "distilled" / "predictions.json").read_text())
    (tmp_path / "some.json").write_text(json.dumps(entries[:20]))
    done = eoid_eval("hico", tmp_path / "some.json", *toy_files[1:])
    assert done.returncode == 0 and "no predictions" not in done.stdout
    assert "warning: 4 of 24 images have no predictions" in done.stderr.splitlines()


def test_report(runs, tmp_path):
    out = tmp_path / "report.html"
    done = eoid_eval("report", runs / "teacher" / "results.json", "--out", out)
    expected = f"wrote {out} and {tmp_path / 'report-pictures'}\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({0: "none.json"}, "none.json: no such file"),
        ({2: "none.json"}, "none.json: no such file"),
        ({5: "--split", 6: "zz"}, "zz: no such split of toy"),
        ({5: "--nms-threshold", 6: "0.5"}, "need --nms."),
        ({5: "--show", 6: "weather"}, "weather"),
    ],
)
def test_bad_input_is_one_line(toy_files, change, expected):
    arguments = dict(enumerate(toy_files)) | change
    done = eoid_eval("hico", *arguments.values())
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
