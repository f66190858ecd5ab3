import sys

import pytest

from evaluation.report.charts.figure import (
    check_chart_file,
    label_axis,
    save_chart,
    set_figure_title,
    set_panel_title,
)
from pipeline.utils.errors import InputError

SIGNATURES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


def draw(figure, colours, narrow):
    figure.set_size_inches(2, 1)
    set_figure_title(figure, colours, "whole")
    axis = figure.add_subplot()
    set_panel_title(axis, colours, "title")
    label_axis(axis, colours, across="x")


@pytest.mark.parametrize("ending", SIGNATURES)
def test_the_ending_decides_the_kind(tmp_path, ending):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    file = tmp_path / f"picture{ending}"
    check_chart_file(file, overwrite=False)
    save_chart(file, draw)
    assert file.read_bytes().startswith(SIGNATURES[ending])
    with pytest.raises(InputError, match="--overwrite"):
        check_chart_file(file, overwrite=False)
    check_chart_file(file, overwrite=True)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["picture", "picture.jpg", "picture.png.txt"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"expected a name that ends in \.png"):
        check_chart_file(tmp_path / name, overwrite=False)


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'eoid\[report\]'"):
        check_chart_file(tmp_path / "picture.png", overwrite=False)
