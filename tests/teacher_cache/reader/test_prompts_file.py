from dataclasses import replace

import h5py
import numpy as np
import pytest

from pipeline.utils.errors import InputError
from teacher_cache.reader.format import TEACHER
from teacher_cache.reader.prompts_file import ActionPrompts, read_prompts_file
from teacher_cache.writer.shard import write_prompts_file


@pytest.fixture
def prompts():
    embeddings = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    return ActionPrompts(
        text_model="a" * 64,
        verbs=("jump", "süß"),
        verb_ings=("jumping over", "süßing"),
        actions=np.array([0, 0, 1]),
        objects=("bench", "box", "box"),
        prompts=(("one", "uno"), ("two", "due"), ("three", "tre")),
        embeddings=embeddings,
    )


def test_round_trip(prompts, tmp_path):
    write_prompts_file(tmp_path / "new.h5", prompts)
    found = read_prompts_file(tmp_path / "new.h5")
    for name, value in vars(prompts).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert found.digest() == prompts.digest()
    first = (tmp_path / "new.h5").read_bytes()
    write_prompts_file(tmp_path / "again.h5", prompts)
    assert (tmp_path / "again.h5").read_bytes() == first


def test_the_digest_depends_on_every_field(prompts):
    changes = {
        "text_model": "b" * 64,
        "verbs": ("leap", "süß"),
        "verb_ings": ("leaping over", "süßing"),
        "actions": np.array([0, 1, 1]),
        "objects": ("bench", "box", "ball"),
        "prompts": (("one", "uno"), ("two", "due"), ("three", "tri")),
        "embeddings": prompts.embeddings + np.float32(1e-6),
    }
    assert changes.keys() == vars(prompts).keys()
    digests = {replace(prompts, **{name: value}).digest() for name, value in changes.items()}
    assert len(digests) == len(changes) and prompts.digest() not in digests


def test_damaged_files(prompts, tmp_path):
    path = tmp_path / "new.h5"
    write_prompts_file(path, prompts)
    content = path.read_bytes()
    changed = bytearray(content)
    changed[content.index(prompts.embeddings.tobytes()) + 2] ^= 0x40
    for damaged in (bytes(changed), content[: len(content) // 2], b"", b"no HDF5 at all"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"new.h5: .*damage"):
            read_prompts_file(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": np.array([0, 0, 2])},
        {"actions": np.array([0, 0, -1])},
        {"actions": np.array([0, 0])},
        {"objects": ("bench", "box")},
        {"verb_ings": ("jumping over",)},
        {"embeddings": np.full((3, 4), np.nan, np.float32)},
        {"embeddings": np.zeros((2, 4), np.float32)},
        {"embeddings": np.zeros(3, np.float32)},
    ],
)
def test_arrays_that_do_not_fit_each_other(prompts, tmp_path, changes):
    write_prompts_file(tmp_path / "new.h5", replace(prompts, **changes))
    with pytest.raises(InputError, match=r"new.h5: .*its arrays do not fit"):
        read_prompts_file(tmp_path / "new.h5")


def test_other_files(prompts, finished, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_prompts_file(tmp_path / "none.h5")
    with pytest.raises(InputError, match="kind: expected"):
        read_prompts_file(finished / TEACHER)
    path = tmp_path / "new.h5"
    write_prompts_file(path, prompts)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(InputError, match="format_version: expected 1, found 2"):
        read_prompts_file(path)
