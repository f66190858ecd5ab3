import json

import pytest

from evaluation.results import read_results
from evaluation.score_file import ScoreConfig, score_file
from pipeline.errors import InputError


@pytest.fixture
def config(runs):
    """A function that makes a config for the small world's distilled run."""

    def build(**fields):
        values = {
            "predictions": runs / "distilled" / "predictions.json",
            "annotations": runs / "world" / "annotations" / "test_hico.json",
            "vocabulary": "world",
            "split": "ua",
        }
        return ScoreConfig(**{**values, **fields})

    return build


def test_gives_what_the_run_said(runs, config, tmp_path):
    lines = score_file(config(json=tmp_path / "scores.json"))
    said = read_results(runs / "distilled" / "results.json")
    found = read_results(tmp_path / "scores.json")
    assert found.metrics == said.metrics
    assert found.per_class == said.per_class
    assert found.predictions.resolve() == said.predictions.resolve()
    assert f"unseen{100 * said.metrics['unseen']:.2f}" in lines[4].replace(" ", "")


def test_both_settings_and_nms(config):
    lines = score_file(config(settings=("default", "known_object"), nms=True))
    assert "known-object setting" in lines[1]


def test_a_split_of_the_users_own(config, tmp_path):
    split = tmp_path / "mine.toml"
    split.write_text('unseen_verbs = ["ride"]\n')
    assert "split mine" in score_file(config(split=str(split)))[0]


def test_says_how_many_images_are_silent(runs, config, tmp_path):
    some = json.loads((runs / "distilled" / "predictions.json").read_text())[:20]
    (tmp_path / "some.json").write_text(json.dumps(some))
    lines = score_file(config(predictions=tmp_path / "some.json"))
    assert lines[-1] == "4 of 24 images have no predictions"


def test_json_wants_one_setting(config, tmp_path):
    both = ("default", "known_object")
    with pytest.raises(InputError, match="--json: expected one setting"):
        score_file(config(settings=both, json=tmp_path / "a.json"))


def test_json_is_not_overwritten(config, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        score_file(config(json=path))
    assert path.read_text() == "mine"
    score_file(config(json=path, overwrite=True))
    assert read_results(path).kind == "predictions"
