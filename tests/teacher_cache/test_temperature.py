import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pipeline.errors import InputError
from pipeline.files import read_json, sha256_of_file, write_json
from pipeline.splits import load_split
from teacher_cache.build import build
from teacher_cache.format import MANIFEST, SHARDS, fingerprint_of
from teacher_cache.reader import open_cache
from teacher_cache.rescore import RescoreConfig, rescore
from teacher_cache.seal import write_sealed
from teacher_cache.temperature import (
    LARGEST_SCALE,
    LEAST_SCALE,
    FitConfig,
    Judged,
    Labelled,
    describe_scale,
    fit_scale,
    fit_temperature,
    judged_pairs,
)
from teacher_cache.verify import VerifyConfig, verify

HIDDEN = {"carry", "kick", "push"}


def judged(count, scale, seed=0, noise=1.0):
    """Pairs labelled by a teacher whose true factor is `scale`."""
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-1, 1, (count, 6)).astype(np.float32)
    cosines[:, 5] = -np.inf
    chances = np.exp(log_softmax(scale * cosines[:, :5], axis=1))
    labels = np.zeros((count, 6), bool)
    labels[np.arange(count), [rng.choice(5, p=row / row.sum()) for row in chances]] = True
    return Judged(cosines, labels)


@pytest.mark.parametrize("scale", [0.5, 4.0, 20.0])
def test_the_likeliest_factor_is_found(scale):
    pairs = judged(4000, scale)
    found = fit_scale(pairs)
    best = minimize_scalar(
        lambda log: -describe_scale(pairs, np.exp(log)).likelihood, bounds=(-3, 5), method="bounded"
    )
    assert found.scale == pytest.approx(np.exp(best.x), rel=1e-3)
    assert found.scale == pytest.approx(scale, rel=0.15)
    for other in (0.8, 1.25):
        assert describe_scale(pairs, other * found.scale).likelihood < found.likelihood


def test_several_labels_of_a_pair_count_as_one():
    pairs = judged(3, 2.0)
    pairs.labels[0] = [True, True, False, False, False, False]
    wanted = log_softmax(2.0 * pairs.cosines, axis=1)
    told = [wanted[row][pairs.labels[row]].mean() for row in range(3)]
    assert describe_scale(pairs, 2.0).likelihood == pytest.approx(np.mean(told), rel=1e-5)


@pytest.mark.parametrize("sign, wanted", [(1, LARGEST_SCALE), (-1, LEAST_SCALE)])
def test_a_teacher_who_is_always_or_never_right_gets_a_bound(sign, wanted):
    cosines = np.array([[0.1, 0.9], [0.7, 0.2]], np.float32)
    labels = cosines * sign == (cosines * sign).max(axis=1, keepdims=True)
    assert fit_scale(Judged(cosines, labels)).scale == pytest.approx(wanted, rel=1e-4)


@pytest.fixture
def labelled(shared_dataset):
    return Labelled(shared_dataset, "ua")


def test_what_is_judged_are_the_answers_of_the_cache(finished, labelled, vocabulary):
    cache = open_cache(finished)
    found = judged_pairs(cache, cache.teacher, labelled, vocabulary)
    assert len(found) > 3 and found.labels.any(axis=1).all()
    logits = cache.teacher.logit_scale * found.cosines
    mine = np.exp(log_softmax(logits, axis=1))
    theirs = np.concatenate(
        [a.probabilities[a.pairs.sources == 0] for a in map(cache.__getitem__, cache.image_ids)]
    )
    # The cache's softmax has the unseen actions in it too; what is left of it is the same.
    hidden = [vocabulary.verbs.index(name) for name in HIDDEN]
    theirs[:, hidden] = 0
    theirs = theirs[theirs.sum(axis=1) > 0]
    theirs /= theirs.sum(axis=1, keepdims=True)
    for row in mine:
        assert np.abs(theirs - row).max(axis=1).min() < 1e-2


def test_a_fit_is_told_and_kept(finished, labelled, tmp_path):
    said = []
    file = tmp_path / "fit.json"
    fit = fit_temperature(FitConfig(finished, labelled, file), said.append)
    value = read_json(file)
    assert value["after"]["scale"] == fit.scale
    assert value["after"]["likelihood"] >= value["before"]["likelihood"]
    assert re.match(r"\d+ annotated pairs with seen labels", said[0])
    assert said[1].startswith("before: temperature") and said[2].startswith("fitted: temperature")
    with pytest.raises(InputError, match=r"fit\.json: exists"):
        fit_temperature(FitConfig(finished, labelled, file))


def hide(dataset, vocabulary, choose):
    """Rewrites the unseen labels of a dataset's annotations, and says how many."""
    path = dataset / "annotations/trainval_hico.json"
    value, count = json.loads(path.read_text()), 0
    unseen = {vocabulary.verbs.index(name) + 1 for name in HIDDEN}
    for image in value:
        for label in image["hoi_annotation"]:
            if label["category_id"] in unseen:
                thing = image["annotations"][label["object_id"]]["category_id"]
                row = vocabulary.object_ids.index(thing)
                fitting = [v for v in sorted(unseen) if vocabulary.valid[v - 1, row]]
                label["category_id"] = choose(label["category_id"], fitting)
                label["hoi_category_id"] = int(
                    vocabulary.interaction_ids[label["category_id"] - 1, row] + 1
                )
                count += 1
    path.write_text(json.dumps(value))
    return count


def test_unseen_labels_do_not_matter(finished, dataset, labelled, vocabulary, tmp_path):
    wanted = fit_temperature(FitConfig(finished, labelled))
    changed = hide(dataset, vocabulary, lambda old, all_: all_[(all_.index(old) + 1) % len(all_)])
    assert changed > 0
    # The same answers, for annotations that say something else about what is unseen.
    cache = shutil.copytree(finished, tmp_path / "cache")
    manifest = read_json(cache / MANIFEST)
    parts = manifest["parts"]
    parts["annotations"] = sha256_of_file(dataset / "annotations/trainval_hico.json")
    old, new = manifest["fingerprint"], fingerprint_of(parts)
    del manifest["sha256"]
    write_sealed(cache / MANIFEST, {**manifest, "fingerprint": new})
    for file in [*(cache / SHARDS).iterdir(), cache / "teacher.h5"]:
        file.write_bytes(file.read_bytes().replace(old.encode(), new.encode()))
    assert fit_temperature(FitConfig(cache, replace(labelled, dataset=dataset))) == wanted
    seen = fit_temperature(FitConfig(cache, Labelled(dataset, "full")))
    assert seen != wanted, "with their labels seen they do"


def test_rescoring_fits_and_a_repair_needs_no_labels(finished, dataset, labelled, tmp_path):
    fit = fit_temperature(FitConfig(finished, labelled))
    config = RescoreConfig(finished, tmp_path / "new", fitted_to=replace(labelled, dataset=dataset))
    said = []
    rescore(config, said.append)
    new = open_cache(config.out)
    assert new.teacher.logit_scale == pytest.approx(fit.scale)
    assert any(line.startswith("fitted: temperature") for line in said)
    rescore(config, said.append)
    assert said[-1].endswith("nothing to do")
    wanted = {path.name: sha256_of_file(path) for path in (config.out / SHARDS).iterdir()}
    (config.out / SHARDS / "00001.h5").unlink()
    shutil.rmtree(dataset)
    verify(VerifyConfig(config.out, repair=True), said.append)
    assert {path.name: sha256_of_file(path) for path in (config.out / SHARDS).iterdir()} == wanted


def without_embeddings(finished, dataset, build_config):
    other = build_config(dataset, out="bare")
    build(replace(other, asking=replace(other.asking, embeddings=False)))
    return FitConfig(other.out, Labelled(dataset, "ua"))


def of_another_dataset(finished, dataset, build_config):
    path = dataset / "annotations/trainval_hico.json"
    write_json(path, json.loads(path.read_text())[:-1])
    return FitConfig(finished, Labelled(dataset, "ua"))


def with_nothing_to_see(finished, dataset, build_config):
    split = dataset / "all.toml"
    verbs = ["sit_on", "carry", "hold", "kick", "push", "pull", "jump", "throw", "point"]
    split.write_text(f"unseen_verbs = {json.dumps(verbs)}")
    return FitConfig(finished, Labelled(dataset, str(split)))


@pytest.mark.parametrize(
    "make, says",
    [
        (without_embeddings, "expected region embeddings, found none"),
        (of_another_dataset, "does not fit this dataset"),
        (with_nothing_to_see, "expected annotated pairs with a seen label under split all"),
        (lambda f, d, b: FitConfig(f, Labelled(d, "zz")), "zz: no such split"),
    ],
)
def test_bad_input(finished, dataset, build_config, make, says):
    with pytest.raises(InputError, match=says) as caught:
        fit_temperature(make(finished, dataset, build_config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"temperature": 0.5}, "--temperature: expected none beside --fit-temperature, found 0.5"),
        ({"vocabulary": "world"}, "--vocabulary: expected none beside --fit-temperature"),
    ],
)
def test_two_wishes_are_refused(finished, labelled, tmp_path, changes, says):
    config = RescoreConfig(finished, tmp_path / "new", fitted_to=labelled, **changes)
    with pytest.raises(InputError, match=says):
        rescore(config)
    assert not config.out.exists()


def test_the_split_hides_what_it_should(vocabulary):
    split = load_split(vocabulary, "ua")
    assert {vocabulary.verbs[vocabulary.interactions[hoi][0]] for hoi in split.unseen} == HIDDEN
