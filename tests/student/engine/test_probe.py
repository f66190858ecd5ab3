"""A toy dataset with two caches whose region embeddings tell the action, with some noise."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run_command

from evaluation.hico.average_precision import evaluate
from evaluation.predictions import read_predictions
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from student.cli import main
from student.config import ProbeConfig
from student.data.targets import label_cached_pairs
from student.engine.probe import (
    MIN_IOU,
    ProbeRun,
    collect_pairs,
    detect,
    probe_loss,
    read_batch,
    run_probe,
    train_probe,
)
from student.models.probe import VerbProbe
from teacher_cache.reader.cache import open_cache, read_outputs
from teacher_cache.reader.detections import pair_detections

CPU = torch.device("cpu")
PARTS = {"clip.model": "by hand", "clip.weights": "0" * 64}
CONFIG = ProbeConfig(hidden_dim=64, epochs=20, batch_size=64, learning_rate=3e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_teacher_outputs, write_cache, vocabulary, sentences):
    """Folder with the dataset `toy` and the caches `train` and `test`."""
    folder = tmp_path_factory.mktemp("probe")
    write_toy(folder / "toy", train=60, test=30, seed=4, workers=1)
    dataset = open_dataset(folder / "toy")
    random = np.random.default_rng(0)
    nothing = random.standard_normal(16)
    for part in ("train", "test"):
        file, outputs = dataset.load(part), {}
        for row, annotation in enumerate(file.annotations):
            own = make_teacher_outputs(annotation, row)
            hois = vocabulary.interaction_ids[own.probabilities.argmax(1), own.pairs.object_labels]
            does = own.probabilities.max(1, keepdims=True) > 0.5
            embeddings = np.where(does, sentences.embeddings[hois], nothing / 4)
            embeddings = embeddings + 0.05 * random.standard_normal(embeddings.shape)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            outputs[annotation.image_id] = replace(own, embeddings=embeddings.astype(np.float32))
        write_cache(folder / part, vocabulary, file.digest, outputs, part=part, **PARTS)
    return folder


@pytest.fixture(scope="module")
def split(vocabulary):
    return load_split(vocabulary, "ua")


@pytest.fixture(scope="module")
def probe_run(folder):
    """`probe_run(out, **settings)`: a `ProbeRun` with some settings of its configuration."""

    def make(out, **settings):
        places = {name: folder / part for name, part in zip(NAMES, FOLDERS, strict=True)}
        return ProbeRun(
            **places, split="ua", out=out, config=replace(CONFIG, **settings), device="cpu"
        )

    return make


NAMES, FOLDERS = ("data", "cache", "test_cache"), ("toy", "train", "test")


@pytest.fixture(scope="module")
def finished(probe_run, tmp_path_factory):
    """Folder and results of a probe, with a file of its detections."""
    out = tmp_path_factory.mktemp("probes") / "distilled"
    return out, run_probe(replace(probe_run(out), predictions=out / "predictions.json"))


@pytest.fixture(scope="module")
def annotations(folder):
    return open_dataset(folder / "toy").load("train").annotations


@pytest.fixture(scope="module")
def train(folder, annotations, split, vocabulary):
    """`train(change, cache, **settings)` gives the weights of a probe that is trained on changed
    annotations."""

    def make(change=lambda annotation: annotation, cache="train", **settings):
        changed = {one.image_id: change(one) for one in annotations}
        config = replace(CONFIG, epochs=2, **settings)
        probe = train_probe(open_cache(folder / cache), changed, split, vocabulary, config, CPU)
        return probe.state_dict()

    return make


def assert_equal(first, second):
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_scores_and_files(finished, folder, vocabulary, split):
    out, results = finished
    assert {path.name for path in out.iterdir()} == {"probe.pt", "results.json", "predictions.json"}
    written = read_results(out / "results.json")
    assert written.metrics == results.metrics and written.known_object is not None
    assert (written.name, written.kind, written.split) == ("distilled", "probe", "ua")
    assert (written.training_split, written.protocol, written.seed) == ("ua", "detector", 0)
    assert written.distillation is True and written.num_images == 30 and written.limit is None
    assert written.predictions.samefile(out / "predictions.json")
    truth = open_dataset(folder / "toy").load("test").annotations
    found = read_predictions(out / "predictions.json", vocabulary)
    assert evaluate(truth, found, vocabulary).mean_ap() == pytest.approx(results.metrics["full"])
    # A head that gives all actions of an object one score.
    cache, constant = open_cache(folder / "test"), []
    for image_id in cache.image_ids:
        outputs = cache[image_id]
        equal = vocabulary.valid[:, outputs.pairs.object_labels].T.astype(np.float32)
        constant.append(
            pair_detections(image_id, replace(outputs, probabilities=equal), vocabulary)
        )
    assert results.metrics["full"] > evaluate(truth, constant, vocabulary).mean_ap() + 0.3
    assert results.metrics["seen"] > 0.6 and results.metrics["unseen"] > 0.6


def test_the_control_does_not_find_unseen_actions(finished, probe_run, tmp_path):
    control = run_probe(probe_run(tmp_path / "control", distillation=False))
    assert control.distillation is False and control.predictions is None
    assert control.recipe != finished[1].recipe
    assert control.metrics["unseen"] < finished[1].metrics["unseen"] - 0.3
    assert control.metrics["seen"] == pytest.approx(finished[1].metrics["seen"], abs=0.1)


def test_the_checkpoint_gives_the_same_detections(finished, folder, vocabulary):
    out, results = finished
    saved = torch.load(out / "probe.pt", weights_only=True)
    assert saved["format"] == "eoid-probe-1" and saved["config"]["epochs"] == CONFIG.epochs
    assert saved["split"]["name"] == "ua" and saved["embeddings"].items() >= PARTS.items()
    features = len(saved["model"]["mean"])
    probe = VerbProbe(features, vocabulary.num_objects, vocabulary.num_verbs, CONFIG.hidden_dim)
    probe.load_state_dict(saved["model"])
    found = detect(probe.eval(), open_cache(folder / "test"), vocabulary, CPU)
    truth = open_dataset(folder / "toy").load("test").annotations
    assert evaluate(truth, found, vocabulary).mean_ap() == results.metrics["full"]


def test_equal_seeds_give_equal_weights(train):
    weights = train()
    assert_equal(weights, train())
    assert not torch.equal(weights["features.weight"], train(seed=1)["features.weight"])


def test_unseen_labels_have_no_effect(train, folder, annotations, split, vocabulary, write_cache):
    """Neither the labels of unseen interactions, nor what the cache contains of annotated pairs
    without seen label."""
    expected = train()
    mask, changed = split.unseen_mask(vocabulary.num_interactions), []

    def unseen_rows(annotation):
        labels = annotation.labels[annotation.hois[:, 1]]
        return mask[vocabulary.interaction_ids[annotation.hois[:, 2], labels]]

    def drop(annotation):
        changed.append(unseen_rows(annotation).sum())
        return replace(annotation, hois=annotation.hois[~unseen_rows(annotation)])

    assert_equal(expected, train(drop))
    assert sum(changed) > 20
    cache, outputs, random = open_cache(folder / "train"), {}, np.random.default_rng(1)
    for annotation in annotations:
        own = cache[annotation.image_id]
        _, used = label_cached_pairs(annotation, own.pairs, split, vocabulary, MIN_IOU)
        # Every pair of these caches has a region of its own.
        noise = random.random(own.embeddings.shape).astype(np.float32)
        embeddings = np.where(used[:, None], own.embeddings, noise)
        verbs = np.where(used[:, None], own.probabilities, 1)
        outputs[annotation.image_id] = replace(own, embeddings=embeddings, probabilities=verbs)
    write_cache(folder / "other", vocabulary, "", outputs, part="train", **PARTS)
    assert_equal(expected, train(cache="other"))


def test_targets_are_labels_and_the_teachers_probabilities_of_unseen_interactions(
    folder, annotations, split, vocabulary
):
    cache, by_image = open_cache(folder / "train"), {one.image_id: one for one in annotations}
    pairs = collect_pairs(cache, 0, by_image, split, vocabulary)
    assert pairs.labels.shape == (len(pairs.rows), -(-vocabulary.num_verbs // 8))
    assert len(set(pairs.rows.tolist())) == len(pairs.rows)
    image = cache.image_ids[3]
    first, end = cache.shard_arrays(0)["images/pair_offsets"][3:5]
    outputs = read_outputs(cache.shard_arrays(0), 3)
    labels, used = label_cached_pairs(by_image[image], outputs.pairs, split, vocabulary, MIN_IOU)
    order = np.flatnonzero((pairs.rows >= first) & (pairs.rows < end))
    np.testing.assert_array_equal(pairs.rows[order] - first, np.flatnonzero(used))
    unseen = np.zeros((vocabulary.num_objects, vocabulary.num_verbs), dtype=np.float32)
    for hoi in split.unseen:
        verb, label = vocabulary.interactions[hoi]
        unseen[label, verb] = 1
    features, objects, targets = read_batch(cache, 0, pairs, order, unseen, vocabulary)
    np.testing.assert_array_equal(objects, outputs.pairs.object_labels[used])
    np.testing.assert_array_equal(features[:, :16], outputs.embeddings[used].astype(np.float32))
    expected = np.where(labels, 1, outputs.probabilities * unseen[outputs.pairs.object_labels])
    np.testing.assert_array_equal(targets, expected[used].astype(np.float32))
    assert labels.any() and not labels.all(1).any()
    _, _, control = read_batch(cache, 0, pairs, order, 0 * unseen, vocabulary)
    np.testing.assert_array_equal(control, labels[used])


def test_the_loss_is_of_interactions_only():
    logits = torch.tensor([[0.0, 50.0], [0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [0.25, 1.0]])
    valid = torch.tensor([[True, False], [True, True]])
    assert probe_loss(logits, targets, valid).item() == pytest.approx(3 * np.log(2) / 2)


def test_without_labels_there_is_nothing_to_train(train):
    with pytest.raises(InputError, match="expected pairs with a label seen in ua, found none"):
        train(lambda annotation: replace(annotation, hois=annotation.hois[:0]))


@pytest.fixture
def refused(folder, tmp_path):
    """`refused(option=value)`: the error line of a command that writes nothing."""

    def call(**changes):
        options = {
            **{name: folder / part for name, part in zip(NAMES, FOLDERS, strict=True)},
            "split": "ua",
            "out": tmp_path / "out",
            "device": "cpu",
            **changes,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        words = [str(word).replace("_", "-") if str(word)[:2] == "--" else word for word in words]
        done = run_command(main, "eoid-train", "probe", *words)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert not list(tmp_path.glob("out/probe.pt"))
        (line,) = done.stderr.splitlines()
        return line

    return call


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("split", "uu", "uu: no such split of toy"),
        ("epochs", 0, "0 is not in the range"),
        ("learning_rate", "nan", "expected a finite number, above 0, found nan"),
        ("cache", "test", "test: the cache does not fit this dataset: annotations"),
        ("test_cache", "train", "part: train, now test"),
        ("test_cache", "nowhere", "nowhere"),
    ],
)
def test_bad_input(refused, folder, option, value, message):
    path = folder / value if option.endswith("cache") else value
    assert message in refused(**{option: path})


def rewrite(folder, out, part, write_cache, vocabulary, change=lambda own: own, **parts):
    """A copy of a cache of this part, with other parts of the fingerprint or changed outputs."""
    cache = open_cache(folder / part)
    outputs = {name: change(cache[name]) for name in cache.image_ids}
    digest = open_dataset(folder / "toy").load(part).digest
    return write_cache(out, vocabulary, digest, outputs, part=part, **{**PARTS, **parts})


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_cache_without_embeddings(refused, folder, tmp_path, write_cache, vocabulary, part):
    bare = rewrite(
        *(folder, tmp_path / "bare", part, write_cache, vocabulary),
        lambda own: replace(own, embeddings=None),
    )
    line = refused(**{"cache" if part == "train" else "test_cache": bare})
    assert f"{bare}: expected region embeddings, found none" in line
    assert "--no-embeddings" in line


def spoil(own, name, value):
    """Outputs with this value in an array of the format."""
    array = {
        "regions/embedding": own.embeddings,
        "pairs/human_box": own.pairs.human_boxes,
        "pairs/object_score": own.pairs.object_scores,
        "pairs/action_probabilities": own.probabilities,
    }[name]
    array = array if array.flags.writeable else array.copy()
    array.flat[-1:] = value
    return replace(own, embeddings=array) if name == "regions/embedding" else own


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("train", "regions/embedding", np.nan),
        ("test", "regions/embedding", np.inf),
        ("train", "pairs/human_box", np.inf),
        ("test", "pairs/object_score", np.nan),
        ("train", "pairs/action_probabilities", np.nan),
    ],
)
def test_numbers_that_are_not_finite(
    refused, folder, tmp_path, write_cache, vocabulary, part, name, value
):
    bad = rewrite(
        *(folder, tmp_path / "bad", part, write_cache, vocabulary),
        lambda own: spoil(own, name, value),
    )
    line = refused(**{"cache" if part == "train" else "test_cache": bad})
    assert f"{bad}/shards/" in line and f"{name}: expected finite numbers, found others" in line


def test_a_diverged_loss(train, monkeypatch):
    monkeypatch.setattr(
        "student.engine.probe.probe_loss", lambda *_: torch.tensor(torch.nan, requires_grad=True)
    )
    with pytest.raises(InputError, match="train: loss of epoch 0: expected a number, found nan"):
        train()


def test_a_test_cache_of_another_teacher(refused, folder, tmp_path, write_cache, vocabulary):
    other = rewrite(
        folder, tmp_path / "other", "test", write_cache, vocabulary, **{"clip.model": "another"}
    )
    assert "clip.model: by hand, now another" in refused(test_cache=other)


def test_a_test_cache_of_other_widths(refused, folder, tmp_path, write_cache, vocabulary):
    """As of a teacher of one's own whose fingerprint did not change with its code."""
    narrow = rewrite(
        *(folder, tmp_path / "narrow", "test", write_cache, vocabulary),
        lambda own: replace(own, embeddings=own.embeddings[:, :5]),
    )
    line = refused(test_cache=narrow)
    assert "narrow: expected region embeddings of width 16, as in" in line and "width 5" in line


@pytest.mark.parametrize("option", ["out", "predictions"])
def test_files_that_cannot_be_written(refused, tmp_path, option):
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file, found a file" in refused(**{option: tmp_path / "file" / "new"})


def test_other_prompts_and_detectors_are_accepted(
    probe_run, folder, tmp_path, write_cache, vocabulary, finished
):
    parts = {"prompts": "others", "detector.model": "another", "person_threshold": 0.3}
    other = rewrite(folder, tmp_path / "other", "test", write_cache, vocabulary, **parts)
    results = run_probe(replace(probe_run(tmp_path / "out"), test_cache=other))
    assert results.metrics == finished[1].metrics


def test_results_are_kept_without_overwrite(refused, finished, folder, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "kept")
    before = json.loads((out / "results.json").read_text())
    assert "probe.pt" in refused(out=out) and "--overwrite" in refused(out=out)
    (out / "probe.pt").unlink()
    assert "results.json" in refused(out=out)
    assert json.loads((out / "results.json").read_text()) == before
