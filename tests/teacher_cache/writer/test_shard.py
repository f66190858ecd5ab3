import errno
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from teacher_cache.reader.shard import DATASET_DTYPES
from teacher_cache.writer.shard import read_shard_record, write_shard, write_shard_arrays


@pytest.fixture
def path(tmp_path):
    return tmp_path / "00000.h5"


def test_an_empty_shard(path):
    write_shard(path, "f", [], [], {"a.jpg": "no such image"}, num_verbs=11)
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"format_version": 1, "fingerprint": "f"}
        assert file["images/id"].shape == (0,)
        assert file["images/pair_offsets"][()].tolist() == [0]
        assert file["pairs/action_probabilities"].shape == (0, 11)
        assert file["regions/box"].shape == (0, 4)
    record = read_shard_record(path, "f")
    assert record.images == () and record.failed == {"a.jpg": "no such image"}


def test_names_dtypes_and_shapes_of_format_1(path, make_outputs):
    outputs = [make_outputs(3, 11, seed=1), make_outputs(0, 11), make_outputs(4, 11, seed=2)]
    write_shard(path, "f", ["ä.jpg", "b.jpg", "c.jpg"], outputs, {}, num_verbs=11)
    with h5py.File(path) as file:
        found = {name: file[name][()] for name in (*DATASET_DTYPES, "images/id")}
    assert [name.decode() for name in found["images/id"]] == ["ä.jpg", "b.jpg", "c.jpg"]
    assert found["images/pair_offsets"].tolist() == [0, 3, 3, 7]
    assert found["pairs/region"].tolist() == [0, 0, 1, 2, 2, 3, 3]
    for name, kind in DATASET_DTYPES.items():
        assert found[name].dtype == kind
        assert len(found[name]) == (7 if name.startswith("pairs") else 4)
    assert found["regions/box"].shape == (4, 4) and found["regions/embedding"].shape == (4, 6)
    np.testing.assert_array_equal(found["pairs/human_box"][3:], outputs[2].pairs.human_boxes)


def test_all_versions_of_h5py_write_equal_bytes(path):
    """The digest was equal with h5py 3.9.0 to 3.16.0 (HDF5 1.12.2, 1.14.2 to 1.14.6, 2.0)."""
    two_dimensional = ("box", "action_probabilities", "embedding")
    arrays = {
        name: np.arange(12).reshape((3, 4) if name.endswith(two_dimensional) else 12)
        for name in DATASET_DTYPES
    }
    write_shard_arrays(path, "f" * 64, ["ä.jpg", "b.jpg"], {"c.jpg": "cut off"}, arrays)
    digest = "5fa522953a04b46b9284f705aeda4de6909b95916c566dd6dc6819ebd854d8a6"
    assert sha256_of_file(path) == digest


def test_reading_a_shard_record(path, make_outputs):
    write_shard(path, "f", ["x"], [make_outputs(5, 11)], {"y": "broken"}, num_verbs=11)
    record = read_shard_record(path, "f")
    assert (record.name, record.size) == ("00000.h5", path.stat().st_size)
    assert (record.images, record.failed) == (("x",), {"y": "broken"})
    assert (record.pairs, record.regions) == (5, 3)
    with pytest.raises(InputError, match="belongs to another cache"):
        read_shard_record(path, "g")


def test_a_full_disk(path, make_outputs, monkeypatch):
    """The error names the file, and no temporary file is left."""

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"00000\.h5") as caught:
        write_shard(path, "f", ["a"], [make_outputs(2, 5)], {}, 5)
    assert caught.value.errno == errno.ENOSPC
    assert list(path.parent.iterdir()) == []
