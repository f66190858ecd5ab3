import os
import pickle
from collections import OrderedDict, defaultdict

import numpy as np
import pytest

from evaluation.pickles import iterate_pickle
from pipeline.utils.errors import InputError

VALUE = {
    "number": 3,
    "large": 1 << 40,
    "score": 0.1,
    "text": "bicycle",
    "nothing": None,
    "yes": True,
    "list": [1, [2.5, -3]],
    "counts": defaultdict(list, a=[1]),
    "ordered": OrderedDict(b=2),
    "int64": np.int64(-5),
    "float32": np.float32(0.25),
    "swapped": np.arange(4, dtype=">f4"),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 5), np.float32),
}


PLAIN = (bool, int, float, str, list, dict)


def write(folder, value, protocol=2):
    path = folder / "a.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_round_trip(tmp_path, protocol):
    first, second = iterate_pickle(write(tmp_path, [VALUE, {"number": 4}], protocol))
    assert second == {"number": 4} and first.keys() == VALUE.keys()
    for name, value in VALUE.items():
        expected = value.tolist() if isinstance(value, np.ndarray) else value
        assert first[name] == expected and type(first[name]) in (*PLAIN, type(None))


def test_entries_may_share_a_value(tmp_path):
    box = [1.0, 2.0]
    assert list(iterate_pickle(write(tmp_path, [{"a": box}, {"a": box}]))) == [{"a": box}] * 2


def test_text_of_python_2(tmp_path):
    """Python 2 wrote str, and the content of arrays, as bytes."""
    text = b"\x80\x02]U\x06a_nameK\x05\x86a."
    assert list(iterate_pickle(write(tmp_path, text))) == [("a_name", 5)]
    array = (
        b"\x80\x02]cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87RI00\nU\x02\x07\xfftba."
    )
    assert list(iterate_pickle(write(tmp_path, array))) == [[7, 255]]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ([np.array([{}], dtype=object)], "array of O8"),
        ([slice(3)], "builtin__.slice"),
        # A class or function as a value.
        ([dict], "damaged"),
        ({"a": 1}, "expected a list"),
        ([{1, 2}], "set"),
        (b"\x80\x02]", "damaged"),
        (b"\x80\x02]q\x00(K\x01", "damaged"),
        (b"\x80\x02h\x05.", "5"),
        # A string of more bytes, and a memo index that is larger, than there is memory.
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", ""),
        (b"\x80\x02]r\xff\xff\xff\xff(K\x01", "damaged"),
        # A state that would set attributes of the function or class.
        (b"\x80\x02]cnumpy\ndtype\n}U\x06decodeK\x01sba.", "damaged"),
        (b"\x80\x02]cos\nmkdir\n}U\x01aK\x01sba.", "damaged"),
        (b"", "damaged"),
        (b"not one at all", ""),
    ],
)
def test_other_pickles_are_refused(tmp_path, value, names):
    with pytest.raises(InputError) as error:
        list(iterate_pickle(write(tmp_path, value)))
    assert str(error.value).startswith(f"{tmp_path / 'a.pkl'}: ") and names in str(error.value)


class RunsCode:
    """Its pickle names a function that a plain unpickler would call."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"a call of {os.mkdir.__module__}\.mkdir"):
        list(iterate_pickle(write(tmp_path, [{"image_id": RunsCode()}])))
    assert not (tmp_path / "ran").exists()


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"a\.pkl: no such"):
        list(iterate_pickle(tmp_path / "a.pkl"))
