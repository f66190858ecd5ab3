import json
import multiprocessing
import pickle
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import teacher_cache
from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.reader import cache as cache_module
from teacher_cache.reader.cache import PromptEmbeddings, open_cache
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import MANIFEST, SHARDS, TEACHER, vocabulary_to_dict
from teacher_cache.writer.shard import read_shard_record, write_shard, write_teacher_file

SHARD_IMAGES = [["a.jpg", "b.jpg"], [], ["c.jpg"]]


@pytest.fixture
def outputs(make_outputs, vocabulary):
    verbs = vocabulary.num_verbs
    return {
        "a.jpg": make_outputs(5, verbs, seed=1),
        "b.jpg": make_outputs(0, verbs, seed=2),
        "c.jpg": make_outputs(2, verbs, seed=3),
    }


@pytest.fixture
def folder(tmp_path, outputs, vocabulary):
    """A finished cache of three images in three shards."""
    parts = {"vocabulary": vocabulary.digest(), "annotations": "1" * 64}
    fingerprint = compute_fingerprint(parts)
    (tmp_path / SHARDS).mkdir()
    shards = []
    for index, images in enumerate(SHARD_IMAGES):
        path = tmp_path / SHARDS / f"{index:05d}.h5"
        shard_outputs = [outputs[image] for image in images]
        write_shard(path, fingerprint, images, shard_outputs, {}, vocabulary.num_verbs)
        shards.append(read_shard_record(path, fingerprint).to_dict())
    text = PromptEmbeddings((("riding", "ride"), ("sitting", "sit")), np.eye(2, 6), 14.5)
    write_teacher_file(tmp_path / TEACHER, fingerprint, text)
    value = {"format_version": 1, "fingerprint": fingerprint, "parts": parts, "shards": shards}
    write_json(tmp_path / MANIFEST, {**value, "failed": {"d.jpg": "no such image"}})
    return tmp_path


def assert_same(found, expected):
    for name in vars(expected.pairs):
        np.testing.assert_array_equal(getattr(found.pairs, name), getattr(expected.pairs, name))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-3)
    np.testing.assert_array_equal(found.region_indices, expected.region_indices)
    np.testing.assert_array_equal(found.region_boxes, expected.region_boxes)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=2e-3)


def edit_manifest(folder, **changes):
    value = json.loads((folder / MANIFEST).read_text()) | changes
    write_json(folder / MANIFEST, value | {"fingerprint": compute_fingerprint(value["parts"])})


def test_round_trip(folder, outputs):
    cache = open_cache(folder)
    assert len(cache) == 3
    assert cache.image_ids == ["a.jpg", "b.jpg", "c.jpg"]
    assert "a.jpg" in cache and "d.jpg" not in cache
    assert cache.failed == {"d.jpg": "no such image"}
    for image_id, expected in outputs.items():
        assert_same(cache[image_id], expected)
    with pytest.raises(KeyError):
        cache["d.jpg"]


def test_only_embeddings_are_views(folder):
    cache = open_cache(folder)
    found = cache["a.jpg"]
    assert found.embeddings.dtype == np.float16
    assert not found.embeddings.flags.writeable and not found.embeddings.flags.owndata
    for array in (found.probabilities, found.pairs.human_boxes):
        assert array.dtype == np.float32
        array[:] = 7
    assert cache["a.jpg"].probabilities.max() < 7
    assert found.pairs.object_labels.dtype == np.int64


def test_few_shards_are_open_and_layouts_are_read_once(folder, outputs, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_OPEN_SHARDS", 1)
    read, paths = cache_module.read_layout, []
    monkeypatch.setattr(
        cache_module, "read_layout", lambda path, *rest: paths.append(path) or read(path, *rest)
    )
    cache = open_cache(folder)
    for image_id in ["a.jpg", "c.jpg", "a.jpg", "b.jpg", "c.jpg"]:
        assert_same(cache[image_id], outputs[image_id])
    assert len(paths) == 2 and cache.shard_arrays.cache_info().currsize == 1


def sum_of_probabilities(cache, image_id):
    return float(cache[image_id].probabilities.sum())


def read_in_pools(folder):
    cache = open_cache(folder)
    expected = [sum_of_probabilities(cache, image_id) for image_id in cache.image_ids]
    assert len(pickle.dumps(cache)) < 500
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(partial(sum_of_probabilities, cache), cache.image_ids) == expected


def test_reading_in_other_processes(folder):
    # Not in the tests' process: it has threads, and a fork of it may copy a held lock.
    process = multiprocessing.get_context("spawn").Process(target=read_in_pools, args=(folder,))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def test_check_names_what_differs(folder, vocabulary):
    cache = open_cache(folder)
    cache.check()
    cache.check(vocabulary, "1" * 64, "train")
    with pytest.raises(InputError, match=r"annotations: 111111111111, now 222222222222"):
        cache.check(vocabulary, "2" * 64)
    other = replace(vocabulary, verbs=(*vocabulary.verbs[:-1], "wave"))
    with pytest.raises(InputError, match="does not fit this dataset: vocabulary"):
        cache.check(other, "1" * 64)
    cache.manifest["vocabulary"] = {"name": "toy"}
    with pytest.raises(InputError, match="names of the vocabularies: toy, now street"):
        cache.check(replace(other, name="street"))
    cache.manifest["parts"]["part"] = "test"
    with pytest.raises(InputError, match="does not fit this dataset: part: test, now train"):
        cache.check(part="train")


def test_the_vocabulary(folder, vocabulary):
    # That of an early cache is a built-in one.
    assert open_cache(folder).vocabulary == vocabulary
    other = replace(vocabulary, name="mine", verbs=(*vocabulary.verbs[:-1], "wave"))
    edit_manifest(folder, parts={"vocabulary": other.digest()})
    with pytest.raises(InputError, match="vocabulary: expected the vocabulary of the outputs"):
        _ = open_cache(folder).vocabulary
    edit_manifest(folder, vocabulary=vocabulary_to_dict(other))
    assert open_cache(folder).vocabulary.digest() == other.digest()
    edit_manifest(folder, vocabulary=vocabulary_to_dict(vocabulary))
    with pytest.raises(InputError, match="vocabulary: expected the vocabulary whose digest"):
        _ = open_cache(folder).vocabulary


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: path.unlink(), "found damage"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "found damage"),
        (lambda path: path.write_bytes(b"no HDF5 at all"), "found damage"),
        (lambda path: write_shard(path, "other", [], [], {}, 3), "belongs to another cache"),
        (lambda path: shutil.copy(path.with_name("00002.h5"), path), "expected the images listed"),
    ],
)
def test_damaged_shards_are_refused_every_time(folder, damage, text):
    damage(folder / SHARDS / "00000.h5")
    cache = open_cache(folder)
    for _ in range(2):
        with pytest.raises(InputError, match=text) as caught:
            cache["a.jpg"]
        assert "00000.h5" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_indices_out_of_range_are_refused_every_time(folder, outputs, vocabulary):
    cache = open_cache(folder)
    wrong = replace(outputs["c.jpg"], region_indices=np.array([0, 99]))
    path = folder / SHARDS / "00002.h5"
    write_shard(path, cache.fingerprint, ["c.jpg"], [wrong], {}, vocabulary.num_verbs)
    cache.shard_layout(2)
    for _ in range(2):
        with pytest.raises(InputError, match=r"00002\.h5: .*pairs/region has an index"):
            cache["c.jpg"]


def test_the_package_offers_the_reader(folder):
    assert teacher_cache.open_cache(folder).image_ids == ["a.jpg", "b.jpg", "c.jpg"]
    assert teacher_cache.TeacherCache is cache_module.TeacherCache
    assert not hasattr(teacher_cache, "write_cache")
