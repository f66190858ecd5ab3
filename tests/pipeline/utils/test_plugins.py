import sys
from abc import abstractmethod
from pathlib import Path

import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.logging import PROJECT
from pipeline.utils.plugins import (
    Plugin,
    absolute_class_name,
    confirm_class,
    create_object,
    create_own,
    describe_plugin,
    find_class,
    fingerprint_parts,
    format_settings,
    is_class_name,
    load_class,
    parse_settings,
    resolve_settings,
    settings_with_digests,
    user_errors,
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

class Odd:
    def __init__(self, place, pixels: Box | Open):
        pass

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
    # An installed module wins over the folder's, which is not run.
    with pytest.raises(
        InputError, match=r"--box: expected the module /.*json\.py, found .*/json/_"
    ):
        load_class("--box", "json:JSONDecoder")
    # So does one of the same name that another folder has.
    (folder / "sub/boxes_here.py").write_text(MODULE)
    with pytest.raises(InputError, match="which has the same name and comes first; rename"):
        load_class("--box", "sub/boxes_here:Box")


def test_settings_with_contents_of_files(folder):
    class Box:
        def __init__(self, weights: Path, folder: str, name=None, size: int = 3, mode="a"):
            pass

    file = folder / "weights.bin"
    file.write_text("one")
    (folder / "model").mkdir()
    (folder / "model/weights.bin").write_text("one")
    (folder / "3").write_text("no number is a file")
    texts = ["weights=weights.bin", "folder=model", "size=3", "name=", "mode=b"]

    def described():
        settings = resolve_settings(Box, parse_settings("--box-set", texts))
        assert resolve_settings(Box, settings) == settings
        assert parse_settings("--box-set", format_settings(settings.items())) == settings
        assert settings["weights"] == str(file) and settings["folder"] == f"{folder}/model"
        return settings_with_digests(settings)

    first = described()
    assert [first[name] for name in ("size", "name", "mode")] == ["3", "", "b"]
    assert len(first["weights"]) == len(first["folder"]) == 64
    (folder / "model/weights.bin").write_text("two")
    assert described() == first | {"folder": described()["folder"]} != first
    file.write_text("two")
    assert described()["weights"] != first["weights"]
    long = {"name": "a" * 5000}
    assert resolve_settings(Box, long) == settings_with_digests(long) == long


PLUGIN = """
from abc import abstractmethod
from test_plugins import Shape

class Circle(Shape):
    def __init__(self, device, radius: float = 1.0):
        super().__init__(device)
        self.radius = radius

    def area(self):
        raise ValueError("no\\narea")

class Half(Shape):
    pass

class Broken(Circle):
    def __init__(self, device):
        {}["radius"]

class Silent(Circle):
    def __init__(self, device):
        pass

class Unnamed(Circle):
    name = 5

class TwoLines(Circle):
    name = "a\\nb"

class Ended(Circle):
    def __init__(self, device):
        raise SystemExit(0)
"""


class Shape(Plugin):
    plugin_kind = "shape"

    @abstractmethod
    def area(self):
        pass


@pytest.fixture
def own(folder):
    """`own(name, **settings)`: an object of a class in the current folder."""
    (folder / "own_shapes.py").write_text(PLUGIN)
    sys.modules.setdefault("test_plugins", sys.modules[__name__])
    return lambda name, **settings: create_own(
        find_class(Shape, f"own_shapes:{name}"), ["cpu"], settings
    )


def test_an_object_of_a_users_class(own):
    circle = own("Circle", radius="2")
    assert (circle.name, circle.device, circle.radius) == ("Circle", "cpu", 2.0)
    assert circle.plugin_settings == {"radius": "2"} and describe_plugin(circle) == "shape Circle"
    assert fingerprint_parts(circle, {"side": 3}) == {"shape.side": 3, "shape.settings.radius": "2"}
    circle.fingerprint = lambda: {"radius": 2.0, "sizes": (1, 2)}
    assert fingerprint_parts(circle, {}) == {"shape.radius": 2.0, "shape.sizes": [1, 2]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "values by name, found None"),
        ([1], "values by name, found"),
        ({"a": object()}, "JSON values, found Object of type object"),
        ({"a": float("nan")}, "JSON values, found Out of range"),
        ({"side": 1}, "another name, found a reserved one"),
    ],
)
def test_other_fingerprints_are_refused(own, value, text):
    circle = own("Circle")
    circle.fingerprint = lambda: value
    with pytest.raises(InputError, match=f"^shape Circle: fingerprint.*: expected {text}"):
        fingerprint_parts(circle, {"side": 3})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Half", "--shape: expected a class with the method area, found own_shapes:Half"),
        ("abstractmethod", "--shape: expected a class of .*own_shapes.py, found abstractmethod"),
        (
            "Broken",
            r"--shape own_shapes:Broken: .*KeyError: 'radius' \(.*own_shapes.py:\d+; --v",
        ),
        ("Silent", r"--shape: expected a class whose __init__ calls super\(\).__init__, found own"),
        ("Unnamed", "--shape: name of Unnamed: expected a text of one line, found 5"),
        ("TwoLines", "--shape: name of TwoLines: expected a text of one line, found "),
        ("Ended", r"--shape own_shapes:Ended: .*SystemExit: 0 \(.*own_shapes.py:\d+; --v"),
    ],
)
def test_what_is_no_shape(own, name, text):
    with pytest.raises(InputError, match=text):
        own(name)


def test_another_base(own):
    with pytest.raises(InputError, match=r"a subclass of .*Shape, found pathlib:Path"):
        find_class(Shape, "pathlib:Path")


def test_errors_of_the_users_code(own, caplog):
    circle = own("Circle")
    with (
        caplog.at_level("DEBUG", PROJECT),
        pytest.raises(InputError, match=r"^shape Circle: area: .*Error: no area \(/.*s.py:\d+;"),
        user_errors(circle, "area"),
    ):
        circle.area()
    assert caplog.records[0].exc_info is not None
    with (
        pytest.raises(RuntimeError, match="ALLOC_FAILED"),
        user_errors(circle, "area"),
    ):
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")


def test_a_users_code_cannot_end_the_program(own):
    circle = own("Circle")
    with (
        pytest.raises(InputError, match=r"^shape Circle: area: .* found SystemExit"),
        user_errors(circle, "area"),
    ):
        sys.exit()


def test_errors_of_this_package_are_not_shortened(own, monkeypatch):
    circle = own("Circle")
    monkeypatch.setattr(type(circle), "__module__", "teacher_cache.shapes")
    with pytest.raises(ValueError, match="no\narea"), user_errors(circle, "area"):
        circle.area()


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
            r"--box-set: expected the settings of Box \(weights, .*\), found width$",
        ),
        ("boxes:Box", ["weigths=a"], r"--box-set: .*Box \(weights, .*\), found weigths$"),
        (
            "boxes:Box",
            ["weights=a", "place=3"],
            r"--box-set: expected the settings of Box \(weights, .*\), found place$",
        ),
        ("boxes:Box", ["weights=a", "size=big"], r"--box-set: size: expected .* found big"),
        ("boxes:Box", ["weights=a", "names=b"], r"--box-set: names: expected a list, found b"),
        ("boxes:Odd", ["pixels=b"], r"--box-set: expected parameters of Odd of types such as int"),
        ("boxes_exit:Box", [], r"--box: expected a module .*SystemExit: 3 in .*boxes_exit\.py:1"),
        ("boxes:Box", ["size"], r"--box-set: expected KEY=VALUE, found size"),
        ("boxes:Box", ["a b=1"], r"--box-set: .* found a b=1"),
    ],
)
def test_what_cannot_be_loaded(folder, name, settings, text):
    (folder / "boxes.py").write_text(MODULE)
    (folder / "boxes_broken.py").write_text("\nimport not_installed_anywhere\n")
    (folder / "boxes_wrong.py").write_text("class :\n")
    (folder / "boxes_exit.py").write_text("raise SystemExit(3)\n")
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
