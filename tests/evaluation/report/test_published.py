import json
from importlib import resources

import pytest

from evaluation.report.score_tables import find_published_results
from evaluation.results import METRICS, Results
from pipeline.vocabulary import load_vocabulary


def result(**fields):
    values = {
        "name": "run",
        "kind": "student",
        "dataset": "hico-det",
        "vocabulary": "hico-det",
        "split": "ua",
        "unseen": (),
        "setting": "default",
        "metrics": dict.fromkeys(METRICS),
        "per_class": {},
        "num_images": 9546,
    }
    return Results(**{**values, **fields})


@pytest.mark.parametrize(
    ("split", "unseen", "seen", "full"),
    [
        ("ua", 23.04, 30.46, 29.22),
        ("uc3", 23.01, 30.39, 28.91),
        ("rf-uc-138", 22.04, 31.39, 29.52),
        ("nf-uc", 26.77, 26.66, 26.69),
    ],
)
def test_the_paper(split, unseen, seen, full):
    first = find_published_results(result(), split)[0]
    assert first.name == "EoID"
    assert first.metrics == pytest.approx(
        {"unseen": unseen / 100, "seen": seen / 100, "full": full / 100}
    )
    assert "arXiv:2204.03541" in first.source
    assert first.conditions


@pytest.mark.parametrize(("split", "best"), [("rf-uc", 41.8), ("uo", 48.7), ("uv", 36.9)])
def test_later_methods(split, best):
    (found,) = find_published_results(result(), split)
    assert found.metrics == pytest.approx({"unseen": best / 100})


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset": "toy", "vocabulary": "toy"},
        {"dataset": "mine"},
        {"setting": "known_object"},
    ],
)
def test_nothing_for_other_datasets_and_settings(fields):
    assert find_published_results(result(**fields), "ua") == ()
    assert find_published_results(result(), "full") == ()


def test_another_number_of_pictures_is_told():
    (found,) = find_published_results(result(num_images=500), "ua")
    assert found.conditions.endswith("all 9,546 test images instead of 500")


def test_every_split_is_one_of_the_vocabulary():
    text = (resources.files("evaluation.report") / "published.json").read_text(encoding="utf-8")
    for entry in json.loads(text)["results"]:
        vocabulary = load_vocabulary(entry["dataset"])
        assert set(entry["splits"]) <= set(vocabulary.splits)
        assert set(entry["metrics"]) <= {"full", "seen", "unseen"}
        assert all(1 < value < 100 for value in entry["metrics"].values())
