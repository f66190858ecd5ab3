import pytest

from pipeline.utils.errors import InputError, bad_field


@pytest.mark.parametrize(
    ("found", "shown"),
    [("ride", "ride"), (7, "7"), (None, "None"), ([1, 2], "[1, 2]"), ("x" * 200, "x" * 77 + "...")],
)
def test_bad_field_names_file_field_expected_and_found(found, shown):
    error = bad_field("a.json", "b.jpg: bbox", "four numbers", found)
    assert isinstance(error, InputError) and isinstance(error, ValueError)
    assert str(error) == f"a.json: b.jpg: bbox: expected four numbers, found {shown}"
