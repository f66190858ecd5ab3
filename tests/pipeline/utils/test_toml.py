import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import read_toml


def test_tables_and_values(tmp_path):
    (tmp_path / "a.toml").write_text('b = 1\n[c]\nd = ["é"]\n', encoding="utf-8")
    assert read_toml(tmp_path / "a.toml") == {"b": 1, "c": {"d": ["é"]}}


def test_a_byte_order_mark_and_line_ends_of_windows(tmp_path):
    (tmp_path / "a.toml").write_bytes('b = 1\r\n[c]\r\nd = ["é"]\r\n'.encode("utf-8-sig"))
    assert read_toml(tmp_path / "a.toml") == {"b": 1, "c": {"d": ["é"]}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"b = ", "expected TOML"),
        (b"b = 1\nb = 2", "expected TOML"),
        (b"\xff\xfe", "expected TOML"),
    ],
)
def test_what_is_no_toml(tmp_path, content, says):
    if content is not None:
        (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(InputError, match=f"a.toml: {says}"):
        read_toml(tmp_path / "a.toml")


def test_a_folder_is_no_toml(tmp_path):
    with pytest.raises(InputError):
        read_toml(tmp_path)
