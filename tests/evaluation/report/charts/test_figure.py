import io
import re
import sys

import pytest
from PIL import Image

from evaluation.report.charts.figure import (
    WIDE_INCHES,
    Chart,
    add_legend,
    bar_style,
    check_chart_file,
    label_axis,
    make_chart,
    require_packages,
    save_chart,
    set_figure_title,
    set_panel_title,
)
from evaluation.report.charts.palette import LIGHT, css_variable
from pipeline.utils.errors import InputError


def draw(figure, colours, narrow):
    figure.set_size_inches(2 if narrow else WIDE_INCHES, 2)
    axis = figure.subplots()
    axis.bar([0, 1], [1, 2], **bar_style("teacher", colours))
    axis.plot([0, 1], [2, 1], color=colours["distilled"])
    label_axis(axis, colours, "across", "up")
    set_panel_title(axis, colours, "A <title> & more")
    add_legend(figure, {"teacher": "The teacher"}, colours, "bar", narrow)


@pytest.fixture(scope="module")
def charts():
    return [make_chart(name, "Title", 'AP & "more" <1>', draw) for name in ("one", "two")]


def test_svg_takes_its_colours_from_the_page(charts):
    for svg in (charts[0].wide, charts[0].narrow):
        assert not re.findall(r"#[0-9a-f]{6}", svg)
        used = set(re.findall(r"var\((--[a-z-]+)\)", svg))
        assert {"--teacher", "--distilled", "--text", "--muted", "--grid", "--card"} <= used
        assert used <= {css_variable(name) for name in LIGHT}


def test_svg_has_texts_and_a_label(charts):
    for svg in (charts[0].wide, charts[0].narrow):
        assert 'role="img" aria-label="AP &amp; &quot;more&quot; &lt;1&gt;"' in svg
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert {"across", "up", "A &lt;title&gt; &amp; more", "The teacher"} <= set(texts)
    assert charts[0].wide != charts[0].narrow


def test_charts_have_no_ids_in_common(charts):
    """No network, no ids in common, nothing that styles the page."""
    svgs = [svg for chart in charts for svg in (chart.wide, chart.narrow)]
    ids = [name for svg in svgs for name in re.findall(r'\bid="([^"]*)"', svg)]
    assert ids
    assert len(set(ids)) == len(ids)
    for svg in svgs:
        assert "http" not in svg
        assert "<style" not in svg
        assert "<!--" not in svg
        used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
        assert used <= set(re.findall(r'\bid="([^"]*)"', svg))


def test_png_is_the_wide_one_on_white(charts):
    image = Image.open(io.BytesIO(charts[0].png)).convert("RGB")
    assert image.width >= 1200
    assert image.getpixel((0, 0)) == (255, 255, 255)
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert tuple(bytes.fromhex(LIGHT["teacher"][1:])) in colours


def test_the_same_twice(charts):
    again = make_chart("one", "Title", 'AP & "more" <1>', draw)
    assert again == charts[0]
    assert isinstance(again, Chart)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_packages_are_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=rf"a report needs {package}, .*pip install 'eoid\[report\]'"
    ):
        require_packages("a report", "jinja2", "matplotlib")


SIGNATURES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


def draw_titles(figure, colours, narrow):
    figure.set_size_inches(2, 1)
    set_figure_title(figure, colours, "whole")
    axis = figure.add_subplot()
    set_panel_title(axis, colours, "title")
    label_axis(axis, colours, across="x")


@pytest.mark.parametrize("ending", SIGNATURES)
def test_the_ending_decides_the_kind(tmp_path, ending):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    file = tmp_path / f"chart{ending}"
    check_chart_file(file, overwrite=False)
    save_chart(file, draw_titles)
    assert file.read_bytes().startswith(SIGNATURES[ending])
    with pytest.raises(InputError, match="--overwrite"):
        check_chart_file(file, overwrite=False)
    check_chart_file(file, overwrite=True)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["chart", "chart.jpg", "chart.png.txt"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"expected a name that ends in \.png"):
        check_chart_file(tmp_path / name, overwrite=False)


def test_without_matplotlib_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'eoid\[report\]'"):
        check_chart_file(tmp_path / "chart.png", overwrite=False)
