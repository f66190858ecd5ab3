import numpy as np
import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.predictions import read_predictions
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.types import Annotation, Pairs
from pipeline.utils.errors import InputError
from teacher_cache.analysis.evaluate import (
    evaluate_teacher,
    match_annotated_pairs,
    score_pairs,
)
from teacher_cache.detectors.pairing import annotated_pairs, concatenate_pairs
from teacher_cache.reader.format import TeacherOutputs


@pytest.fixture
def score(finished, shared_dataset, tmp_path):
    """`score(**changes)` evaluates the finished cache, with results in `results.json`."""

    def run(**changes):
        given = {"cache": finished, "dataset": shared_dataset, "split": "ua"}
        return evaluate_teacher(**{**given, "json": tmp_path / "results.json", **changes})

    return run


def test_results_of_a_cache(score, shared_dataset, vocabulary, tmp_path, capsys):
    capsys.readouterr()
    results = score(predictions=tmp_path / "predictions.json")
    lines = capsys.readouterr().out.splitlines()
    written = read_results(tmp_path / "results.json")
    assert written.kind == "teacher" and written.protocol == "detector"
    assert written.metrics == results.metrics and written.split == "ua"
    extra = written.extra
    assert 0 <= extra["teacher_accuracy"] <= 1
    assert {"person_recall", "object_recall", "pair_recall", "actions"} <= extra.keys()
    kinds = {"annotated_full", "annotated_seen", "annotated_unseen", "annotated_actions"}
    assert {*kinds, "recall of ride", "accuracy of ride", "annotated mAP of ride"} <= extra.keys()
    assert any("teacher accuracy" in line for line in lines)
    (row,) = [line.split() for line in lines if line.startswith("Full  ")]
    both = (extra["annotated_full"], results.metrics["full"])
    assert row[1:] == [f"{100 * value:.1f}" for value in both]
    # A detector with random weights finds no pairs, but the annotated ones are scored.
    assert both[0] > both[1]
    first = next(row for row, line in enumerate(lines) if line.startswith("verb"))
    names = [line.split()[0] for line in lines[first + 1 :]]
    assert names == [verb.split("_")[0] for verb in vocabulary.verbs[:-1]]
    scores = evaluate(
        open_dataset(shared_dataset).load("train").annotations,
        read_predictions(tmp_path / "predictions.json", vocabulary),
        vocabulary,
    )
    assert scores.mean_ap() == pytest.approx(results.metrics["full"], abs=1e-6)


def test_pairs_of_annotated_boxes(shared_dataset, build, score):
    """With annotated boxes as candidates every annotated pair is proposed."""
    cache = build(shared_dataset, candidates="annotated")
    results = score(cache=cache.path, json=None)
    assert results.protocol == "annotated"
    shares = [results.extra[f"{name}_recall"] for name in ("person", "object", "pair")]
    assert shares == [1, 1, 1]
    assert 0 < results.metrics["full"] <= results.extra["annotated_full"]


@pytest.mark.parametrize("field", ["json", "predictions", "figure"])
def test_files_are_kept_without_overwrite(score, tmp_path, field):
    file = tmp_path / "mine.png"
    file.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        score(**{field: file})
    assert file.read_text() == "mine"
    score(**{field: file}, overwrite=True)
    assert file.read_bytes() != b"mine"


def test_a_cache_of_other_annotations_is_refused(score, dataset, change_annotations, tmp_path):
    change_annotations()
    with pytest.raises(InputError, match="does not fit this dataset: annotations"):
        score(dataset=dataset)
    assert not (tmp_path / "results.json").exists()


PERSON, HORSE, BALL = 0, 1, 4
RIDE, HOLD, THROW, NO_INTERACTION = 0, 3, 8, 10
BOXES = np.array([[0, 0, 20, 40], [5, 20, 60, 60], [30, 0, 40, 10]], dtype=np.float32)


def make_annotation(*hois):
    return Annotation("a", BOXES, np.array([PERSON, HORSE, BALL]), np.array(hois).reshape(-1, 3))


def make_outputs(annotation, proposals, probabilities):
    """Outputs of the annotated pairs, then of proposals (human box, object box, label, scores)."""
    proposed = Pairs(
        human_boxes=np.array([p[0] for p in proposals], np.float32).reshape(-1, 4),
        object_boxes=np.array([p[1] for p in proposals], np.float32).reshape(-1, 4),
        object_labels=np.array([p[2] for p in proposals], np.int64),
        human_scores=np.array([p[3] for p in proposals], np.float32),
        object_scores=np.array([p[4] for p in proposals], np.float32),
        sources=np.ones(len(proposals), np.uint8),
    )
    pairs = concatenate_pairs(annotated_pairs(annotation), proposed)
    table = np.zeros((len(pairs), 11), dtype=np.float32)
    for row, entries in enumerate(probabilities):
        for verb, probability in entries.items():
            table[row, verb] = probability
    return TeacherOutputs(pairs, table, np.zeros(len(pairs), int), np.zeros((1, 4)), None)


def rate(vocabulary, *images):
    """Scores of annotations with outputs; columns with a verb's value by its number."""
    matches = [match_annotated_pairs(*image, vocabulary) for image in images]
    return score_pairs(matches, vocabulary)


@pytest.mark.filterwarnings("error")
def test_no_images(vocabulary):
    rates, columns = rate(vocabulary)
    assert np.isnan(list(rates.values())).all() and not columns["pairs"].any()
    assert np.isnan(columns["accuracy"]).all() and np.isnan(columns["recall"]).all()


def test_accuracy_and_recall_by_verb(vocabulary):
    first = make_annotation([0, 1, RIDE], [0, 2, HOLD], [0, 2, THROW])
    second = make_annotation([0, 1, NO_INTERACTION], [0, 2, HOLD])
    ball, horse = ((BOXES[0], BOXES[2], label, 1, 1) for label in (BALL, HORSE))
    rates, columns = rate(
        vocabulary,
        (first, make_outputs(first, [ball], [{RIDE: 0.9}, {THROW: 0.6, HOLD: 0.4}])),
        (second, make_outputs(second, [horse], [{RIDE: 0.9}, {THROW: 0.9}])),
    )
    # Pairs without interaction do not count for the accuracy.
    assert rates["teacher_accuracy"] == pytest.approx(2 / 3)
    verbs = [RIDE, HOLD, THROW]
    assert columns["pairs"][[*verbs, NO_INTERACTION]].tolist() == [1, 2, 1, 1]
    assert columns["accuracy"][verbs].tolist() == [1, 0.5, 1]
    assert np.isnan(columns["accuracy"][NO_INTERACTION])
    assert columns["recall"][verbs].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    "proposals, expected",
    [
        ([], (0, 0, 0)),
        ([(BOXES[0], BOXES[1], HORSE, 1, 1)], (1, 0.5, 0.5)),
        ([(BOXES[0], BOXES[1], BALL, 1, 1)], (1, 0, 0)),
        ([(BOXES[1], BOXES[1], HORSE, 1, 1), (BOXES[0], BOXES[0], BALL, 1, 1)], (1, 0.5, 0)),
        ([(BOXES[0] + 2, BOXES[1] + 3, HORSE, 1, 1), (BOXES[0], BOXES[2], BALL, 1, 1)], (1, 1, 1)),
    ],
)
def test_recall(vocabulary, proposals, expected):
    image = make_annotation([0, 1, RIDE], [0, 2, HOLD])
    rates, _ = rate(vocabulary, (image, make_outputs(image, proposals, [])))
    assert tuple(rates[f"{name}_recall"] for name in ("person", "object", "pair")) == expected


def test_people_are_not_objects(vocabulary):
    image = make_annotation([0, 1, RIDE], [0, 0, HOLD])
    given = make_outputs(image, [(BOXES[0], BOXES[1], HORSE, 1, 1)], [])
    rates, _ = rate(vocabulary, (image, given))
    assert (rates["object_recall"], rates["pair_recall"]) == (1, 0.5)
