import sys
from pathlib import Path

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.plugins import (
    absolute_class_name,
    absolute_settings,
    confirm_class,
    create_object,
    is_class_name,
    load_class,
    parse_settings,
    settings_with_digests,
)

MODULE = """
from __future__ import annotations
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

class Box:
    def __init__(self, place, weights: Path, size=3, names: list[str] | None = None, flat=False):
        self.values = place, weights, size, names, flat

class Open:
    def __init__(self, place, pixels: ndarray | None = None, **rest):
        self.values = place, pixels, rest

number = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, whose modules are forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def create(name, *settings):
    values = parse_settings("--box-set", settings)
    return create_object("--box-set", load_class("--box", name), ["here"], values).values


def test_names_of_classes(tmp_path, monkeypatch):
    for name in ("a:B", "a.b_1:C", "some folder/a:B", "/a:B", "../a.b:C", "f/a.py:B"):
        assert is_class_name(name)
    for name in ("a", "a:", "a:B.c", "hf-hub:a", "a/b", "a.b", "1a:B", "hf:a/b", "https://a:8"):
        assert not is_class_name(name)
    monkeypatch.chdir(tmp_path)
    assert absolute_class_name("a.b:C") == f"{tmp_path}/a.b:C"
    assert absolute_class_name("f/a:C") == f"{tmp_path}/f/a:C"
    assert absolute_class_name(absolute_class_name("a:C")) == f"{tmp_path}/a:C"
    assert absolute_class_name("f/a:C", "/g") == "/g/f/a:C"
    assert absolute_class_name("/a:C").lstrip("/") == "a:C"


def test_a_class_with_settings(folder):
    (folder / "boxes_here.py").write_text(MODULE)
    (folder / "sub").mkdir()
    (folder / "sub/boxes_below.py").write_text(MODULE)
    (folder / "json.py").write_text("raise SystemExit")
    settings = ["weights=a=b", "size=6", "size=7", 'names=["a"]', "flat=true"]
    assert create("boxes_here:Box", *settings) == ("here", Path("a=b"), 7, ["a"], True)
    assert create("sub/boxes_below.py:Box", "weights=a") == ("here", Path("a"), 3, None, False)
    # Annotations that cannot be resolved, and names that the class does not list.
    assert create("boxes_here:Open", "pixels=3", "c=4") == ("here", "3", {"c": "4"})
    # An installed module wins over the folder's.
    assert load_class("--box", "json:JSONDecoder").__module__ == "json.decoder"


def test_settings_with_contents_of_files(folder):
    file = folder / "weights.bin"
    file.write_text("one")
    (folder / "model").mkdir()
    (folder / "model/weights.bin").write_text("one")
    texts = ["weights=weights.bin", "folder=model", "size=3", "name="]

    def described():
        values = settings_with_digests(parse_settings("--box-set", texts))
        absolute = parse_settings("--box-set", absolute_settings(texts))
        assert settings_with_digests(absolute) == values
        return values

    first = described()
    assert (first["size"], first["name"]) == ("3", "")
    assert len(first["weights"]) == len(first["folder"]) == 64
    (folder / "model/weights.bin").write_text("two")
    assert described() == first | {"folder": described()["folder"]} != first
    file.write_text("two")
    assert described()["weights"] != first["weights"]
    assert absolute_settings(["size=3", f"weights={file}"]) == ("size=3", f"weights={file}")


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("boxes_absent:Box", [], r"--box: .*ModuleNotFoundError: .*'boxes_absent'\)$"),
        ("boxes_broken:Box", [], r"--box: .*ModuleNotFoundError: .* in .*boxes_broken\.py:2\)$"),
        ("boxes_wrong:Box", [], r"--box: .*SyntaxError: .*boxes_wrong\.py, line 1"),
        ("boxes:Boxes", [], r"--box: expected a class of .*boxes\.py, found Boxes"),
        ("boxes:number", [], r"--box: expected a class of .*boxes\.py, found number"),
        ("boxes:Box", [], r"--box-set: .*Box \(weights, size, .* required argument: 'weights'"),
        (
            "boxes:Box",
            ["weights=a", "width=3"],
            r"--box-set: .* unexpected keyword argument 'width'",
        ),
        (
            "boxes:Box",
            ["weights=a", "place=3"],
            r"--box-set: .*multiple values for argument 'place'",
        ),
        ("boxes:Box", ["weights=a", "size=big"], r"--box-set: size: expected .* found big"),
        ("boxes:Box", ["size"], r"--box-set: expected KEY=VALUE, found size"),
        ("boxes:Box", ["a b=1"], r"--box-set: .* found a b=1"),
    ],
)
def test_what_cannot_be_loaded(folder, name, settings, text):
    (folder / "boxes.py").write_text(MODULE)
    (folder / "boxes_broken.py").write_text("\nimport not_installed_anywhere\n")
    (folder / "boxes_wrong.py").write_text("class :\n")
    with pytest.raises(InputError, match=text) as caught:
        create(name, *settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "given", "confirmed"),
    [
        ("toy", None, "toy"),
        (None, None, None),
        ("toy", "toy", "toy"),
        ("/old/own.py:Code", "new/own:Code", "new/own:Code"),
        (5, None, 5),
    ],
)
def test_the_class_of_a_cache_is_confirmed(stored, given, confirmed):
    assert confirm_class("--teacher", stored, given) == confirmed


@pytest.mark.parametrize(
    ("stored", "given"),
    [("own:Code", None), ("own:Code", "own:Other"), ("toy", "own:Code"), (None, "own:Code")],
)
def test_no_other_class_is_confirmed(stored, given):
    with pytest.raises(InputError, match=f"^--teacher: expected {stored or 'none'}"):
        confirm_class("--teacher", stored, given)
