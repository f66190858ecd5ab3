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

OTHER_TEMPLATE = "a photo of person {ing} {object}"


@pytest.fixture
def config(finished, tmp_path):
    return RescoreConfig(finished, tmp_path / "new", device="cpu")


@pytest.fixture
def no_clip(monkeypatch):
    """Makes a test fail if CLIP is loaded."""
    monkeypatch.setattr(module, "load_text_encoder", lambda *_: pytest.fail("CLIP was loaded"))


def assert_same_pairs_and_regions(old, new):
    assert new.image_ids == old.image_ids and new.failed == old.failed
    for image in old.image_ids:
        for name in vars(old[image].pairs):
            np.testing.assert_array_equal(
                getattr(new[image].pairs, name), getattr(old[image].pairs, name)
            )
        np.testing.assert_array_equal(new[image].region_boxes, old[image].region_boxes)
        np.testing.assert_array_equal(new[image].embeddings, old[image].embeddings)


@pytest.mark.parametrize(
    "templates", [(OTHER_TEMPLATE,), (OTHER_TEMPLATE, "person {ing} {object}")]
)
def test_other_templates_give_the_outputs_of_a_new_build(config, dataset, build_config, templates):
    fresh = build_config(dataset, out="fresh", templates=templates)
    build_cache(fresh)
    rescore_cache(replace(config, templates=templates))
    old, new, expected = map(open_cache, (config.cache, config.out, fresh.out))
    assert_same_pairs_and_regions(old, new)
    assert new.prompt_embeddings.prompts == expected.prompt_embeddings.prompts
    np.testing.assert_allclose(
        new.prompt_embeddings.embeddings, expected.prompt_embeddings.embeddings, atol=1e-5
    )
    for image in expected.image_ids:
        np.testing.assert_allclose(
            new[image].probabilities, expected[image].probabilities, atol=1e-2
        )
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
    assert new.manifest["parts"]["prompts"] == expected.manifest["parts"]["prompts"]
    assert new.manifest["parts"]["rescored_from"] == old.fingerprint


def test_the_old_prompts_give_the_old_outputs(config, no_clip):
    old = open_cache(config.cache)
    rescore_cache(replace(config, temperature=1 / old.prompt_embeddings.logit_scale))
    for image in old.image_ids:
        np.testing.assert_allclose(
            open_cache(config.out)[image].probabilities, old[image].probabilities, atol=1e-2
        )


def test_another_temperature_loads_no_clip(config, no_clip):
    rescore_cache(replace(config, temperature=1e-3))
    old, new = open_cache(config.cache), open_cache(config.out)
    assert_same_pairs_and_regions(old, new)
    assert new.prompt_embeddings.logit_scale == pytest.approx(1000)
    assert new.manifest["parts"]["logit_scale"] == new.prompt_embeddings.logit_scale
    np.testing.assert_array_equal(
        new.prompt_embeddings.embeddings, old.prompt_embeddings.embeddings
    )
    for image in old.image_ids:
        top = new[image].probabilities.max(1, initial=0)
        assert (top >= old[image].probabilities.max(1, initial=0) - 1e-3).all()


def test_rescoring_imports_neither_torch_nor_pil(finished, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache\n"
        f"rescore_cache(RescoreConfig(Path({str(finished)!r}), Path({str(tmp_path / 'new')!r}),"
        " temperature=0.5))\n"
        "assert not {'torch', 'open_clip', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_larger_vocabulary(vocabulary, tmp_path, *new_objects):
    """The toy vocabulary with new objects, its own in another order, and a new verb."""
    value = vocabulary.to_dict()
    objects = [*new_objects, *reversed(value["objects"])]
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
    file = write_larger_vocabulary(vocabulary, tmp_path)
    rescore_cache(replace(config, vocabulary=str(file)))
    shutil.copy(file, dataset / "larger.json")
    toml = (dataset / "dataset.toml").read_text()
    assert 'vocabulary = "toy"' in toml
    (dataset / "dataset.toml").write_text(
        toml.replace('vocabulary = "toy"', 'vocabulary = "larger.json"')
    )
    fresh = build_config(dataset, out="fresh")
    build_cache(fresh)
    new, expected = open_cache(config.out), open_cache(fresh.out)
    larger = load_vocabulary(file)
    assert new.vocabulary.digest() == larger.digest()
    new.check(larger, expected.manifest["parts"]["annotations"])
    for image in expected.image_ids:
        np.testing.assert_array_equal(
            new[image].pairs.object_labels, expected[image].pairs.object_labels
        )
        assert new[image].probabilities.shape[1] == 12
        np.testing.assert_allclose(
            new[image].probabilities, expected[image].probabilities, atol=1e-2
        )


def test_objects_are_mapped_by_name(vocabulary, tmp_path):
    new = load_vocabulary(
        write_larger_vocabulary(vocabulary, tmp_path, {"name": "elephant", "id": 22})
    )
    labels = map_object_labels(vocabulary, new, "f")
    assert [new.objects[label] for label in labels] == list(vocabulary.objects)
    assert labels[0] == len(labels)
    with pytest.raises(InputError, match=r"f: objects: expected .* found none named elephant"):
        map_object_labels(new, vocabulary, "f")


def test_a_resumed_rescoring_gives_the_same_bytes(config, tmp_path, no_clip, messages):
    config = replace(config, temperature=0.5)
    rescore_cache(config)
    before = {path.name: sha256_of_file(path) for path in (config.out / SHARDS).iterdir()}
    (config.out / MANIFEST).unlink()
    (config.out / SHARDS / "00001.h5").unlink()
    rescore_cache(config)
    after = {path.name: sha256_of_file(path) for path in (config.out / SHARDS).iterdir()}
    assert before == after
    messages.clear()
    rescore_cache(config)
    assert "nothing to do" in messages[0]
    with pytest.raises(InputError, match=r"other settings \(logit_scale"):
        rescore_cache(replace(config, temperature=0.25))


def test_a_rescored_cache_can_be_rescored(config, tmp_path):
    rescore_cache(replace(config, templates=(OTHER_TEMPLATE,)))
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
    return replace(config, templates=(OTHER_TEMPLATE,), clip_model=str(dataset / "teacher"))


def with_an_unknown_word(config, dataset, build_config):
    return replace(config, templates=("a painting of person {ing} {object}",))


def without_settings(config, dataset, build_config):
    folder = shutil.copytree(config.cache, config.out.parent / "copy")
    value = json.loads((folder / MANIFEST).read_text())
    write_json(folder / MANIFEST, {**value, "settings": {}})
    (folder / PLAN).unlink()
    return replace(config, cache=folder, templates=(OTHER_TEMPLATE,))


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda config, *_: config, "expected --template, .* or --temperature, found nothing"),
        (without_embeddings, "expected region embeddings, found none"),
        (with_another_clip, "expected the cache's own CLIP, found another .clip.weights: "),
        (with_an_unknown_word, "painting"),
        (without_settings, "--clip-model: expected the cache's CLIP"),
        (lambda config, *_: replace(config, templates=("hi",)), "--template: expected"),
        (lambda config, *_: replace(config, vocabulary="no.json"), "no such vocabulary"),
        (lambda config, *_: replace(config, vocabulary="vcoco"), "found none named"),
    ],
)
def test_bad_input_leaves_no_files(config, dataset, build_config, make, text):
    with pytest.raises(InputError, match=text) as caught:
        rescore_cache(make(config, dataset, build_config))
    assert "\n" not in str(caught.value)
    assert not config.out.exists()
