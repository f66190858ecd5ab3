import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from pipeline.vocabulary import load_vocabulary
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
        for name, value in vars(old[image].pairs).items():
            np.testing.assert_array_equal(getattr(new[image].pairs, name), value)
        np.testing.assert_array_equal(new[image].region_boxes, old[image].region_boxes)
        np.testing.assert_array_equal(new[image].embeddings, old[image].embeddings)


def assert_close_probabilities(found, expected):
    for image in expected.image_ids:
        np.testing.assert_allclose(
            found[image].probabilities, expected[image].probabilities, atol=1e-2
        )


def test_other_templates_give_the_outputs_of_a_new_build(config, shared_dataset, build):
    templates = (OTHER_TEMPLATE, "person {ing} {object}")
    expected = build(shared_dataset, out="fresh", templates=templates)
    rescore_cache(replace(config, templates=templates))
    old, new = map(open_cache, (config.cache, config.out))
    assert_same_pairs_and_regions(old, new)
    assert new.prompt_embeddings.prompts == expected.prompt_embeddings.prompts
    np.testing.assert_allclose(
        new.prompt_embeddings.embeddings, expected.prompt_embeddings.embeddings, atol=1e-5
    )
    assert_close_probabilities(new, expected)
    assert any(
        np.abs(new[image].probabilities - old[image].probabilities).max() > 1e-3
        for image in old.image_ids
    )
    old_parts, new_parts = old.manifest["parts"], new.manifest["parts"]
    changed = {name for name, value in new_parts.items() if old_parts.get(name) != value}
    assert changed == {"prompts", "rescored_from"}
    assert new_parts["prompts"] == expected.manifest["parts"]["prompts"]
    assert new_parts["rescored_from"] == old.fingerprint


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


def test_reading_and_rescoring_import_neither_torch_nor_pil(finished, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache\n"
        f"rescore_cache(RescoreConfig(Path({str(finished)!r}), Path({str(tmp_path / 'new')!r}),"
        " temperature=0.5))\n"
        "assert not {'torch', 'open_clip', 'dask', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def larger(vocabulary, tmp_path):
    """File of the toy vocabulary with a new object, its own in another order, and a new verb."""
    value = vocabulary.to_dict()
    objects = [{"name": "elephant", "id": 22}, *reversed(value["objects"])]
    verbs = [*value["verbs"], {"name": "photo", "ing": "photo"}]
    names = [entry["name"] for entry in objects]
    interactions = [
        [verb, names.index(vocabulary.objects[label])] for verb, label in value["interactions"]
    ]
    interactions += [[len(verbs) - 1, names.index(name)] for name in ("ball", "horse")]
    value |= {"name": "larger", "objects": objects, "verbs": verbs, "rare": [], "splits": {}}
    write_json(tmp_path / "larger.json", {**value, "interactions": interactions})
    return tmp_path / "larger.json"


def test_a_larger_vocabulary(config, vocabulary, larger):
    rescore_cache(replace(config, vocabulary=str(larger)))
    old, new = open_cache(config.cache), open_cache(config.out)
    assert new.vocabulary.digest() == load_vocabulary(larger).digest()
    new.check(load_vocabulary(larger), old.manifest["parts"]["annotations"])
    with_photo = [new.vocabulary.objects.index(name) for name in ("ball", "horse")]
    for image in old.image_ids:
        labels, old_labels = new[image].pairs.object_labels, old[image].pairs.object_labels
        assert [new.vocabulary.objects[label] for label in labels] == [
            vocabulary.objects[label] for label in old_labels
        ]
        found = new[image].probabilities
        np.testing.assert_array_equal(found[:, -1] > 0, np.isin(labels, with_photo))
        # The new verb takes its share from those that there were.
        shares = found[:, :-1] / found[:, :-1].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(shares, old[image].probabilities, atol=1e-2)


def test_objects_are_mapped_by_name(vocabulary, larger):
    new = load_vocabulary(larger)
    labels = map_object_labels(vocabulary, new, "f")
    assert [new.objects[label] for label in labels] == list(vocabulary.objects)
    with pytest.raises(InputError, match=r"f: objects: expected .* found none named elephant"):
        map_object_labels(new, vocabulary, "f")


def test_a_resumed_rescoring_gives_the_same_bytes(config, no_clip, messages, contents):
    config = replace(config, temperature=0.5)
    rescore_cache(config)
    before = contents(config.out)
    (config.out / MANIFEST).unlink()
    (config.out / SHARDS / "00001.h5").unlink()
    rescore_cache(config)
    assert contents(config.out) == before
    messages.clear()
    rescore_cache(config)
    assert "nothing to do" in messages[0]
    with pytest.raises(InputError, match=r"other settings \(logit_scale"):
        rescore_cache(replace(config, temperature=0.25))


def test_a_rescored_cache_can_be_rescored(config, tmp_path):
    rescore_cache(replace(config, templates=(OTHER_TEMPLATE,)))
    again = replace(config, cache=config.out, out=tmp_path / "again")
    rescore_cache(replace(again, templates=("a picture of person {ing} {object}",)))
    assert_close_probabilities(open_cache(again.out), open_cache(config.cache))


def without_embeddings(config, dataset, build, extraction):
    other = build(dataset, out="bare", extraction=replace(extraction, embeddings=False))
    return replace(config, cache=other.path, temperature=0.5)


def with_another_clip(config, dataset, build, extraction):
    weights = dataset / "teacher/open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return replace(config, templates=(OTHER_TEMPLATE,), clip_model=str(dataset / "teacher"))


def without_settings(config, dataset, build, extraction):
    folder = shutil.copytree(config.cache, config.out.parent / "copy")
    value = json.loads((folder / MANIFEST).read_text())
    write_json(folder / MANIFEST, {**value, "settings": {}})
    (folder / PLAN).unlink()
    return replace(config, cache=folder, templates=(OTHER_TEMPLATE,))


def changed(**changes):
    return lambda config, *_: replace(config, **changes)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (changed(), "expected --template, .* or --temperature, found nothing"),
        (without_embeddings, "expected region embeddings, found none"),
        (with_another_clip, "expected the cache's own CLIP, found another .clip.weights: "),
        (changed(templates=("a painting of person {ing} {object}",)), "painting"),
        (without_settings, "--clip-model: expected the cache's CLIP"),
        (changed(templates=("hi",)), "--template: expected"),
        (changed(vocabulary="no.json"), "no such vocabulary"),
        (changed(vocabulary="vcoco"), "found none named"),
    ],
)
def test_bad_input_leaves_no_files(config, dataset, build, extraction, make, text):
    with pytest.raises(InputError, match=text) as caught:
        rescore_cache(make(config, dataset, build, extraction))
    assert "\n" not in str(caught.value)
    assert not config.out.exists()
