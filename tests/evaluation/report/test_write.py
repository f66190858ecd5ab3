import base64
import io
import itertools
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation.hico.matching import match_detections
from evaluation.predictions import read_predictions
from evaluation.report.charts.figure import Chart
from evaluation.report.write import (
    write_images,
    write_report,
    write_report_beside,
)
from evaluation.results import METRICS, Results, read_results, write_results
from evaluation.tables import format_percent
from pipeline.datasets.dataset import open_dataset
from pipeline.splits import load_split
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

NAMES = ("distilled", "control", "ceiling", "teacher")
COLUMNS = ("full", "seen", "unseen", "harmonic_mean", "rare", "non_rare", "mean_max_recall")


class Page(HTMLParser):
    """Tags with their attributes, table cells and the heading of a page, whose tags are closed."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.heading, self._open = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "h1" in self._open:
            self.heading += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def find(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write(out, *results, **options):
    """Writes a report and gives its text."""
    write_report(results, out, **options)
    return out.read_text()


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


def test_images_are_embedded_and_described(report, page):
    assert len(page.find("img")) >= 3 * 12
    for image in page.find("img"):
        kind, _, data = image["src"].partition(";base64,")
        assert kind == "data:image/jpeg"
        Image.open(io.BytesIO(base64.b64decode(data))).load()
        assert len(image["alt"]) > 15
    folder = report.with_name("report-pictures")
    entries = json.loads((folder / "pictures.json").read_text())
    assert len(entries) == 8 + len(page.find("img")) // 3
    for entry in entries:
        image = Image.open(folder / entry["file"])
        image.load()
        # The drawings of an image, each 512 pixels wide, are side by side.
        assert image.width > (3 * 512 if entry["file"].startswith("picture-") else 500)
        assert len(entry["description"]) > 40
    assert "Best" in {entry["title"] for entry in entries}


def test_needs_no_network(report):
    text = re.sub(r'src="data:[^"]*"', "", report.read_text())
    for part in ("http:", "https:", "<script src", "import(", "fetch(", "@import"):
        assert part not in text
    assert set(re.findall(r'(?:src|href)="([^"#]*)', text)) <= {"data:,", ""}
    assert not re.findall(r"url\((?!#)", text)


def test_every_section_is_there(page):
    anchors = [attributes["id"] for attributes in page.find("section")]
    assert anchors == [
        *("results", "classes", "frequency", "actions", "teacher", "curves", "errors"),
        *("confusion", "training", "images"),
    ]
    assert [attributes["href"] for attributes in page.find("a")] == [f"#{a}" for a in anchors]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_charts_have_descriptions_and_colours_of_the_page(report, page):
    charts = [each for each in page.find("div") if each.get("class", "").startswith("chart")]
    assert len(charts) == 8
    assert all(each["role"] == "img" and len(each["aria-label"]) > 40 for each in charts)
    text = report.read_text()
    used, defined = (
        set(re.findall(pattern, text)) for pattern in (r"var\((--[a-z-]+)", r"(--[a-z-]+):")
    )
    assert used <= defined
    svgs = re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL)
    assert len(svgs) > len(charts)
    assert not any(re.search(r"#[0-9a-f]{6}\b", svg) for svg in svgs)
    assert "learning rate" in text and "teacher accuracy 96.8" in text
    assert 'class="published"' not in text


def test_tables_have_heads_and_captions(page):
    assert all(head["scope"] in ("col", "row", "rowgroup") for head in page.find("th"))
    assert len(page.find("caption")) == len(page.tables) == 4


def test_numbers_are_the_results(runs, page, toy):
    results = [read_results(runs / name / "results.json") for name in NAMES]
    for result, cells in zip(results, page.tables[0][1:], strict=True):
        values = [result.metrics[column] for column in COLUMNS]
        assert cells[1:] == [format_percent(value) for value in values if value is not None]
    unseen = format_percent(results[0].metrics["unseen"])
    assert page.heading.startswith(f"{unseen} mAP on carry, kick and push")
    head, *rows = page.tables[1]
    assert head[:4] == ["Interaction", "Group", "Training", "Test"]
    assert len(rows) == len(results[0].per_class)
    unseen_names = {toy.interaction_name(index) for index in results[0].unseen}
    for name, group, _, test, *values in rows:
        name = name.removeprefix("★ ")
        assert values == [format_percent(result.per_class.get(name)) for result in results]
        assert int(test) > 0
        assert group.split()[0] == ("unseen" if name in unseen_names else "seen")


def test_a_single_result_without_other_files(bare, tmp_path):
    text = write(tmp_path / "out" / "report.html", bare(name="<b>a & b</b>", kind="predictions"))
    page = Page(text)
    assert page.find("img") == []
    assert "The results name no dataset; give its folder with --data DATASET." in text
    assert (
        "Not on this page: AP against training instances, precision and recall, kinds of errors,"
        " confusion between verbs, training curves and test images."
    ) in text
    assert [each["id"] for each in page.find("section")] == ["results", "classes", "actions"]
    assert "<b>a &" not in text and "&lt;b&gt;a &amp; b&lt;/b&gt;" in text


def test_notes_of_a_result_without_unseen_interactions_are_sentences(change, tmp_path):
    text = write(tmp_path / "report.html", change("ceiling", split="full", unseen=[]))
    notes = re.findall(r'<p class="note">(.*?)</p>', text, re.DOTALL)
    assert any("numbers of labelled instances" in note for note in notes)
    assert all(note.endswith(".") for note in notes), notes


def test_a_result_of_a_few_images_is_marked(bare, tmp_path):
    text = write(tmp_path / "report.html", bare(name="trial", limit=8, training_limit=16))
    note = "trained with --limit 16 and evaluated with --limit 8"
    assert f"not a whole run: trial ({note})." in text and f"<small>{note}</small>" in text


def test_hico_det_with_all_its_classes(tmp_path):
    hico = load_vocabulary("hico-det")
    results = Results(
        *("a", "student", "hico-det", "hico-det", "ua", load_split(hico, "ua").unseen, "default"),
        dict.fromkeys(METRICS, 0.25),
        {hico.interaction_name(index): index / 600 for index in range(600)},
        num_images=9546,
        training_split="ua",
        distillation=True,
    )
    write_results(tmp_path / "a.json", results)
    text = write(tmp_path / "report.html", tmp_path / "a.json")
    tables = Page(text).tables
    assert len(tables[1]) == 601
    assert "All 100 unseen, mean" in text and "All 500 seen, mean" in text
    (published,) = (row for row in tables[0] if "published" in row[0])
    assert published[1:4] == ["29.2", "30.5", "23.0"]
    assert "arXiv:2204.03541" in published[0]
    assert len(text) < 2_000_000


def test_several_seeds(runs, change, tmp_path):
    annotations = str(runs / "toy/annotations/test_hico.json")
    files = [
        change("distilled", seed=seed, dataset_path=None, annotations=annotations)
        for seed in (3, 5)
    ]
    text = write(tmp_path / "report.html", *files)
    rows = [row[0].split("\n")[0] for row in Page(text).tables[0]]
    assert rows[2:] == ["seed 3", "seed 5"]
    assert "images are those of one run of each entry (seed 3)." in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unseen": [3, 50]}, "unseen: expected interactions of toy, 0 to 49, found 50"),
        ({"vocabulary": "hico-det"}, r"vocabulary: expected.*found hico-det"),
        ({"vocabulary": "mine", "dataset_path": "gone"}, "teacher: dataset_path: expected.*mine"),
        ({"per_action": {}}, r"metrics.average_agent_ap: expected"),
    ],
)
def test_results_that_do_not_fit(change, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "report.html", change("teacher", **fields))
    assert not (tmp_path / "report.html").exists()


def test_an_existing_report_is_not_overwritten(bare, tmp_path):
    out, source = tmp_path / "report.html", bare()
    out.write_text("mine")
    with pytest.raises(InputError, match=r"report\.html: exists"):
        write(out, source)
    assert out.read_text() == "mine"
    out.unlink()
    (tmp_path / "report-pictures").mkdir()
    with pytest.raises(InputError, match="report-pictures: exists"):
        write(out, source)
    write(out, source, overwrite=True, png=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "classes.png").is_file()
    assert list((tmp_path / "report-pictures").iterdir()) == []


def test_report_beside_an_evaluation(runs, change, monkeypatch):
    """What was scored is not read or matched again; errors are returned, not raised."""
    annotations = str(runs / "toy/annotations/test_hico.json")
    source = change("control", dataset_path=None, annotations=annotations)
    results = read_results(source)
    test, vocabulary = open_dataset(runs / "toy").load("test"), load_vocabulary("toy")
    found = read_predictions(results.predictions, vocabulary)
    known = replace(results, matches=match_detections(test.annotations, found, vocabulary))
    for name in ("read_predictions", "match_and_sort"):
        monkeypatch.setattr(f"evaluation.report.inputs.{name}", None)
    out = source.with_name("report.html")
    assert write_report_beside(source, matches=known.matches) == f"report: {out}"
    assert 'id="errors"' in out.read_text()
    write_results(source.with_name("again.json"), known)
    assert "matches" not in json.loads(source.with_name("again.json").read_text())
    source.write_text("{}")
    assert write_report_beside(source).startswith(f"no report: {source}: ")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "no report: a report needs matplotlib" in write_report_beside(source)


def test_only_images_of_an_earlier_report_are_removed(tmp_path):
    def charts(*names):
        return [Chart(name, f"{name}?", f"Alt {name}", (), (), b"PNG") for name in names]

    folder = tmp_path / "pictures"
    write_images(folder, charts("old", "both"), [])
    index = folder / "pictures.json"
    entries = json.loads(index.read_text())
    (tmp_path / "precious.png").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    entries += [{"file": "../precious.png"}, {"file": "notes.txt"}, {"file": 3}, "x"]
    index.write_text(json.dumps(entries))
    write_images(folder, charts("new", "both"), [])
    found = {path.name for path in folder.iterdir()}
    assert found == {"new.png", "both.png", "pictures.json", "notes.txt"}
    assert (tmp_path / "precious.png").read_bytes() == b"mine"
    for damaged in ("", "[", "{}", "3"):
        index.write_text(damaged)
        write_images(folder, [], [])
        assert json.loads(index.read_text()) == []
