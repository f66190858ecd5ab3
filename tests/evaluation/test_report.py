import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation.report import write_report
from evaluation.results import read_results
from evaluation.wording import percent
from pipeline.errors import InputError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """Images, table cells, headings and open tags of a page."""

    VOID = ("meta", "link", "img", "br", "path", "use")

    def __init__(self, text):
        super().__init__()
        self.images, self.rows, self.text, self._open = [], [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        tag = self._open[-1] if self._open else ""
        self.text[tag] = self.text.get(tag, "") + data
        if {"td", "th"} & set(self._open) and self.rows:
            self.rows[-1][-1] += data


NAMES = ("distilled", "control", "ceiling", "teacher")


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([runs / name / "results.json" for name in NAMES[::-1]], out)
    return out


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


def test_every_picture_is_inside_and_has_words(page):
    assert len(page.images) >= 3 * 8
    for image in page.images:
        kind, _, data = image["src"].partition(";base64,")
        assert kind == "data:image/jpeg"
        Image.open(io.BytesIO(base64.b64decode(data))).load()
        assert len(image["alt"]) > 15


def test_needs_no_network(report):
    text = re.sub(r'src="data:[^"]*"', "", report.read_text())
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    assert set(re.findall(r'(?:src|href)="([^"#]*)', text)) <= {"data:,", ""}
    assert not re.findall(r"@import|url\((?!#)", text)


def test_numbers_are_the_results(runs, page):
    rows = {row[0].split("\n")[0].strip(): row[1:] for row in page.rows[1:]}
    assert len(rows) == len(NAMES)
    for name, title in zip(NAMES, ("Distilled", "No dist", "All labels", "Teacher"), strict=True):
        metrics = read_results(runs / name / "results.json").metrics
        (row,) = (cells for key, cells in rows.items() if key.startswith(title))
        assert row == [percent(metrics[column]) for column in ("full", "seen", "unseen")] + [
            percent(metrics[column])
            for column in ("rare", "non_rare", "mean_max_recall")
            if metrics[column] is not None
        ]
    unseen = read_results(runs / "distilled" / "results.json").metrics["unseen"]
    assert page.text["h1"].startswith(f"{percent(unseen)} mAP on carry, kick and push")


def test_shows_curves_and_extras(report):
    text = report.read_text()
    assert "learning rate" in text
    assert "teacher accuracy 96.8" in text
    assert text.count('role="img"') == 4


def test_stand_in_colours_have_styles(report):
    text = report.read_text()
    used = set(re.findall(r"var\((--[a-z-]+)", text))
    defined = set(re.findall(r"(--[a-z-]+):", text))
    assert used <= defined


def test_one_result_without_anything_beside_it(runs, tmp_path):
    value = json.loads((runs / "teacher" / "results.json").read_text())
    value |= {"dataset_path": None, "predictions": None, "metrics_log": None, "extra": {}}
    (tmp_path / "results.json").write_text(json.dumps(value))
    write_report([tmp_path / "results.json"], tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.images == []
    assert "No predictions file lies beside these results." in text
    assert "Training" not in text


def test_dataset_gone(runs, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(runs / "distilled", folder)
    write_report([folder / "results.json"], tmp_path / "report.html")
    assert "dataset with the test pictures is not where" in (tmp_path / "report.html").read_text()


def test_names_are_escaped(runs, tmp_path):
    value = json.loads((runs / "teacher" / "results.json").read_text())
    value |= {"kind": "predictions", "name": "<b>a & b</b>", "predictions": None}
    value["dataset_path"] = str(runs / "world")
    (tmp_path / "results.json").write_text(json.dumps(value))
    write_report([tmp_path / "results.json"], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<b>a &" not in text
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in text


def test_an_existing_report_stays(runs, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists; give --overwrite"):
        write_report([runs / "teacher" / "results.json"], out)
    assert out.read_text() == "mine"


def test_vocabulary_nobody_knows(runs, tmp_path):
    value = json.loads((runs / "teacher" / "results.json").read_text())
    value |= {"dataset_path": "gone", "vocabulary": "mine"}
    (tmp_path / "results.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="expected the dataset that defines vocabulary mine"):
        write_report([tmp_path / "results.json"], tmp_path / "report.html")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(report, tmp_path, width):
    """Every picture loads, nothing is wider than the window, the console stays silent."""
    probe = (
        "<script>onload=()=>{let d=document.documentElement;"
        "document.title='loaded '+[...document.images].filter(i=>i.naturalWidth>0).length"
        "+' wide '+(d.scrollWidth>innerWidth)}</script>"
    )
    page = tmp_path / "page.html"
    page.write_text(report.read_text().replace("</body>", f"{probe}</body>"))
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    options += " --disable-background-networking --disable-component-update --disable-sync"
    options += f" --enable-logging=stderr --window-size={width},900 --dump-dom"
    command = [CHROMIUM, *options.split(), f"--user-data-dir={tmp_path / 'user'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    images = len(Page(report.read_text()).images)
    assert f"<title>loaded {images} wide false</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
