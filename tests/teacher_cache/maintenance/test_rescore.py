import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file, write_json
from pipeline.vocabulary import load_vocabulary
from teacher_cache.build import build_cache
from teacher_cache.maintenance import rescore as module
from teacher_cache.maintenance.rescore import RescoreConfig, map_object_labels, rescore_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS

OTHER = "a photo of person {ing} {object}"


@pytest.fixture
def config(finished, tmp_path):
    return RescoreConfig(finished, tmp_path / "new", device="cpu")


@pytest.fixture
def no_clip(monkeypatch):
    """Fails whoever asks CLIP."""
    monkeypatch.setattr(module, "_load_encoder", lambda *_: pytest.fail("asks CLIP"))


def same_but_answers(old, new):
    assert new.image_ids == old.image_ids and new.failed == old.failed
    for image in old.image_ids:
        for name in vars(old[image].pairs):
            np.testing.assert_array_equal(
                getattr(new[image].pairs, name), getattr(old[image].pairs, name)
            )
        np.testing.assert_array_equal(new[image].region_boxes, old[image].region_boxes)
        np.testing.assert_array_equal(new[image].embeddings, old[image].embeddings)


@pytest.mark.parametrize("templates", [(OTHER,), (OTHER, "person {ing} {object}")])
def test_other_sentences_answer_as_a_fresh_build(config, dataset, build_config, templates):
    fresh = build_config(dataset, out="fresh", templates=templates)
    build_cache(fresh)
    rescore_cache(replace(config, templates=templates))
    old, new, wanted = map(open_cache, (config.cache, config.out, fresh.out))
    same_but_answers(old, new)
    assert new.prompt_embeddings.prompts == wanted.prompt_embeddings.prompts
    np.testing.assert_allclose(
        new.prompt_embeddings.embeddings, wanted.prompt_embeddings.embeddings, atol=1e-5
    )
    for image in wanted.image_ids:
        np.testing.assert_allclose(new[image].probabilities, wanted[image].probabilities, atol=1e-2)
    assert any(
        np.abs(new[image].probabilities - old[image].probabilities).max() > 1e-3
        for image in old.image_ids
    )
    changed = {
        name
        for name, value in new.manifest["parts"].items()
        if old.manifest["parts"].get(name) != value
    }
    assert changed == {"prompts", "rescored_from"}
    assert new.manifest["parts"]["prompts"] == wanted.manifest["parts"]["prompts"]
    assert new.manifest["parts"]["rescored_from"] == old.fingerprint


def test_the_old_sentences_give_the_old_answers(config, no_clip):
    old = open_cache(config.cache)
    rescore_cache(replace(config, temperature=1 / old.prompt_embeddings.logit_scale))
    for image in old.image_ids:
        np.testing.assert_allclose(
            open_cache(config.out)[image].probabilities, old[image].probabilities, atol=1e-2
        )


def test_another_temperature_asks_no_clip(config, no_clip):
    rescore_cache(replace(config, temperature=1e-3))
    old, new = open_cache(config.cache), open_cache(config.out)
    same_but_answers(old, new)
    assert new.prompt_embeddings.logit_scale == pytest.approx(1000)
    assert new.manifest["parts"]["logit_scale"] == new.prompt_embeddings.logit_scale
    np.testing.assert_array_equal(
        new.prompt_embeddings.embeddings, old.prompt_embeddings.embeddings
    )
    for image in old.image_ids:
        sharper = new[image].probabilities.max(1, initial=0)
        assert (sharper >= old[image].probabilities.max(1, initial=0) - 1e-3).all()


def test_no_image_is_opened_and_torch_stays_out(finished, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache\n"
        f"rescore_cache(RescoreConfig(Path({str(finished)!r}), Path({str(tmp_path / 'new')!r}),"
        " temperature=0.5))\n"
        "assert not {'torch', 'open_clip', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def larger(vocabulary, tmp_path, *more):
    """The toy dataset's objects in another order, a new verb, and more objects."""
    value = vocabulary.to_dict()
    objects = [*more, *reversed(value["objects"])]
    verbs = [*value["verbs"], {"name": "photo", "ing": "photo"}]
    names = [entry["name"] for entry in objects]
    interactions = [
        [verb, names.index(vocabulary.objects[label])] for verb, label in value["interactions"]
    ]
    interactions += [[len(verbs) - 1, names.index(name)] for name in ("ball", "horse")]
    value |= {"name": "larger", "objects": objects, "verbs": verbs, "rare": [], "splits": {}}
    write_json(tmp_path / "larger.json", {**value, "interactions": interactions})
    return tmp_path / "larger.json"


def test_a_larger_vocabulary(config, dataset, build_config, vocabulary, tmp_path):
    file = larger(vocabulary, tmp_path)
    rescore_cache(replace(config, vocabulary=str(file)))
    shutil.copy(file, dataset / "larger.json")
    toml = (dataset / "dataset.toml").read_text()
    assert 'vocabulary = "toy"' in toml
    (dataset / "dataset.toml").write_text(
        toml.replace('vocabulary = "toy"', 'vocabulary = "larger.json"')
    )
    fresh = build_config(dataset, out="fresh")
    build_cache(fresh)
    new, wanted = open_cache(config.out), open_cache(fresh.out)
    words = load_vocabulary(file)
    assert new.vocabulary.digest() == words.digest()
    new.check(words, wanted.manifest["parts"]["annotations"])
    for image in wanted.image_ids:
        np.testing.assert_array_equal(
            new[image].pairs.object_labels, wanted[image].pairs.object_labels
        )
        assert new[image].probabilities.shape[1] == 12
        np.testing.assert_allclose(new[image].probabilities, wanted[image].probabilities, atol=1e-2)


def test_objects_are_recognised_by_name(vocabulary, tmp_path):
    new = load_vocabulary(larger(vocabulary, tmp_path, {"name": "elephant", "id": 22}))
    numbers = map_object_labels(vocabulary, new, "f")
    assert [new.objects[number] for number in numbers] == list(vocabulary.objects)
    assert numbers[0] == len(numbers)
    with pytest.raises(InputError, match=r"f: objects: expected .* found none named elephant"):
        map_object_labels(new, vocabulary, "f")


def test_a_stopped_rescoring_goes_on_to_the_same_bytes(config, tmp_path, no_clip, messages):
    whole = replace(config, temperature=0.5)
    rescore_cache(whole)
    before = {path.name: sha256_of_file(path) for path in (config.out / SHARDS).iterdir()}
    (config.out / MANIFEST).unlink()
    (config.out / SHARDS / "00001.h5").unlink()
    rescore_cache(whole)
    after = {path.name: sha256_of_file(path) for path in (config.out / SHARDS).iterdir()}
    assert before == after
    messages.clear()
    rescore_cache(whole)
    assert "nothing to do" in messages[0]
    with pytest.raises(InputError, match=r"other settings \(logit_scale"):
        rescore_cache(replace(config, temperature=0.25))


def test_rescoring_again_goes_on_from_there(config, tmp_path):
    rescore_cache(replace(config, templates=(OTHER,)))
    again = replace(config, cache=config.out, out=tmp_path / "again")
    rescore_cache(replace(again, templates=("a picture of person {ing} {object}",)))
    old, new = open_cache(config.cache), open_cache(again.out)
    for image in old.image_ids:
        np.testing.assert_allclose(new[image].probabilities, old[image].probabilities, atol=1e-2)


def without_embeddings(config, dataset, build_config):
    other = build_config(dataset, out="bare")
    build_cache(replace(other, extraction=replace(other.extraction, embeddings=False)))
    return replace(config, cache=other.out, temperature=0.5)


def with_another_clip(config, dataset, build_config):
    weights = dataset / "teacher/open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return replace(config, templates=(OTHER,), clip_model=str(dataset / "teacher"))


def of_an_unknown_word(config, dataset, build_config):
    return replace(config, templates=("a painting of person {ing} {object}",))


def from_nowhere(config, dataset, build_config):
    folder = shutil.copytree(config.cache, config.out.parent / "copy")
    value = json.loads((folder / MANIFEST).read_text())
    write_json(folder / MANIFEST, {**value, "settings": {}})
    (folder / PLAN).unlink()
    return replace(config, cache=folder, templates=(OTHER,))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda config, *_: config, "expected --template, .* or --temperature, found nothing"),
        (without_embeddings, "expected region embeddings, found none"),
        (with_another_clip, "expected the cache's own CLIP, found another .clip.weights: "),
        (of_an_unknown_word, "painting"),
        (from_nowhere, "--clip-model: expected the cache's CLIP"),
        (lambda config, *_: replace(config, templates=("hi",)), "--template: expected"),
        (lambda config, *_: replace(config, vocabulary="no.json"), "no such vocabulary"),
        (lambda config, *_: replace(config, vocabulary="vcoco"), "found none named"),
    ],
)
def test_bad_input_leaves_nothing_behind(config, dataset, build_config, make, text):
    with pytest.raises(InputError, match=text) as caught:
        rescore_cache(make(config, dataset, build_config))
    assert "\n" not in str(caught.value)
    assert not config.out.exists()
