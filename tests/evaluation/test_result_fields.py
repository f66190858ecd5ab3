import pytest

from evaluation.results import number_table, typed_field
from pipeline.utils.errors import InputError

VALUE = {"name": "a run", "scores": {"full": 0.5, "rare": None}, "empty": {}}


def test_fields_of_a_type():
    assert typed_field("file", VALUE, "name", str, "a text") == "a run"
    for name in ("scores", "gone"):
        with pytest.raises(InputError, match=f"file: {name}: expected a text"):
            typed_field("file", VALUE, name, str, "a text")


def test_numbers_by_name():
    assert number_table("file", VALUE, "empty") == {}
    assert number_table("file", VALUE, "scores", optional=True) == VALUE["scores"]
    with pytest.raises(InputError, match=r"file: scores\.rare: expected.*found None"):
        number_table("file", VALUE, "scores")
    with pytest.raises(InputError, match="file: name: expected"):
        number_table("file", VALUE, "name")
