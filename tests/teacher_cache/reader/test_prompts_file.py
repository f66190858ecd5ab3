from dataclasses import replace

import h5py
import numpy as np
import pytest

from pipeline.utils.errors import InputError
from teacher_cache.reader.format import TEACHER
from teacher_cache.reader.prompts_file import ActionPrompts, read_prompts_file
from teacher_cache.writer.shard import write_prompts_file


@pytest.fixture
def made():
    looks = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    return ActionPrompts(
        text_model="a" * 64,
        verbs=("jump", "süß"),
        verb_ings=("jumping over", "süßing"),
        actions=np.array([0, 0, 1]),
        objects=("bench", "box", "box"),
        prompts=(("one", "uno"), ("two", "due"), ("three", "tre")),
        embeddings=looks,
    )


def test_what_is_written_is_read(made, tmp_path):
    write_prompts_file(tmp_path / "new.h5", made)
    found = read_prompts_file(tmp_path / "new.h5")
    for name, value in vars(made).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert found.digest() == made.digest()
    first = (tmp_path / "new.h5").read_bytes()
    write_prompts_file(tmp_path / "again.h5", made)
    assert (tmp_path / "again.h5").read_bytes() == first


def test_everything_in_it_is_in_its_digest(made):
    changes = {
        "text_model": "b" * 64,
        "verbs": ("leap", "süß"),
        "verb_ings": ("leaping over", "süßing"),
        "actions": np.array([0, 1, 1]),
        "objects": ("bench", "box", "ball"),
        "prompts": (("one", "uno"), ("two", "due"), ("three", "tri")),
        "embeddings": made.embeddings + np.float32(1e-6),
    }
    assert changes.keys() == vars(made).keys()
    digests = {replace(made, **{name: value}).digest() for name, value in changes.items()}
    assert len(digests) == len(changes) and made.digest() not in digests


def test_damage_is_noticed(made, tmp_path):
    path = tmp_path / "new.h5"
    write_prompts_file(path, made)
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[whole.index(made.embeddings.tobytes()) + 2] ^= 0x40
    for content in (bytes(spoilt), whole[: len(whole) // 2], b"", b"no HDF5 at all"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"new.h5: .*damage"):
            read_prompts_file(path)


def test_other_files(made, finished, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_prompts_file(tmp_path / "none.h5")
    with pytest.raises(InputError, match="kind: expected"):
        read_prompts_file(finished / TEACHER)
    path = tmp_path / "new.h5"
    write_prompts_file(path, made)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(InputError, match="format_version: expected 1, found 2"):
        read_prompts_file(path)
