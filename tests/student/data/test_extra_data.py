import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from student.data.extra_data import ExtraPaths, parse_extra_data
from student.engine.evaluate import evaluate_checkpoint
from student.engine.run import RunConfig, run_student
from student.engine.run_inputs import RunRequest, build_inputs
from student.engine.train_step import TrainStep
from student.utils.distributed import SINGLE_PROCESS
from student.weights.checkpoint_file import load_checkpoint

OPTIONS = {"epochs": 2, "batch_size": 8, "precision": "float32", "extra_ratio": 0.5}
PICTURES = 'name = "pictures"\nvocabulary = "toy"\n[train]\nimages = "images"\n'


@pytest.fixture(scope="module")
def sources(tmp_path_factory, answer, write_cache, vocabulary):
    """`sources["none"]` and `sources["all"]`: another toy dataset's pictures without and with
    labels.
    """
    root = tmp_path_factory.mktemp("extra")
    write_toy(root / "all", train=12, test=1, seed=8, workers=1)
    labelled = open_dataset(root / "all")
    shutil.copytree(labelled.part("train").images, root / "none" / "images")
    (root / "none" / "dataset.toml").write_text(PICTURES)
    found = labelled.load("train")
    answers = {one.image_id: answer(one, row) for row, one in enumerate(found.annotations)}
    alone = {}
    for name, own in answers.items():
        proposed = own.pairs.sources == 1
        pairs = type(own.pairs)(**{key: x[proposed] for key, x in vars(own.pairs).items()})
        alone[name] = replace(
            own,
            pairs=pairs,
            probabilities=own.probabilities[proposed],
            region_indices=np.arange(len(pairs)),
            region_boxes=own.region_boxes[proposed],
        )
    # One picture could not be read.
    del alone[found.annotations[0].image_id]
    digest = open_dataset(root / "none").load("train").digest
    write_cache(root / "none-cache", vocabulary, digest, alone, source="pictures")
    write_cache(root / "all-cache", vocabulary, found.digest, answers, source="labelled")
    return {name: ExtraPaths(root / name, root / f"{name}-cache") for name in ("none", "all")}


@pytest.fixture
def run_request(dataset_root, cache_path):
    return RunRequest(dataset_root, cache_path, "ua", "toy", OPTIONS)


@pytest.mark.parametrize(
    ("text", "data", "cache"),
    [("a:b", "a", "b"), ("/x/a:1:/y/b", "/x/a:1", "/y/b"), ("a::b", "a:", "b")],
)
def test_places(text, data, cache):
    assert parse_extra_data([text]) == (ExtraPaths(Path(data), Path(cache)),)


def test_places_with_colons_are_found_by_what_is_there(tmp_path):
    for name in ("data:1", "cache:2:3"):
        (tmp_path / name).mkdir()
    data, cache = tmp_path / "data:1", tmp_path / "cache:2:3"
    assert parse_extra_data([f"{data}:{cache}", "a:b"]) == (
        ExtraPaths(data, cache),
        ExtraPaths(Path("a"), Path("b")),
    )
    assert parse_extra_data([]) == ()


@pytest.mark.parametrize("text", ["", "a", "a:", ":b", ":"])
def test_texts_that_name_no_place(text):
    with pytest.raises(
        InputError, match=f"--extra-data: expected DATASET:CACHE, found {text or 'noth'}"
    ):
        parse_extra_data([text])


def test_pictures_without_labels_teach_what_the_teacher_says(run_request, sources, vocabulary):
    material = build_inputs(replace(run_request, extra=(sources["none"],)), SINGLE_PROCESS)
    (extra,) = material.extra
    asked = load_split(vocabulary, "ua").distilled_verbs
    assert len(extra.images) == 11 and extra.describe() == {
        "name": "pictures",
        "cache": extra.cache.fingerprint,
        "images": 11,
        "labelled": 0,
        "protocol": "detector",
    }
    pairs = 0
    for index in range(len(extra.images)):
        sample, answers = extra.images[0, index], extra.cache[extra.images.records[index].id]
        targets = extra.images.targets(index)
        assert (
            not targets.exhaustive_labels
            and not targets.verb_labels.any()
            and not targets.seen.any()
        )
        np.testing.assert_array_equal(targets.teacher_probs, answers.probabilities * asked)
        assert sample.targets.dataset_index == 1 and sample.targets.exhaustive_labels.tolist() == [
            False
        ]
        pairs += len(targets.seen)
    assert pairs > 11
    assert extra.images[0, 3].image_id == extra.images[5, 3].image_id
    assert not torch.equal(extra.images[0, 3].image, extra.images[5, 3].image)


def test_images_with_a_seen_label_count_as_annotated(run_request, sources, vocabulary):
    material = build_inputs(
        replace(run_request, extra=(sources["all"], sources["none"])), SINGLE_PROCESS
    )
    labelled, pictures = material.extra
    assert (labelled.name, pictures.name) == ("toy-2", "pictures")
    annotated = [
        bool(labelled.images.targets(i).exhaustive_labels) for i in range(len(labelled.images))
    ]
    hidden = [not labelled.images.targets(i).verb_labels.any() for i in range(len(labelled.images))]
    assert annotated == [not one for one in hidden] and labelled.describe()["labelled"] == sum(
        annotated
    )
    # An image of the main source is annotated in any case.
    main = material.images
    assert all(main.targets(i).exhaustive_labels for i in range(len(main)))


def test_sources_that_do_not_fit(run_request, sources, cache_path, reading_cache, tmp_path):
    def refused(says, *places, **changes):
        with pytest.raises(InputError, match=says) as caught:
            build_inputs(replace(run_request, extra=places, **changes), SINGLE_PROCESS)
        assert "\n" not in str(caught.value)

    none = sources["none"]
    other = shutil.copytree(none.data, tmp_path / "other")
    text = (other / "dataset.toml").read_text()
    (other / "dataset.toml").write_text(text.replace('"toy"', '"hico-det"'))
    refused(r"other: expected.*found hico-det", ExtraPaths(other, none.cache))
    refused(
        "cache: the cache does not fit this dataset: annot",
        ExtraPaths(sources["all"].data, none.cache),
    )
    refused("--extra-data: expected", none, none)
    refused("--extra-data: expected", ExtraPaths(none.data, cache_path))
    refused("none: no such", ExtraPaths(tmp_path / "none", none.cache))
    refused("--extra-ratio: expected --extra-data beside it, found none")
    reads = {"cache": reading_cache, "options": {"verb_head": "text"}}
    refused("none-cache: expected region embeddings for --embedding-weight", none, **reads)
    few = {"options": {"shots": 1}, "split": "full"}
    refused(r"--shots: expected.*found full", **few)


@pytest.fixture(scope="module")
def finished(dataset_root, cache_path, sources, tmp_path_factory):
    """A run with both further sources, and what it returned."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run_request = RunRequest(dataset_root, cache_path, "ua", "toy", {**OPTIONS, "shots": 1},
                    extra=(sources["none"], sources["all"]))  # fmt: skip
    config = RunConfig(run_request, out, device="cpu", workers=0, log_every=1)
    return config, run_student(config)


def test_a_run_tells_of_its_sources(finished, tmp_path):
    config, results = finished
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    # 16 images of the main source, 4 in every step.
    assert len(lines) == 8
    for line in lines:
        found = line["sources"]
        assert set(found) == {"toy", "pictures", "toy-2"} and found["toy"]["images"] == 4
        assert sum(one["images"] for one in found.values()) == 8
        assert found["pictures"]["losses"]["verb_hard"] == 0
        for name in found["toy"]["losses"]:
            total = sum(one["losses"][name] for one in found.values())
            assert total == pytest.approx(line["losses"][name], rel=1e-4, abs=1e-6), name
        assert not any("/" in name for name in line["losses"])
    plan = json.loads((config.out / "config.json").read_text())
    assert [one["name"] for one in plan["extra_data"]] == ["pictures", "toy-2"]
    read = read_results(config.out / "results.json")
    assert list(read.sources) == plan["extra_data"] == list(results.sources) and read.shots == 1
    assert read.unseen == load_split(open_dataset(config.request.data).vocabulary, "ua").unseen
    shots = json.loads((config.out / "shots.json").read_text())
    names = [one["interaction"] for one in shots]
    assert names and len(set(names)) == len(names)
    again = evaluate_checkpoint(config.out, config.request.data, None, tmp_path, "cpu", 0, False)
    assert (again.sources, again.shots) == (results.sources, 1)


def test_a_stopped_run_with_further_sources_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch
):
    config, _ = finished
    stopped = replace(config, out=tmp_path / "stopped")
    whole = TrainStep.__call__

    def interrupted(self, *words):
        if self.scheduler.last_epoch == 5:
            raise KeyboardInterrupt
        return whole(self, *words)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_student(stopped)
    monkeypatch.setattr(TrainStep, "__call__", whole)
    # Another pool is another run.
    fewer = replace(stopped, request=replace(stopped.request, extra=stopped.request.extra[:1]))
    with pytest.raises(InputError, match="holds a run with another extra"):
        run_student(fewer)
    run_student(stopped)
    mine, theirs = (load_checkpoint(one.out / "checkpoint.pt") for one in (stopped, config))
    for name, value in theirs.weights.items():
        assert torch.equal(mine.weights[name], value), name


@pytest.mark.slow
def test_two_processes_mix_as_one_does(start, start_processes, student_words, sources, tmp_path):
    further = [f"{sources[name].data}:{sources[name].cache}" for name in ("none", "all")]
    config = tmp_path / "options.toml"
    config.write_text(f"extra-data = {json.dumps(further)}\nextra-ratio = 0.6\n")
    options = ("--config", config, "--batch-size", 7, "--epochs", 1, "--workers", 0)
    alone, together = tmp_path / "alone", tmp_path / "together"
    ends = [one() for one in start_processes(student_words(together, *options))]
    assert [code for code, _, _ in ends] == [0, 0], ends
    code, _, err = start(student_words(alone, *options))()
    assert code == 0 and "every step: 3 images of the dataset, 4 of further sources" in err, err
    mine, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (alone, together)
    )
    assert len(mine) == len(theirs) == 5
    for first, second in zip(mine, theirs, strict=True):
        for name, one in first["sources"].items():
            other = second["sources"][name]
            assert one["images"] == other["images"]
            # Later steps follow weights that differ by rounding.
            if first["step"] == 1:
                assert other["losses"] == pytest.approx(one["losses"], rel=1e-3, abs=1e-5), name
