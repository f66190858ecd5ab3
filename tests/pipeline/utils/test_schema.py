from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.schema import Positive, Text, convert, read_json_as


class Entry(Struct, forbid_unknown_fields=True):
    point: Annotated[tuple[float, float], Meta(description="two numbers [x, y]")]
    kind: Literal["a", "b"] = "a"
    name: Text = "x"
    count: Positive | None = None


class Content(Struct):
    tables: dict[str, dict[str, Entry]]
    rows: Annotated[list[Entry], Meta(min_length=1)]


ENTRY = {"point": [1, 2.5]}
CONTENT = {"tables": {"t": {"u": {"point": [0, 0]}}}, "rows": [{**ENTRY}, {"point": [3, 4]}]}


def test_numbers_and_defaults():
    assert convert(ENTRY, Entry, "a.json") == Entry((1.0, 2.5))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["tables"], ..., "tables: expected an object, found nothing (the key is missing)"),
        (["tables", "t"], [3], "tables.t: expected an object, found [3]"),
        (["tables", "t", "v"], {}, "tables.t.v.point: expected two numbers [x, y], found nothing"),
        (["rows"], {}, "rows: expected a non-empty list, found {}"),
        (["rows"], [], "rows: expected a non-empty list, found []"),
        (["rows", 1, "point", 0], True, "rows[1].point: expected two numbers [x, y], found [True"),
        (["rows", 1, "kind"], "c", "rows[1].kind: expected one of a, b, found c"),
        (["rows", 1, "name"], " ", "rows[1].name: expected a text, found  "),
        (["rows", 1, "count"], 0, "rows[1].count: expected a whole number from 1 to 1000000000"),
        (["rows", 1, "count"], 1.5, "rows[1].count: expected a whole number from 1 to 1000000000"),
        (["rows", 1, "size"], 3, "rows[1].size: expected only point, kind, name, count, found an"),
    ],
)
def test_errors_name_file_field_expected_and_found(save_json, changed, path, value, message):
    file = save_json(changed(CONTENT, path, value))
    with pytest.raises(InputError) as caught:
        read_json_as(file, Content)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_a_number_as_a_text_is_in_quotes():
    with pytest.raises(InputError, match=r"count: expected a whole number .*, found '3'$"):
        convert({"point": [0, 0], "count": "3"}, Entry, "a.json")


def test_a_part_of_a_file_is_named():
    with pytest.raises(InputError, match=r"^a.json: parts.x.point: expected .* found 3$"):
        convert({"point": 3}, Entry, "a.json", "parts.x")
    with pytest.raises(InputError, match=r"^a.json: content: expected an object, found 3$"):
        convert(3, Entry, "a.json")


def test_numbers_that_python_does_not_print():
    assert "found a number" in str(bad_field("a.pkl", "score", "a number", [10**5000]))


def test_long_values_are_cut_off():
    error = bad_field("a.json", "b.jpg: bbox", "four numbers", "x" * 200)
    assert str(error) == f"a.json: b.jpg: bbox: expected four numbers, found {'x' * 77}..."
