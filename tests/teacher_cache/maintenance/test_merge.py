import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from teacher_cache.build import build_cache
from teacher_cache.maintenance.merge import MergeConfig, merge_caches
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS, TEACHER
from teacher_cache.reader.shard import map_shard, read_layout
from teacher_cache.writer.shard import write_shard_arrays

ANNOTATIONS = "annotations/trainval_hico.json"


def contents(folder):
    """Digests of the shards and of `teacher.h5`."""
    files = [*sorted((folder / SHARDS).iterdir()), folder / TEACHER]
    return {path.name: sha256_of_file(path) for path in files}


@pytest.fixture
def jobs(finished, tmp_path):
    """`jobs(*shares)`: folders of jobs that made the shards of one share each, without manifest."""

    def make(*shares):
        folders = []
        for number, names in enumerate(shares):
            folder = shutil.copytree(finished, tmp_path / f"job{number}")
            (folder / MANIFEST).unlink()
            for path in (folder / SHARDS).iterdir():
                if path.name not in names:
                    path.unlink()
            folders.append(folder)
        return tuple(folders)

    return make


@pytest.mark.parametrize(
    "shares",
    [
        (["00000.h5", "00002.h5"], ["00001.h5"]),
        (["00000.h5"], ["00002.h5"], ["00001.h5"]),
        ([], ["00000.h5", "00001.h5", "00002.h5"]),
        (["00000.h5", "00001.h5"], ["00001.h5", "00002.h5"]),
    ],
)
def test_jobs_on_separate_disks(jobs, finished, tmp_path, shares, capsys):
    merge_caches(MergeConfig(jobs(*shares), tmp_path / "new"))
    lines = capsys.readouterr().out.splitlines()
    assert contents(tmp_path / "new") == contents(finished)
    new, old = open_cache(tmp_path / "new"), open_cache(finished)
    for name in ("fingerprint", "parts", "layout", "counts", "shards", "vocabulary"):
        assert new.manifest[name] == old.manifest[name]
    assert "7 images" in lines[-1]


def test_a_finished_cache_and_itself(finished, tmp_path):
    merge_caches(MergeConfig((finished, finished), tmp_path / "new"))
    assert contents(tmp_path / "new") == contents(finished)


def image_names(dataset):
    return sorted(path.name for path in (dataset / "images/train2015").iterdir())


def test_images_on_separate_disks(dataset, build_config, finished, tmp_path):
    """Each cache is finished, but contains only the images on its machine's disk."""
    names = image_names(dataset)
    folders = []
    for number, absent in enumerate((names[1::2], names[::2])):
        part = shutil.copytree(dataset, tmp_path / f"disk{number}")
        # The last image is on no disk.
        for name in {*absent, names[-1]}:
            (part / "images/train2015" / name).unlink()
        config = build_config(part, out=f"part{number}")
        build_cache(config)
        folders.append(config.out)
    merge_caches(MergeConfig(tuple(folders), tmp_path / "new"))
    new, old = open_cache(tmp_path / "new"), open_cache(finished)
    assert sorted(new.image_ids) == names[:-1]
    assert new.failed == {names[-1]: "no such image"}
    for image in new.image_ids:
        np.testing.assert_allclose(new[image].probabilities, old[image].probabilities, atol=2e-3)


@pytest.fixture
def halves(dataset, build_config, tmp_path):
    """Caches of the first three images and of the others, built from separate annotations."""
    entries = json.loads((dataset / ANNOTATIONS).read_text())
    folders = []
    for number, part in enumerate((entries[3:], entries[:3])):
        half = shutil.copytree(dataset, tmp_path / f"half{number}")
        (half / ANNOTATIONS).write_text(json.dumps(part))
        config = build_config(half, out=f"half{number}-cache")
        build_cache(config)
        folders.append(config.out)
    return tuple(folders)


def test_parts_of_a_dataset_give_the_cache_of_one_build(halves, dataset, finished, tmp_path):
    merge_caches(MergeConfig(halves, tmp_path / "new", dataset))
    new, old = open_cache(tmp_path / "new"), open_cache(finished)
    assert new.fingerprint == old.fingerprint
    assert new.image_ids == old.image_ids
    assert [shard["images"] for shard in new.manifest["shards"]] == [
        shard["images"] for shard in old.manifest["shards"]
    ]
    assert contents(tmp_path / "new") == contents(finished)


def test_a_merge_can_be_resumed(halves, dataset, finished, tmp_path, messages):
    config = MergeConfig(halves, tmp_path / "new", dataset)
    merge_caches(config)
    (config.out / MANIFEST).unlink()
    (config.out / SHARDS / "00002.h5").unlink()
    merge_caches(config)
    assert contents(config.out) == contents(finished)
    messages.clear()
    merge_caches(config)
    assert "nothing to do" in messages[0]


def test_embeddings_are_kept_if_all_caches_have_them(
    jobs, dataset, build_config, finished, tmp_path, messages
):
    bare = build_config(dataset, out="bare")
    build_cache(replace(bare, extraction=replace(bare.extraction, embeddings=False)))
    messages.clear()
    merge_caches(MergeConfig((*jobs(["00000.h5"]), bare.out), tmp_path / "new"))
    assert "without region embeddings" in messages[0]
    new, old = open_cache(tmp_path / "new"), open_cache(finished)
    assert new.manifest["layout"]["embeddings"] is False
    for image in old.image_ids:
        assert new[image].embeddings is None
        np.testing.assert_array_equal(new[image].probabilities, old[image].probabilities)


def change_a_probability(folder, fingerprint):
    path = folder / SHARDS / "00001.h5"
    layout = read_layout(path, fingerprint)
    arrays = {name: array.copy() for name, array in map_shard(path, layout).items()}
    arrays["pairs/action_probabilities"][-1, 0] += 0.25
    write_shard_arrays(path, fingerprint, layout.images, layout.failed, arrays)


def test_different_outputs_are_refused(jobs, finished, tmp_path):
    folders = jobs(["00000.h5", "00001.h5"], ["00001.h5", "00002.h5"])
    cache = open_cache(finished)
    change_a_probability(folders[1], cache.fingerprint)
    last = cache.shard_layout(1).images[-1]
    with pytest.raises(InputError, match=rf"job1: {last}: expected the outputs of .*job0, found"):
        merge_caches(MergeConfig(folders, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def other_threshold(finished, dataset, build_config, jobs, tmp_path):
    config = build_config(dataset, out="other")
    pairing = replace(config.extraction.pairing, person_threshold=0.07)
    build_cache(replace(config, extraction=replace(config.extraction, pairing=pairing)))
    return MergeConfig((finished, config.out), tmp_path / "new")


def other_part(finished, dataset, build_config, jobs, tmp_path):
    config = build_config(dataset, out="other", part="test")
    build_cache(config)
    return MergeConfig((finished, config.out), tmp_path / "new")


def train_and_test(*given):
    return replace(other_part(*given), dataset=given[1])


def foreign_images(*given):
    return replace(train_and_test(*given), part="train")


def other_sizes(finished, dataset, build_config, jobs, tmp_path):
    config = build_config(dataset, out="other", images_per_shard=4)
    build_cache(config)
    return MergeConfig((finished, config.out), tmp_path / "new")


def missing_shard(finished, dataset, build_config, jobs, tmp_path):
    return MergeConfig(jobs(["00000.h5"], ["00002.h5"]), tmp_path / "new")


def damaged_shard(finished, dataset, build_config, jobs, tmp_path):
    folders = jobs(["00000.h5"], ["00001.h5", "00002.h5"])
    path = folders[1] / SHARDS / "00001.h5"
    path.write_bytes(path.read_bytes()[:2000])
    return MergeConfig(folders, tmp_path / "new")


def missing_part(finished, dataset, build_config, jobs, tmp_path):
    return MergeConfig(jobs(["00000.h5", "00002.h5"]), tmp_path / "new", dataset)


def other_pairs(finished, dataset, build_config, jobs, tmp_path):
    entries = json.loads((dataset / ANNOTATIONS).read_text())
    entries[0]["annotations"][0]["bbox"][0] += 1
    (dataset / ANNOTATIONS).write_text(json.dumps(entries))
    return MergeConfig((finished,), tmp_path / "new", dataset)


def other_vocabulary(finished, dataset, build_config, jobs, tmp_path):
    file = dataset / "dataset.toml"
    file.write_text(file.read_text().replace('vocabulary = "toy"', 'vocabulary = "hico-det"'))
    return MergeConfig((finished,), tmp_path / "new", dataset)


@pytest.mark.parametrize(
    "make, text",
    [
        (other_threshold, r"another \(person_threshold: 0.06, now 0.07\)$"),
        (other_part, r"another \(annotations: .*; part: train, now test\); --data joins"),
        (train_and_test, "--part: expected"),
        (foreign_images, r"other: expected.*found toy_test"),
        (other_sizes, "expected 3 images per shard .* found 4; --data joins"),
        (missing_shard, "expected 3 images of shard 00001.h5, found 0"),
        (damaged_shard, r"00001.h5: expected"),
        (missing_part, "3 of 7 images are in none, first toy_train_00000004"),
        (other_pairs, r"toy_train_00000001.jpg: expected"),
        (other_vocabulary, "the cache does not fit this dataset: vocabulary"),
        (lambda *given: MergeConfig((given[0], given[1]), given[4] / "new"), "toy: expected"),
        (lambda *given: MergeConfig((given[0],), given[1]), "toy: expected"),
    ],
)
def test_caches_that_do_not_match_are_refused(
    finished, dataset, build_config, jobs, tmp_path, make, text
):
    with pytest.raises(InputError, match=text) as caught:
        merge_caches(make(finished, dataset, build_config, jobs, tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
