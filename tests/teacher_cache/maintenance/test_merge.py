import shutil

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from teacher_cache.maintenance.merge import merge_caches
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS
from teacher_cache.reader.shard import map_shard, read_layout
from teacher_cache.writer.shard import write_shard_arrays

FIRST, SECOND, THIRD = NAMES = ("00000.h5", "00001.h5", "00002.h5")


@pytest.fixture
def jobs(finished, tmp_path):
    """`jobs(*shares)`: folders of jobs that made the shards of one share each, without manifest."""

    def make(*shares):
        folders = []
        for number, names in enumerate(shares):
            folder = shutil.copytree(finished, tmp_path / f"job{number}")
            (folder / MANIFEST).unlink()
            for name in {*NAMES} - {*names}:
                (folder / SHARDS / name).unlink()
            folders.append(folder)
        return folders

    return make


@pytest.mark.parametrize(
    "shares", [([FIRST], [THIRD], [SECOND]), ([], [*NAMES]), ([FIRST, SECOND], [SECOND, THIRD])]
)
def test_jobs_on_separate_disks(jobs, finished, tmp_path, contents, shares, capsys):
    merge_caches(jobs(*shares), tmp_path / "new")
    assert "7 images" in capsys.readouterr().out
    assert contents(tmp_path / "new") == contents(finished)


def test_images_on_separate_disks(dataset, build, finished, tmp_path):
    """Each cache is finished, but contains only the images on its machine's disk."""
    names = sorted(path.name for path in (dataset / "images/train2015").iterdir())
    folders = []
    for number, absent in enumerate((names[1::2], names[::2])):
        part = shutil.copytree(dataset, tmp_path / f"disk{number}")
        # Two images are on no disk.
        for name in {*absent, names[4], names[-1]}:
            (part / "images/train2015" / name).unlink()
        folders.append(build(part, out=f"part{number}").path)
    merge_caches(folders, tmp_path / "new")
    new, old = open_cache(tmp_path / "new"), open_cache(finished)
    assert sorted(new.image_ids) == [*names[:4], names[5]]
    assert new.failed == dict.fromkeys((names[4], names[-1]), "no such image")
    for image in new.image_ids:
        np.testing.assert_allclose(new[image].probabilities, old[image].probabilities, atol=2e-3)


def test_a_merge_can_be_resumed(finished, tmp_path, contents, messages):
    out = tmp_path / "new"
    merge_caches([finished], out)
    (out / MANIFEST).unlink()
    (out / SHARDS / THIRD).unlink()
    merge_caches([finished], out)
    assert contents(out) == contents(finished)
    messages.clear()
    merge_caches([finished], out)
    assert "nothing to do" in messages[0]


def other_probabilities(finished, dataset, build, jobs):
    folders = jobs([FIRST, SECOND], [SECOND, THIRD])
    path, fingerprint = folders[1] / SHARDS / SECOND, open_cache(finished).fingerprint
    layout = read_layout(path, fingerprint)
    arrays = {name: array.copy() for name, array in map_shard(path, layout).items()}
    arrays["pairs/action_probabilities"][-1, 0] += 0.25
    write_shard_arrays(path, fingerprint, layout.images, layout.failed, arrays)
    return folders


def built_otherwise(**changes):
    return lambda finished, dataset, build, jobs: [finished, build(dataset, **changes).path]


def the_same_cache(finished, dataset, build, jobs):
    (first,) = jobs([FIRST, SECOND, THIRD])
    link = first.with_name("link")
    link.symlink_to(first)
    return [first, link]


def damaged_shard(finished, dataset, build, jobs):
    folders = jobs([FIRST], [SECOND, THIRD])
    path = folders[1] / SHARDS / SECOND
    path.write_bytes(path.read_bytes()[:2000])
    return folders


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (other_probabilities, r"job1/.*00001.h5: toy_\w+\.jpg: expected the outputs of .*job0/"),
        (
            built_otherwise(templates=("person {ing} {object}",)),
            r"others \(prompts: \w+, now \w+\)$",
        ),
        (built_otherwise(images_per_shard=4), r"others \(images_per_shard: 3, now 4\)$"),
        (lambda *given: given[-1]([FIRST], [THIRD]), "expected shard 00001.h5 in one of them"),
        (the_same_cache, "link: expected every cache once, found"),
        (damaged_shard, r"00001.h5: expected"),
        (lambda finished, dataset, *_: [finished, dataset], "toy: expected a cache folder"),
    ],
)
def test_caches_that_do_not_match_are_refused(finished, dataset, build, jobs, tmp_path, make, text):
    with pytest.raises(InputError, match=text) as caught:
        merge_caches(make(finished, dataset, build, jobs), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
