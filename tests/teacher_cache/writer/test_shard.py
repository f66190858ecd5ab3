import errno
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.utils.files import sha256_of_file
from teacher_cache.reader.format import PAIR_DATASETS
from teacher_cache.reader.shard import DATASET_DTYPES
from teacher_cache.writer.shard import read_shard_record, write_shard, write_shard_arrays


def contents(path):
    """All datasets, and the attributes of the root group."""
    datasets = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                datasets.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
        return datasets, dict(file.attrs)


def test_an_empty_shard(tmp_path):
    path = tmp_path / "00000.h5"
    write_shard(path, "f", [], [], {"a.jpg": "no such image"}, num_verbs=11)
    datasets, attributes = contents(path)
    assert attributes == {"format_version": 1, "fingerprint": "f"}
    assert datasets["images/id"].shape == (0,)
    assert datasets["images/pair_offsets"].tolist() == [0]
    assert datasets["pairs/action_probabilities"].shape == (0, 11)
    assert datasets["regions/box"].shape == (0, 4)
    record = read_shard_record(path, "f")
    assert record.images == () and record.failed == {"a.jpg": "no such image"}


def test_names_dtypes_and_shapes_of_format_1(tmp_path, make_outputs):
    outputs = [make_outputs(3, 11, seed=1), make_outputs(0, 11), make_outputs(4, 11, seed=2)]
    path = tmp_path / "00001.h5"
    write_shard(path, "f", ["ä.jpg", "b.jpg", "c.jpg"], outputs, {}, num_verbs=11)
    datasets, _ = contents(path)
    assert [name.decode() for name in datasets["images/id"]] == ["ä.jpg", "b.jpg", "c.jpg"]
    assert datasets["images/pair_offsets"].dtype == np.int64
    assert datasets["images/pair_offsets"].tolist() == [0, 3, 3, 7]
    assert datasets["pairs/region"].tolist() == [0, 0, 1, 2, 2, 3, 3]
    for name, kind in PAIR_DATASETS.items():
        assert datasets[name].dtype == kind
        assert len(datasets[name]) == 7
    assert datasets["regions/box"].shape == (4, 4) and datasets["regions/box"].dtype == "f4"
    assert datasets["regions/embedding"].shape == (4, 6)
    assert datasets["regions/embedding"].dtype == np.float16
    np.testing.assert_array_equal(datasets["pairs/human_box"][3:], outputs[2].pairs.human_boxes)


def test_equal_outputs_give_equal_bytes(tmp_path, make_outputs):
    for name in ("a.h5", "b.h5"):
        write_shard(tmp_path / name, "f", ["x"], [make_outputs(5, 11)], {}, num_verbs=11)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_all_versions_of_h5py_write_equal_bytes(tmp_path):
    """The digest was equal with h5py 3.9.0 to 3.16.0 (HDF5 1.12.2, 1.14.2 to 1.14.6, 2.0)."""
    two_dimensional = ("box", "action_probabilities", "embedding")
    arrays = {
        name: np.arange(12).reshape((3, 4) if name.endswith(two_dimensional) else 12)
        for name in DATASET_DTYPES
    }
    path = tmp_path / "00000.h5"
    write_shard_arrays(path, "f" * 64, ["ä.jpg", "b.jpg"], {"c.jpg": "cut off"}, arrays)
    digest = "5fa522953a04b46b9284f705aeda4de6909b95916c566dd6dc6819ebd854d8a6"
    assert sha256_of_file(path) == digest


def test_reading_a_shard_record(tmp_path, make_outputs):
    path = tmp_path / "00000.h5"
    assert read_shard_record(path, "f") is None
    write_shard(path, "f", ["x"], [make_outputs(5, 11)], {"y": "broken"}, num_verbs=11)
    record = read_shard_record(path, "f")
    assert (record.name, record.images, record.pairs, record.regions, record.failed) == (
        "00000.h5",
        ("x",),
        5,
        3,
        {"y": "broken"},
    )
    assert read_shard_record(path, "g") is None
    path.write_bytes(path.read_bytes()[:-100])
    assert read_shard_record(path, "f") is None


def test_a_full_disk(tmp_path, make_outputs, monkeypatch):
    """The error names the file, and no temporary file is left."""
    path = tmp_path / "00000.h5"

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"00000\.h5") as caught:
        write_shard(path, "f", ["a"], [make_outputs(2, 5)], {}, 5)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
