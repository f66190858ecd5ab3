import io
import re
import subprocess
import sys

import pytest
from PIL import Image

from evaluation.report.charts.figure import (
    CHART_SUFFIXES,
    Panel,
    bar_style,
    check_chart_file,
    make_chart,
    require_packages,
)
from evaluation.report.charts.palette import LIGHT, css_variable
from pipeline.utils.errors import InputError


def draw(axis):
    axis.bar([0, 1], [1, 2], **bar_style("teacher"))
    axis.plot([0, 1], [2, 1], color=LIGHT["distilled"])
    axis.set(xlabel="across", ylabel="up", title="A <title> & more")
    axis.set_yticks([1, 2], ["$a", r"$\frac{$"])


def make(name):
    return make_chart(name, "Title", "Alt", [Panel(2, draw)] * 4, {"teacher": "The teacher"})


@pytest.fixture(scope="module")
def charts():
    return [make("one"), make("two")]


def test_svg_takes_its_colours_and_texts_from_the_page(charts):
    ((key, title),) = charts[0].legend
    assert title == "The teacher" and "var(--teacher)" in key
    assert len(charts[0].panels) == 4
    for svg in charts[0].panels:
        assert not re.findall(r"#[0-9a-f]{6}", svg)
        used = set(re.findall(r"var\((--[a-z-]+)\)", svg))
        assert {"--teacher", "--distilled", "--text", "--muted", "--grid", "--card"} <= used
        assert used <= {css_variable(name) for name in LIGHT}
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert {"across", "up", "A &lt;title&gt; &amp; more", r"$\frac{$"} <= set(texts)


def test_elements_of_a_page_have_no_ids_in_common_and_need_no_network(charts):
    svgs = [svg for chart in charts for svg in (*chart.panels, *(key for key, _ in chart.legend))]
    ids = [name for svg in svgs for name in re.findall(r'\bid="([^"]*)"', svg)]
    assert ids and len(set(ids)) == len(ids)
    for svg in svgs:
        assert "http" not in svg
        used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
        assert used <= set(re.findall(r'\bid="([^"]*)"', svg))


def test_png_has_all_panels_in_columns_on_white(charts):
    image = Image.open(io.BytesIO(charts[0].png)).convert("RGB")
    assert image.width > 1.4 * image.height and image.width >= 1200
    assert image.getpixel((0, 0)) == (255, 255, 255)
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert tuple(bytes.fromhex(LIGHT["teacher"][1:])) in colours


def test_the_same_twice(charts):
    assert make("one") == charts[0]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_packages_are_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"a report.*{package}.*\[report\]"):
        require_packages("a report", "jinja2", "matplotlib")


def test_chart_files(tmp_path, monkeypatch):
    for suffix in CHART_SUFFIXES:
        check_chart_file(tmp_path / f"chart{suffix}", overwrite=False)
    for name in ("chart", "chart.jpg", "chart.png.txt"):
        with pytest.raises(InputError, match=r"\.png"):
            check_chart_file(tmp_path / name, overwrite=False)
    file = tmp_path / "chart.png"
    file.touch()
    check_chart_file(file, overwrite=True)
    with pytest.raises(InputError, match="--overwrite"):
        check_chart_file(file, overwrite=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib.*\[report\]"):
        check_chart_file(file, overwrite=True)


def test_letters_that_the_font_lacks_give_no_warning():
    code = """
import io
from evaluation.report.charts import figure
from matplotlib.figure import Figure
drawing = Figure()
drawing.text(0.5, 0.5, "\\u65e5\\u672c.jpg\\t")
drawing.savefig(io.BytesIO())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
