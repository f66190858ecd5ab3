import json
from dataclasses import asdict

import numpy as np
import pytest

from evaluation.hico.nms import NmsConfig
from evaluation.results import read_results
from evaluation.score_hico import ScoringConfig, score_hico_file
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary


@pytest.fixture
def score(runs):
    """Scores the small toy dataset's distilled run, with other arguments where given."""
    values = {
        "predictions": runs / "distilled" / "predictions.json",
        "annotations": runs / "toy" / "annotations" / "test_hico.json",
        "vocabulary": "toy",
        "split": "ua",
    }
    return lambda **arguments: score_hico_file(**{**values, **arguments})


def test_scores_equal_those_of_the_run(runs, score, tmp_path):
    lines = score(json=tmp_path / "scores.json")
    expected = read_results(runs / "distilled" / "results.json")
    found = read_results(tmp_path / "scores.json")
    assert found.metrics == expected.metrics
    assert found.per_class == expected.per_class
    assert found.predictions.resolve() == expected.predictions.resolve()
    assert f"unseen{100 * expected.metrics['unseen']:.2f}" in lines[4].replace(" ", "")
    seen, unseen = (found.metrics[name] for name in ("seen", "unseen"))
    between = 2 / (1 / seen + 1 / unseen)
    assert found.metrics["harmonic_mean"] == pytest.approx(between)
    assert found.known_object.metrics["harmonic_mean"] > 0
    assert found.splits["ua"] == pytest.approx({"seen": seen, "unseen": unseen})
    assert lines[5].split()[:3] == ["harmonic", "mean", f"{100 * between:.2f}"]


def test_full_supervision_has_no_harmonic_mean(score, tmp_path):
    lines = score(split="full", json=tmp_path / "scores.json")
    assert "harmonic_mean" not in json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert "harmonic_mean" not in read_results(tmp_path / "scores.json").metrics
    assert not any(line.startswith("harmonic") for line in lines)


@pytest.mark.parametrize(
    "scoring", [ScoringConfig(nms=NmsConfig(threshold=0.5)), ScoringConfig(("known_object",))]
)
def test_settings_and_nms(score, tmp_path, scoring):
    lines = score(scoring=scoring, json=tmp_path / "a.json")
    found = read_results(tmp_path / "a.json")
    first, *further = scoring.settings
    assert found.setting == first and lines[1].count("setting") == len(scoring.settings)
    assert lines[0].endswith("after pairwise NMS") == (found.nms is not None)
    assert found.nms == (None if scoring.nms is None else asdict(scoring.nms))
    assert (found.known_object is not None) == bool(further)
    if further:
        assert f"{100 * found.known_object.metrics['full']:.2f}" in lines[2]


def test_a_runs_folder(runs, score, tmp_path):
    by_file, by_run = tmp_path / "a.json", tmp_path / "b.json"
    score(json=by_file)
    score(predictions=runs / "distilled", json=by_run)
    assert read_results(by_run).name == "distilled"
    assert read_results(by_run).per_class == read_results(by_file).per_class


def test_details_follow_the_groups(score):
    plain = score()
    more = score(details=("verbs", "objects"))
    assert more[: len(plain)] == plain and more[len(plain)] == ""
    assert more[len(plain) + 1].startswith("verb ") and any(line[:7] == "object " for line in more)


def test_a_split_of_the_users_own(score, tmp_path):
    split = tmp_path / "mine.toml"
    split.write_text('unseen_verbs = ["ride"]\n')
    assert "split mine" in score(split=str(split))[0]


def test_json_is_not_overwritten(score, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        score(json=path)
    assert path.read_text() == "mine"
    score(json=path, overwrite=True)
    assert read_results(path).kind == "predictions"


@pytest.mark.parametrize(
    ("name", "found"), [("model.pth", "a checkpoint"), ("run", "none")], ids=["file", "folder"]
)
def test_models_without_predictions_are_for_another_command(score, tmp_path, name, found):
    (tmp_path / "run").mkdir()
    message = f"found {found}; to predict and score with it: eoid-train evaluate .*{name} --data"
    with pytest.raises(InputError, match=message):
        score(predictions=tmp_path / name)


def test_enclosing_dataset_gives_vocabulary_and_images(runs, tmp_path):
    predictions, file = runs / "distilled/predictions.json", tmp_path / "scores.json"
    annotations = runs / "toy/annotations/test_hico.json"
    lines = score_hico_file(predictions, annotations, split="ua", json=file)
    assert lines == score_hico_file(predictions, data=runs / "toy", split="ua")
    results = read_results(file)
    assert (results.dataset, results.vocabulary) == ("toy", "toy")
    assert results.dataset_path.resolve() == (runs / "toy").resolve()
    with pytest.raises(InputError, match="expected --annotations FILE or --data DATASET"):
        score_hico_file(predictions)


def hico_annotations(folder, hico):
    """The pair form with an image that has no pair, as HICO-DET's test part has 112 of."""
    row = {"boxes_h": [[0, 0, 9, 9]], "boxes_o": [[9, 9, 30, 30]]}
    row |= {"object": [1], "verb": [0], "hoi": [0]}
    empty = {key: [] for key in row}
    value = {"filenames": ["a.jpg", "b.jpg"], "annotation": [row, empty]}
    value |= {"objects": ["person", "bicycle"], "verbs": ["ride"], "correspondence": [[0, 1, 0]]}
    path = folder / "instances_test2015.json"
    path.write_text(json.dumps(value))
    return path


def test_images_without_pairs_are_left_out(tmp_path, messages):
    hico = load_vocabulary("hico-det")
    boxes = [{"bbox": [0, 0, 9, 9], "category_id": 1}, {"bbox": [9, 9, 30, 30], "category_id": 2}]
    verb = hico.verbs.index("ride") + 1
    hoi = {"subject_id": 0, "object_id": 1, "category_id": verb, "score": 0.5}
    entries = [
        {"file_name": name, "predictions": boxes, "hoi_prediction": [{**hoi, "score": score}]}
        for name, score in (("a.jpg", 0.5), ("b.jpg", 0.9))
    ]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    files = tmp_path / "p.json", hico_annotations(tmp_path, hico)
    lines = score_hico_file(*files)
    assert "left out 1 image without annotated pair" in messages
    assert lines[2].split() == ["full", "100.00", "100.00"]
    entries[1]["file_name"] = "c.jpg"
    (tmp_path / "p.json").write_text(json.dumps(entries))
    lines = score_hico_file(*files)
    assert lines[2].split() == ["full", "100.00", "100.00"]
    assert f"left out 1 image not named in {files[1]}" in messages
    (tmp_path / "p.json").write_text(json.dumps(entries[1:]))
    with pytest.raises(InputError, match=r"p.json: file_name: .*found 1 others, .* being c.jpg"):
        score_hico_file(*files)


@pytest.mark.parametrize("pairs", ["none", "invalid"])
def test_predictions_without_a_valid_pair_score_nothing(
    runs, score, toy, tmp_path, pairs, messages
):
    verb, label = np.argwhere(~toy.valid & ~np.roll(toy.valid, -1, axis=0))[0]
    entries = json.loads((runs / "distilled" / "predictions.json").read_text())
    for entry in entries:
        for row in entry["hoi_prediction"]:
            row["category_id"] = int(verb) + toy.first_verb_id
            entry["predictions"][row["object_id"]]["category_id"] = toy.category_ids[label]
        if pairs == "none":
            entry["hoi_prediction"] = []
    (tmp_path / "p.json").write_text(json.dumps(entries))
    score(predictions=tmp_path / "p.json", json=tmp_path / "scores.json")
    found = read_results(tmp_path / "scores.json")
    groups = ("full", "seen", "unseen", "harmonic_mean", "mean_max_recall")
    assert [found.metrics[name] for name in groups] == [0] * 5
    assert set(found.per_class.values()) == {0}
    assert any("is an interaction of toy" in line for line in messages) == (pairs == "invalid")
