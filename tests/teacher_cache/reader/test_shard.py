import h5py
import numpy as np
import pytest

from pipeline.utils.errors import InputError
from teacher_cache.reader.format import PAIR_DATASETS, PAIR_OFFSETS, REGION_BOX, REGION_EMBEDDING
from teacher_cache.reader.shard import DATASET_DTYPES, map_shard, read_layout
from teacher_cache.writer.shard import write_shard


@pytest.fixture
def shard(tmp_path, make_outputs):
    path = tmp_path / "00000.h5"
    outputs = [make_outputs(3, 11, seed=1), make_outputs(0, 11), make_outputs(4, 11, seed=2)]
    write_shard(path, "f", ["\u00e4.jpg", "b", "c"], outputs, {"d": "no such image"}, 11)
    return path


def test_mapped_arrays_equal_what_hdf5_reads(shard):
    layout = read_layout(shard, "f")
    assert layout.images == ("\u00e4.jpg", "b", "c")
    assert layout.failed == {"d": "no such image"}
    assert (layout.num_pairs, layout.num_regions) == (7, 4)
    arrays = map_shard(shard, layout)
    assert arrays.keys() == {PAIR_OFFSETS, *PAIR_DATASETS, REGION_BOX, REGION_EMBEDDING}
    with h5py.File(shard) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, file[name][()])
            assert array.dtype == DATASET_DTYPES[name] and array.flags.aligned
            assert not array.flags.writeable


def replace_dataset(name, change, **options):
    """Returns a function that replaces a dataset of a file."""

    def edit(file):
        data = change(file[name][()])
        del file[name]
        file.create_dataset(name, data=data, **options)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            replace_dataset("pairs/source", lambda data: data, chunks=(2,)),
            "pairs/source is not a contiguous array of uint8",
        ),
        (
            replace_dataset(REGION_BOX, np.float64),
            "regions/box is not a contiguous array of float32",
        ),
        (replace_dataset("pairs/human_score", lambda data: data[:-1]), "different lengths"),
        (replace_dataset(REGION_EMBEDDING, lambda data: data[:-1]), "different lengths"),
        (replace_dataset(PAIR_OFFSETS, lambda data: np.append(data, 7)), "different lengths"),
        (replace_dataset("pairs/source", lambda data: data[0]), "found damage"),
        (lambda file: file.__delitem__("images/id"), "found damage"),
        (lambda file: file.attrs.update(format_version=2), "format_version: expected 1, found 2"),
        (lambda file: file.attrs.update(fingerprint="g"), "belongs to another cache"),
    ],
)
def test_files_that_are_not_of_format_1(shard, edit, message):
    with h5py.File(shard, "a") as file:
        edit(file)
    with pytest.raises(InputError, match=message) as caught:
        read_layout(shard, "f")
    assert str(shard) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, position, value",
    [
        (PAIR_OFFSETS, 0, 1),
        (PAIR_OFFSETS, 1, -1),
        (PAIR_OFFSETS, 1, 5),
        (PAIR_OFFSETS, 3, 6),
        ("pairs/object_label", 3, 9),
        ("pairs/object_label", 0, -1),
        ("pairs/region", 6, 4),
        ("pairs/region", 2, -1),
    ],
)
def test_indices_out_of_range(shard, name, position, value):
    with h5py.File(shard, "a") as file:
        file[name][position] = value
    with pytest.raises(InputError, match=f"{name} has an index out of range"):
        map_shard(shard, read_layout(shard, "f"), num_objects=9)
    if value == 9:
        map_shard(shard, read_layout(shard, "f"))


def test_a_truncated_shard(shard):
    layout = read_layout(shard, "f")
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(InputError, match="found damage"):
        map_shard(shard, layout)


def test_a_heap_on_which_hdf5_would_loop_forever(shard):
    data = bytearray(shard.read_bytes())
    # After the heap's header and the fingerprint "f", padded to eight bytes: the free space.
    size_left = data.index(b"GCOL") + 16 + (16 + 8) + 8
    data[size_left : size_left + 8] = bytes(8)
    shard.write_bytes(data)
    with pytest.raises(InputError, match="string heap is inconsistent"):
        read_layout(shard, "f")


def test_changed_bytes_are_read_or_refused(shard):
    """Reading a damaged file never raises another error and never hangs."""
    content = shard.read_bytes()
    rng = np.random.default_rng(0)
    num_refused = 0
    for position in rng.integers(0, len(content), 240):
        data = bytearray(content)
        data[position] ^= int(rng.integers(1, 256))
        shard.write_bytes(data)
        try:
            map_shard(shard, read_layout(shard, "f"))
        except InputError:
            num_refused += 1
    assert num_refused
