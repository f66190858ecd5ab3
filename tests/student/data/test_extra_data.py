import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import assert_equal_weights, interrupted, logged

from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json
from student.data.dataset_part import describe_extra_dataset, parse_extra_data
from student.engine.evaluate import evaluate_checkpoint
from student.engine.run import run_student
from student.engine.run_inputs import build_inputs
from student.utils.distributed import SINGLE_PROCESS

OPTIONS = {"epochs": 2, "extra_ratio": 0.5}
UNLABELLED_DATASET = 'name = "pictures"\nvocabulary = "toy"\n[train]\nimages = "images"\n'


def only_proposed(outputs):
    rows = outputs.pairs.sources == 1
    pairs = replace(outputs.pairs, **{name: x[rows] for name, x in vars(outputs.pairs).items()})
    return replace(
        outputs,
        pairs=pairs,
        probabilities=outputs.probabilities[rows],
        region_indices=np.arange(len(pairs)),
        region_boxes=outputs.region_boxes[rows],
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory, make_teacher_outputs, make_cache, write_cache, vocabulary):
    """Values of --extra-data for another toy dataset, without annotations as "none" and with them
    as "all"."""
    root = tmp_path_factory.mktemp("extra")
    write_toy(root / "all", train=12, test=1, seed=8, workers=1)
    labelled = open_dataset(root / "all")
    shutil.copytree(labelled.part("train").images, root / "none" / "images")
    (root / "none" / "dataset.toml").write_text(UNLABELLED_DATASET)
    annotations = labelled.load("train")
    # The first image could not be read when the cache was built.
    proposed_only = {
        one.image_id: only_proposed(make_teacher_outputs(one, row))
        for row, one in enumerate(annotations.annotations[1:])
    }
    digest = open_dataset(root / "none").load("train").digest
    write_cache(root / "none-cache", vocabulary, digest, proposed_only, source="pictures")
    make_cache(root / "all-cache", annotations, source="labelled")
    return {name: f"{root / name}:{root / name}-cache" for name in ("none", "all")}


@pytest.fixture
def open_extra(configure_run, tmp_path):
    """`open_extra(value, ...)`: the run's inputs with these extra datasets."""

    def make(*values, **changes):
        config = configure_run(tmp_path / "run", extra_data=values, **{**OPTIONS, **changes})
        return build_inputs(config, SINGLE_PROCESS)

    return make


def test_parse_extra_data_splits_at_the_last_colon():
    assert parse_extra_data("/x/a:1:/y/b") == (Path("/x/a:1"), Path("/y/b"))
    for text in ("", "a", "a:", ":b", ":"):
        message = f"--extra-data: expected DATASET:CACHE, found {text or 'noth'}"
        with pytest.raises(InputError, match=message):
            parse_extra_data(text)


def test_unlabelled_images_have_only_teacher_targets(open_extra, sources, vocabulary):
    (extra,) = open_extra(sources["none"]).extra
    distilled = load_split(vocabulary, "ua").distilled_verbs
    assert len(extra) == describe_extra_dataset(extra)["images"] == 11
    assert describe_extra_dataset(extra)["labelled"] == 0
    pairs = 0
    for index in range(len(extra)):
        sample, outputs = extra[0, index], extra.cache[extra.records[index].id]
        targets = extra.targets(index)
        assert not targets.exhaustive_labels
        assert not targets.verb_labels.any() and not targets.seen.any()
        np.testing.assert_array_equal(targets.teacher_probs, outputs.probabilities * distilled)
        assert sample.targets.dataset_index == 1
        assert sample.targets.exhaustive_labels.tolist() == [False]
        pairs += len(targets.seen)
    assert pairs > 11
    assert extra[0, 3].image_id == extra[5, 3].image_id
    assert not torch.equal(extra[0, 3].image, extra[5, 3].image)


def test_caches_are_read_from_copies_that_the_first_process_of_a_machine_makes(
    open_extra, sources, configure_run, tmp_path
):
    disk = tmp_path / "disk"
    expected = open_extra(sources["all"])
    inputs = open_extra(sources["all"], stage_cache=disk)
    caches = [inputs.cache, inputs.extra[0].cache]
    assert {cache.path.parent for cache in caches} == {disk}
    assert inputs.plan(None, None, None) == expected.plan(None, None, None)
    config = configure_run(tmp_path / "run", stage_cache=tmp_path / "other", **OPTIONS)
    with pytest.raises(InputError, match="expected a cache folder"):
        # No process with local rank 0 has made the copy.
        build_inputs(config, replace(SINGLE_PROCESS, local_rank=1))
    config = replace(config, cache=tmp_path, stage_cache=disk)
    with pytest.raises(InputError, match=f"{tmp_path}: expected a cache folder"):
        build_inputs(config, SINGLE_PROCESS)


def test_images_with_a_seen_label_have_exhaustive_labels(open_extra, sources):
    inputs = open_extra(sources["all"], sources["none"])
    labelled, unlabelled = inputs.extra
    assert (labelled.name, unlabelled.name) == ("toy-2", "pictures")
    targets = [labelled.targets(index) for index in range(len(labelled))]
    exhaustive = [bool(one.exhaustive_labels) for one in targets]
    assert exhaustive == [bool(one.verb_labels.any()) for one in targets]
    assert describe_extra_dataset(labelled)["labelled"] == sum(exhaustive)
    # All images of the main dataset have exhaustive labels.
    main = inputs.images
    assert all(main.targets(index).exhaustive_labels for index in range(len(main)))


def test_extra_datasets_that_do_not_fit(open_extra, sources, cache_path, text_cache, tmp_path):
    def refused(message, *values, **changes):
        with pytest.raises(InputError, match=message) as caught:
            open_extra(*values, **changes)
        assert "\n" not in str(caught.value)

    none, (data, cache) = sources["none"], parse_extra_data(sources["none"])
    other = shutil.copytree(data, tmp_path / "other")
    text = (other / "dataset.toml").read_text()
    (other / "dataset.toml").write_text(text.replace('"toy"', '"hico-det"'))
    refused(r"other: expected.*found hico-det", f"{other}:{cache}")
    labelled, _ = parse_extra_data(sources["all"])
    refused("cache: the cache does not fit this dataset: annot", f"{labelled}:{cache}")
    refused("--extra-data: expected", none, none)
    refused("--extra-data: expected", f"{data}:{cache_path}")
    refused("none: no such", f"{tmp_path / 'none'}:{cache}")
    refused("--extra-ratio: expected --extra-data")
    message = "none-cache: expected region embeddings for --embedding-weight"
    refused(message, none, cache=text_cache, verb_head="text")
    refused(r"--shots: expected.*found full", none, shots=1, split="full")


@pytest.fixture(scope="module")
def finished(configure_run, sources, tmp_path_factory):
    """The configuration of a run with both extra datasets, and its results."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    extra = (sources["none"], sources["all"])
    config = configure_run(out, extra_data=extra, log_every=1, shots=1, **OPTIONS)
    return config, run_student(config)


def test_a_run_records_its_extra_datasets(finished, tmp_path):
    config, results = finished
    lines = logged(config.out)
    # The main dataset has 16 images, of which every step has 4.
    assert len(lines) == 8
    for line in lines:
        by_dataset = line["sources"]
        assert set(by_dataset) == {"toy", "pictures", "toy-2"} and by_dataset["toy"]["images"] == 4
        assert sum(one["images"] for one in by_dataset.values()) == 8
        assert by_dataset["pictures"]["losses"]["verb_hard"] == 0
        for name in by_dataset["toy"]["losses"]:
            total = sum(one["losses"][name] for one in by_dataset.values())
            assert total == pytest.approx(line["losses"][name], rel=1e-4, abs=1e-6), name
        assert not any("/" in name for name in line["losses"])
    plan = read_json(config.out / "config.json")
    assert [one["name"] for one in plan["extra_data"]] == ["pictures", "toy-2"]
    read = read_results(config.out / "results.json")
    assert list(read.sources) == plan["extra_data"] == list(results.sources) and read.shots == 1
    assert read.unseen == load_split(open_dataset(config.data).vocabulary, "ua").unseen
    names = [one["interaction"] for one in read_json(config.out / "shots.json")]
    assert names and len(set(names)) == len(names)
    again = evaluate_checkpoint(config.out, config.data, None, tmp_path, "cpu", 0, False)
    assert (again.sources, again.shots) == (results.sources, 1)


def test_a_resumed_run_with_extra_datasets_has_the_same_weights(finished, tmp_path):
    config, _ = finished
    stopped = replace(config, out=tmp_path / "stopped")
    with interrupted(6):
        run_student(stopped)
    # A run with other extra datasets does not resume it.
    with pytest.raises(InputError, match="extra"):
        run_student(replace(stopped, extra_data=stopped.extra_data[:1]))
    run_student(stopped)
    assert_equal_weights(stopped.out, config.out)


@pytest.mark.slow
def test_two_processes_mix_datasets_as_one_does(train_alone_and_together, sources, tmp_path):
    config = tmp_path / "options.toml"
    config.write_text(f"extra_data = {json.dumps([*sources.values()])}\nextra_ratio = 0.6\n")
    alone, together, err = train_alone_and_together("--config", config, "--epochs", 1)
    assert "images per step: 3 of the dataset, 4 of extra datasets" in err
    assert len(alone) == len(together) == 5
    for expected, found in zip(alone, together, strict=True):
        for name, dataset in expected["sources"].items():
            assert found["sources"][name]["images"] == dataset["images"]
    # In later steps the weights differ by rounding.
    for name, dataset in alone[0]["sources"].items():
        losses = pytest.approx(dataset["losses"], rel=1e-3, abs=1e-5)
        assert together[0]["sources"][name]["losses"] == losses
