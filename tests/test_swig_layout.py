"""The whole chain on the toy dataset in SWIG-HOI's layout, from checking it to predictions."""

import json

import pytest
from commands import MAINS, run_command
from training import read_lines

from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.files import read_json
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import PROPOSED

MODELS = "--detector toy --clip-model toy --device cpu"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("swig-layout")


@pytest.fixture(scope="module")
def command(root):
    """Runs a command in the folder; returns what it prints."""

    def run(line):
        name, *words = line.split()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            done = run_command(MAINS[name], name, *words)
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout

    return run


@pytest.fixture(scope="module")
def run(root, command):
    """Dataset, cache and a short run."""
    command("eoid-data toy toy --layout swig --train 8 --test 6 --seed 3")
    assert "train  8 " in command("eoid-data check toy")
    command(f"eoid-cache build toy --out cache {MODELS}")
    assert "images                  8" in command("eoid-cache inspect cache")
    command(
        "eoid-train student --data toy --cache cache --split ua --preset toy --epochs 2"
        " --batch-size 4 --workers 0 --device cpu --out run --test-every 1"
    )
    return root / "run"


def test_training_ends_with_the_scores_of_the_protocol(run, root, command):
    results = read_results(run / "results.json")
    assert (results.setting, results.known_object, results.split) == ("swig", None, "ua")
    (tested,) = read_lines(run / "test.jsonl")
    assert 0 <= tested["metrics"]["full"] < 1
    vocabulary = open_dataset(root / "toy").vocabulary
    # Interactions without annotated pairs count.
    assert len(results.per_class) == vocabulary.num_interactions
    printed = command(
        "eoid-eval swig run --data toy --split ua --json scores.json --official o.json"
    )
    again = read_results(root / "scores.json")
    assert again.metrics == pytest.approx(results.metrics, abs=1e-12)
    assert command("eoid-eval swig o.json --data toy --split ua") == printed
    assert set(read_json(root / "o.json")) == {"1", "2", "3", "4", "5", "6"}


def test_a_checkpoint_is_evaluated_and_predicts(run, root, command):
    command("eoid-train evaluate run --data toy --out evaluated --device cpu --workers 0 --limit 3")
    few = read_results(root / "evaluated/results.json")
    assert (few.setting, few.num_images, few.limit) == ("swig", 3, 3)
    command("eoid-predict run --data toy --out predicted --device cpu")
    assert read_json(root / "predicted/predictions.json")[0]["vocabulary"]["name"] == "toy"
    first = json.loads((run / "predictions.json").read_text())
    assert [entry["file_name"] for entry in first] == [
        entry["file_name"] for entry in read_json(root / "predicted/predictions.json")
    ]


def test_the_teacher_and_a_probe_are_scored_by_the_protocol(run, root, command):
    command(f"eoid-cache build toy --part test --out test-cache {MODELS}")
    command("eoid-cache evaluate test-cache --data toy --split ua --json teacher.json")
    assert read_results(root / "teacher.json").setting == "swig"
    command(
        "eoid-train probe --data toy --cache cache --test-cache test-cache --split ua --out probe"
        " --device cpu --epochs 1"
    )
    assert read_results(root / "probe/results.json").setting == "swig"


def test_annotated_candidates(run, root, command):
    """The published protocol of transductive settings; the results record it."""
    command("eoid-cache build toy --out annotated --candidates annotated --clip-model toy")
    cache = open_cache(root / "annotated")
    vocabulary = open_dataset(root / "toy").vocabulary
    for annotation in open_dataset(root / "toy").load("train").annotations:
        pairs = cache[annotation.image_id].pairs
        # People are no object of the toy dataset's interactions.
        is_person = annotation.labels == vocabulary.person
        num_pairs = is_person.sum() * (~is_person).sum()
        assert num_pairs == (pairs.sources == PROPOSED).sum() > 0
    command(
        "eoid-train student --data toy --cache annotated --split ua --preset toy --epochs 1"
        " --batch-size 4 --workers 0 --device cpu --out annotated-run"
    )
    assert read_results(root / "annotated-run/results.json").protocol == "annotated"
    assert read_results(run / "results.json").protocol == "detector"
