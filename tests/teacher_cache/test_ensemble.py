from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.files import sha256_of_file
from teacher_cache.build import build
from teacher_cache.ensemble import EnsembleConfig, ensemble, ensemble_parts
from teacher_cache.format import MANIFEST, SHARDS, fingerprint_of
from teacher_cache.reader import open_cache
from teacher_cache.rescore import RescoreConfig, rescore
from teacher_cache.verify import VerifyConfig, verify


@pytest.fixture(scope="module")
def others(finished, tmp_path_factory):
    """The same pairs, asked with two other temperatures."""
    folder = tmp_path_factory.mktemp("others")
    for name, temperature in (("sharp", 1e-3), ("soft", 1.0)):
        rescore(RescoreConfig(finished, folder / name, temperature=temperature))
    return folder / "sharp", folder / "soft"


def contents(folder):
    return {path.name: sha256_of_file(path) for path in sorted((folder / SHARDS).iterdir())}


def test_the_answers_are_the_mean(finished, others, tmp_path):
    said = []
    ensemble(EnsembleConfig((finished, *others), tmp_path / "new"), said.append)
    new, members = open_cache(tmp_path / "new"), [open_cache(f) for f in (finished, *others)]
    assert new.image_ids == members[0].image_ids and new.failed == members[0].failed
    for image in new.image_ids:
        found = new[image]
        mean = np.mean([each[image].probabilities for each in members], axis=0)
        np.testing.assert_allclose(found.probabilities, mean, atol=1e-3)
        for name in vars(found.pairs):
            np.testing.assert_array_equal(
                getattr(found.pairs, name), getattr(members[0][image].pairs, name)
            )
        assert found.embeddings is None
    assert "the mean of 3 teachers" in said[-1]
    verify(VerifyConfig(tmp_path / "new"), said.append)
    # The same CLIP read the texts of all three: a student may read them.
    assert new.text_model == members[0].text_model is not None


def test_the_order_does_not_matter(finished, others, tmp_path):
    ensemble(EnsembleConfig((finished, *others), tmp_path / "one"))
    ensemble(EnsembleConfig((*reversed(others), finished), tmp_path / "two"))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    one, two = open_cache(tmp_path / "one"), open_cache(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    parts = one.manifest["parts"]
    assert parts["ensemble_of"] == sorted(open_cache(f).fingerprint for f in (finished, *others))
    assert parts["annotations"] == open_cache(finished).manifest["parts"]["annotations"]
    assert "logit_scale" not in parts


def test_parts_of_unlike_teachers():
    members = [
        {"vocabulary": "v", "clip.model": "A", "clip.weights": "a", "level": "region"},
        {"vocabulary": "v", "clip.model": "A", "clip.weights": "b", "logit_scale": 3},
    ]
    parts = ensemble_parts(members)
    made = [fingerprint_of(each) for each in members]
    assert parts == {
        "vocabulary": "v", "clip.model": "A", "format_version": 1, "ensemble_of": made
    }  # fmt: skip
    assert len({fingerprint_of(parts), *made}) == 3


def test_a_stopped_ensemble_goes_on_to_the_same_bytes(finished, others, tmp_path):
    config = EnsembleConfig((finished, others[0]), tmp_path / "new")
    ensemble(config)
    before = contents(config.out)
    (config.out / MANIFEST).unlink()
    (config.out / SHARDS / "00001.h5").unlink()
    ensemble(config)
    assert contents(config.out) == before
    said = []
    ensemble(config, said.append)
    assert "nothing to do" in said[0]
    with pytest.raises(InputError, match=r"other settings \(ensemble_of"):
        ensemble(replace(config, caches=(finished, others[1])))


def test_a_repair_averages_again(finished, others, tmp_path):
    config = EnsembleConfig((finished, others[0]), tmp_path / "new")
    ensemble(config)
    before = contents(config.out)
    shard = config.out / SHARDS / "00000.h5"
    damaged = bytearray(shard.read_bytes())
    damaged[-9] ^= 1
    shard.write_bytes(damaged)
    verify(VerifyConfig(config.out, repair=True))
    assert contents(config.out) == before


def test_an_ensemble_cannot_be_asked_anew(finished, others, tmp_path):
    ensemble(EnsembleConfig((finished, others[0]), tmp_path / "new"))
    with pytest.raises(InputError, match="is an ensemble"):
        rescore(RescoreConfig(tmp_path / "new", tmp_path / "again", temperature=0.5))


def one_cache(finished, dataset, build_config):
    return (finished,)


def twice_the_same(finished, dataset, build_config):
    return (finished, finished)


def other_shards(finished, dataset, build_config):
    config = build_config(dataset, images_per_shard=2, templates=("person {ing} {object}",))
    build(config)
    return (finished, config.out)


def other_part(finished, dataset, build_config):
    config = build_config(dataset, part="test")
    build(config)
    return (finished, config.out)


def lost_image(finished, dataset, build_config):
    next(iter((dataset / "images/train2015").iterdir())).write_bytes(b"no picture")
    config = build_config(dataset, templates=("person {ing} {object}",))
    build(config)
    return (finished, config.out)


def other_pairs(finished, dataset, build_config):
    config = build_config(dataset)
    fewer = replace(config.asking, pairing=replace(config.asking.pairing, max_objects=1))
    build(replace(config, asking=fewer))
    return (finished, config.out)


@pytest.mark.parametrize(
    "make, says",
    [
        (one_cache, "expected two caches or more, found one"),
        (twice_the_same, "expected another teacher than"),
        (other_shards, "images per shard as in"),
        (other_part, "expected the pairs of .* found others: annotations: .* part: "),
        (lost_image, "expected the images of .* .1 are in one only"),
        (other_pairs, r"0000\d.h5: .*: expected the pairs of"),
    ],
)
def test_caches_that_do_not_fit(finished, dataset, build_config, tmp_path, make, says):
    caches = make(finished, dataset, build_config)
    with pytest.raises(InputError, match=says) as caught:
        ensemble(EnsembleConfig(caches, tmp_path / "new"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
