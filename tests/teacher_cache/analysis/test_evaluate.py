import json
from dataclasses import replace

import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.predictions import read_predictions
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from teacher_cache.analysis.evaluate import EvaluateConfig, evaluate_teacher
from teacher_cache.build import build_cache


@pytest.fixture
def score_config(dataset, build_config, tmp_path):
    config = build_config(dataset)
    build_cache(config)
    return EvaluateConfig(config.out, dataset, "ua", "default", tmp_path / "results.json")


def test_results_of_a_cache(score_config, vocabulary, tmp_path, capsys):
    config = replace(score_config, predictions=tmp_path / "predictions.json")
    capsys.readouterr()
    results = evaluate_teacher(config)
    lines = capsys.readouterr().out.splitlines()
    written = read_results(config.json)
    assert written.kind == "teacher" and written.protocol == "detector"
    assert written.metrics == results.metrics and written.split == "ua"
    assert 0 <= written.extra["teacher_accuracy"] <= 1
    assert {"person_recall", "object_recall", "pair_recall"} <= written.extra.keys()
    assert any("teacher accuracy" in line for line in lines)
    scores = evaluate(
        open_dataset(config.dataset).load("train").annotations,
        read_predictions(config.predictions, vocabulary),
        vocabulary,
    )
    assert scores.mean_ap() == pytest.approx(results.metrics["full"], abs=1e-6)


def test_both_kinds_of_pairs_are_told(score_config, vocabulary, capsys):
    results = evaluate_teacher(score_config)
    lines = capsys.readouterr().out.splitlines()
    extra = results.extra
    kinds = {"annotated_full", "annotated_seen", "annotated_unseen", "annotated_actions"}
    assert {*kinds, "actions", "recall of ride", "accuracy of ride"} <= extra.keys()
    (row,) = [line.split() for line in lines if line.startswith("Full  ")]
    both = (extra["annotated_full"], results.metrics["full"])
    assert row[1:] == [f"{100 * value:.1f}" for value in both]
    # A detector of random weights finds nothing, the annotated boxes are what they are.
    assert both[0] > both[1]
    first = next(place for place, line in enumerate(lines) if line.startswith("verb"))
    names = [line.split()[0] for line in lines[first + 1 :]]
    assert names == [verb.split("_")[0] for verb in vocabulary.verbs[:-1]]


def test_the_picture(score_config, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    file = tmp_path / "teacher.png"
    evaluate_teacher(replace(score_config, picture=file))
    assert file.read_bytes().startswith(b"\x89PNG")


def test_pairs_of_annotated_boxes(dataset, build_config, score_config):
    """All of them are proposed, so nothing annotated is missed."""
    config = build_config(dataset, out="annotated", candidates="annotated")
    build_cache(config)
    wanted = replace(score_config, cache=config.out, json=None)
    results = evaluate_teacher(wanted)
    assert results.protocol == "annotated"
    shares = [results.extra[f"{name}_recall"] for name in ("person", "object", "pair")]
    assert shares == [1, 1, 1]
    assert 0 < results.metrics["full"] <= results.extra["annotated_full"]


@pytest.mark.parametrize("field", ["json", "predictions", "picture"])
def test_nothing_is_overwritten_unasked(score_config, tmp_path, field):
    file = tmp_path / "mine.png"
    file.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        evaluate_teacher(replace(score_config, **{field: file}))
    assert file.read_text() == "mine"


def test_overwriting(score_config):
    score_config.json.write_text("{}")
    evaluate_teacher(replace(score_config, overwrite=True))
    assert json.loads(score_config.json.read_text())["kind"] == "teacher"


def test_a_cache_of_other_annotations_is_refused(score_config):
    path = score_config.dataset / "annotations/trainval_hico.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match="does not fit this dataset: annotations"):
        evaluate_teacher(score_config)
    assert not score_config.json.exists()
