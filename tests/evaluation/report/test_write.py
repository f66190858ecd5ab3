import base64
import io
import itertools
import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation.hico.matching import match_detections
from evaluation.predictions import read_predictions
from evaluation.report.charts.figure import Chart
from evaluation.report.gallery import GalleryImage, GalleryItem, GalleryRow
from evaluation.report.write import (
    ReportConfig,
    draw_item,
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


class Page(HTMLParser):
    """Images, table cells, headings and open tags of a page."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.images, self.tables, self.text, self.tags, self._open = [], [], {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
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
        tag = self._open[-1] if self._open else ""
        self.text[tag] = self.text.get(tag, "") + data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data


NAMES = ("distilled", "control", "ceiling", "teacher")


def write(out, *results, **options):
    """Writes a report and gives its text."""
    write_report(ReportConfig(results, out, **options))
    return out.read_text()


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


def test_every_image_is_embedded_and_has_an_alt_text(page):
    assert len(page.images) >= 3 * 12
    for image in page.images:
        kind, _, data = image["src"].partition(";base64,")
        assert kind == "data:image/jpeg"
        Image.open(io.BytesIO(base64.b64decode(data))).load()
        assert len(image["alt"]) > 15


def test_needs_no_network(report):
    text = re.sub(r'src="data:[^"]*"', "", report.read_text())
    assert "http:" not in text
    assert "https:" not in text
    assert "<script src" not in text and "import(" not in text and "fetch(" not in text
    assert set(re.findall(r'(?:src|href)="([^"#]*)', text)) <= {"data:,", ""}
    assert not re.findall(r"@import|url\((?!#)", text)


def test_every_section_is_there(page):
    anchors = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert anchors == [
        *("results", "classes", "frequency", "actions", "teacher", "curves", "errors"),
        *("confusion", "training", "images"),
    ]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{anchor}" for anchor in anchors]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_charts_have_labels(page):
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 2 * 9
    for chart in charts:
        assert chart["role"] == "img"
        assert len(chart["aria-label"]) > 40


def test_tables_have_heads_and_captions(page):
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(head["scope"] in ("col", "row", "rowgroup") for head in heads)
    tables = [tag for tag, _ in page.tags].count("table")
    assert [tag for tag, _ in page.tags].count("caption") == tables == len(page.tables) == 4


COLUMNS = ("full", "seen", "unseen", "harmonic_mean")


def test_numbers_are_the_results(runs, page):
    rows = {row[0].split("\n")[0].strip(): row[1:] for row in page.tables[0][1:]}
    assert len(rows) == len(NAMES)
    for name, title in zip(NAMES, ("Distilled", "No dist", "All labels", "Teacher"), strict=True):
        metrics = read_results(runs / name / "results.json").metrics
        (row,) = (cells for key, cells in rows.items() if key.startswith(title))
        assert row == [format_percent(metrics[column]) for column in COLUMNS] + [
            format_percent(metrics[column])
            for column in ("rare", "non_rare", "mean_max_recall")
            if metrics[column] is not None
        ]
    unseen = read_results(runs / "distilled" / "results.json").metrics["unseen"]
    assert page.text["h1"].startswith(f"{format_percent(unseen)} mAP on carry, kick and push")


def test_every_interaction_has_a_row(runs, page, toy):
    results = [read_results(runs / name / "results.json") for name in NAMES]
    head, *rows = page.tables[1]
    assert head[:4] == ["Interaction", "Group", "Training", "Test"]
    assert len(rows) == len(results[0].per_class)
    for name, group, _, test, *values in rows:
        name = name.removeprefix("★ ")
        assert values == [format_percent(result.per_class.get(name)) for result in results]
        assert int(test) > 0
        index = [toy.interaction_name(i) for i in range(toy.num_interactions)].index(name)
        assert group.split()[0] == ("unseen" if index in results[0].unseen else "seen")


def test_shows_curves_and_extras(report):
    text = report.read_text()
    assert "learning rate" in text
    assert "teacher accuracy 96.8" in text


def test_png_files_of_the_page(report, page):
    folder = report.with_name("report-pictures")
    entries = json.loads((folder / "pictures.json").read_text())
    assert len(entries) == 9 + len(page.images) // 3
    for entry in entries:
        image = Image.open(folder / entry["file"])
        image.load()
        assert image.width > 500
        assert len(entry["description"]) > 40


def test_colours_of_charts_have_styles(report):
    text = report.read_text()
    used = set(re.findall(r"var\((--[a-z-]+)", text))
    defined = set(re.findall(r"(--[a-z-]+):", text))
    assert used <= defined
    charts = re.findall(r"<svg viewBox.*?</svg>", text, flags=re.DOTALL)
    assert charts
    assert not any(re.search(r"#[0-9a-f]{6}\b", chart) for chart in charts)


def changed(runs, folder, run="teacher", **fields):
    """A run's results with other fields."""
    value = json.loads((runs / run / "results.json").read_text())
    value["dataset_path"] = str(runs / "toy")
    value["per_class"] = dict(list(value["per_class"].items())[::10])
    (folder / "results.json").write_text(json.dumps(value | fields))
    return folder / "results.json"


NOTHING = {"dataset_path": None, "predictions": None, "metrics_log": None, "extra": {}}


def test_a_single_result_without_other_files(runs, tmp_path):
    text = write(tmp_path / "out" / "report.html", changed(runs, tmp_path, **NOTHING))
    page = Page(text)
    assert page.images == []
    assert "The results name no dataset; give its folder with --data DATASET." in text
    assert (
        "Not on this page: AP against training instances, precision and recall, kinds of errors,"
        " confusion between verbs, training curves and test images."
    ) in text
    assert {a["id"] for tag, a in page.tags if tag == "section"} == {
        *("results", "classes", "actions")
    }


def test_dataset_given(runs, tmp_path):
    source = changed(runs, tmp_path, predictions="gone.json", dataset_path="gone")
    text = write(tmp_path / "report.html", source, data=runs / "toy")
    assert 'id="frequency"' in text
    assert "The predictions files of these results were not found." in text


def test_hico_det_with_all_its_classes(tmp_path):
    hico = load_vocabulary("hico-det")
    split = load_split(hico, "ua")
    names = [hico.interaction_name(index) for index in range(600)]
    per_class = {name: index / 600 for index, name in enumerate(names)}
    for name, distillation in (("a", True), ("b", False)):
        results = Results(
            *(name, "student", "hico-det", "hico-det", "ua", split.unseen, "default"),
            dict.fromkeys(METRICS, 0.25),
            per_class,
            num_images=9546,
            training_split="ua",
            distillation=distillation,
        )
        write_results(tmp_path / f"{name}.json", results)
    text = write(tmp_path / "report.html", tmp_path / "a.json", tmp_path / "b.json")
    page = Page(text)
    assert len(page.tables[1]) == 601
    assert "All 100 unseen interactions" in text and "All 500 seen interactions" in text
    (published,) = (row for row in page.tables[0] if "published" in row[0])
    assert published[1:4] == ["29.2", "30.5", "23.0"]
    assert "arXiv:2204.03541" in published[0]
    assert len(text) < 2_000_000


def test_the_toy_has_no_published_numbers(report):
    assert 'class="published"' not in report.read_text()


def test_both_settings(runs, tmp_path):
    value = json.loads((runs / "teacher" / "results.json").read_text())
    further = {"metrics": {**value["metrics"], "full": 0.987}, "per_class": value["per_class"]}
    further |= {"per_verb": {}, "per_object": {}, "splits": {}}
    source = changed(runs, tmp_path, **NOTHING, known_object=further)
    rows = Page(write(tmp_path / "report.html", source)).tables[0]
    assert "known-object" in rows[-2][0].lower()
    assert rows[-1][:2] == ["Teacher", "98.7"]


def test_several_seeds(runs, tmp_path):
    sources = []
    for seed in (3, 5):
        folder = tmp_path / str(seed)
        shutil.copytree(runs / "distilled", folder)
        sources.append(changed(runs, folder, "distilled", seed=seed))
    text = write(tmp_path / "report.html", *sources)
    rows = [row[0].split("\n")[0] for row in Page(text).tables[0]]
    assert rows[2:] == ["seed 3", "seed 5"]
    assert "images are those of one run of each entry (seed 3)." in text


def test_results_of_different_splits(runs, tmp_path):
    other = changed(runs, tmp_path, split="uc", unseen=[1])
    with pytest.raises(InputError, match="results to compare: expected"):
        write(tmp_path / "report.html", runs / "distilled" / "results.json", other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unseen": [3, 50]}, "unseen: expected interactions of toy, 0 to 49, found 50"),
        ({"vocabulary": "hico-det"}, r"vocabulary: expected.*found hico-det"),
        ({"per_action": {}}, r"metrics.average_agent_ap: expected"),
    ],
)
def test_results_that_do_not_fit(runs, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "report.html", changed(runs, tmp_path, **fields))
    assert not (tmp_path / "report.html").exists()


def test_names_are_escaped(runs, tmp_path):
    fields = {"kind": "predictions", "name": "<b>a & b</b>", "predictions": None}
    text = write(tmp_path / "report.html", changed(runs, tmp_path, **fields))
    assert "<b>a &" not in text
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in text


def test_an_existing_report_is_not_overwritten(runs, tmp_path):
    out, source = tmp_path / "report.html", changed(runs, tmp_path, **NOTHING)
    out.write_text("mine")
    with pytest.raises(InputError, match=r"report\.html: exists"):
        write(out, source)
    assert out.read_text() == "mine"
    out.unlink()
    (tmp_path / "report-pictures").mkdir()
    with pytest.raises(InputError, match="report-pictures: exists"):
        write(out, source)
    write(out, source, overwrite=True)
    write(tmp_path / "second.html", source, png=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "classes.png").is_file()
    assert not (tmp_path / "second-pictures").exists()


def test_unknown_vocabulary(runs, tmp_path):
    source = changed(runs, tmp_path, dataset_path="gone", vocabulary="mine")
    with pytest.raises(InputError, match="teacher: expected"):
        write(tmp_path / "report.html", source)


def test_report_in_the_folder_of_an_evaluation(runs, tmp_path, monkeypatch):
    source = changed(runs, tmp_path, **NOTHING)
    assert write_report_beside(source) == f"report: {tmp_path / 'report.html'}"
    assert (tmp_path / "report.html").is_file()
    # Errors are returned, not raised.
    source.write_text("{}")
    assert write_report_beside(source).startswith(f"no report: {source}: ")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "no report: a report needs matplotlib, which is not installed" in write_report_beside(
        source
    )


@pytest.mark.parametrize("setting", ["default", "known_object"])
def test_matches_are_handed_on(runs, tmp_path, monkeypatch, setting):
    """A report on results in memory is the one on their files, without reading or matching again
    what was scored."""
    folder = tmp_path / "run"
    shutil.copytree(runs / "control", folder)
    source = folder / "results.json"
    value = json.loads(source.read_text())
    place = str(runs / "toy")
    source.write_text(json.dumps({**value, "dataset_path": place, "setting": setting}))
    write_report(ReportConfig((source,), tmp_path / "files.html"))
    results = read_results(source)
    test = open_dataset(runs / "toy").load("test")
    vocabulary = load_vocabulary("toy")
    found = read_predictions(results.predictions, vocabulary)
    known = replace(results, matches=match_detections(test.annotations, found, vocabulary))

    def fail(*_):
        raise AssertionError("read or matched again")

    monkeypatch.setattr("evaluation.report.inputs.read_predictions", fail)
    monkeypatch.setattr("evaluation.report.inputs.match_and_sort", fail)
    write_report(ReportConfig((source,), tmp_path / "memory.html"), known)
    assert (tmp_path / "memory.html").read_text() == (tmp_path / "files.html").read_text()
    write_results(tmp_path / "again.json", known)
    assert "matches" not in json.loads((tmp_path / "again.json").read_text())


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    file = tmp_path_factory.mktemp("png") / "chart.png"
    Image.new("RGB", (8, 8), "red").save(file)
    return file.read_bytes()


def gallery_item(image_id="a.jpg", sizes=((90, 60), (90, 60))):
    drawings = [
        GalleryImage(f"View {place}", "AP 3" * place, "ground_truth", Image.new("RGB", size), "Alt")
        for place, size in enumerate(sizes)
    ]
    return GalleryItem(image_id, tuple(drawings))


def make_charts(png, *names):
    return [Chart(name, f"Title of {name}", f"Alt of {name}", "", "", png) for name in names]


def test_write_no_images(tmp_path):
    write_images(tmp_path / "new" / "pictures", [], [])
    assert json.loads((tmp_path / "new/pictures/pictures.json").read_text()) == []


def test_every_image_is_listed_with_its_description(tmp_path, png):
    gallery_rows = [
        GalleryRow("Best", "", (gallery_item("a.jpg"), gallery_item("b.jpg"))),
        GalleryRow("Worst", "", (gallery_item(),)),
    ]
    write_images(tmp_path, make_charts(png, "one", "two"), gallery_rows)
    entries = json.loads((tmp_path / "pictures.json").read_text())
    names = ["one.png", "two.png", "picture-01.png", "picture-02.png", "picture-03.png"]
    assert [entry["file"] for entry in entries] == names
    assert [entry["title"] for entry in entries[1:4]] == ["Title of two", "Best", "Best"]
    assert entries[0]["description"] == "Alt of one"
    assert {path.name for path in tmp_path.iterdir()} == {*names, "pictures.json"}
    for name in names:
        Image.open(tmp_path / name).load()


def test_only_images_of_an_earlier_report_are_removed(tmp_path, png):
    folder = tmp_path / "pictures"
    write_images(folder, make_charts(png, "old", "both"), [])
    entries = json.loads((folder / "pictures.json").read_text())
    (tmp_path / "precious.png").write_bytes(b"mine")
    entries += [{"file": "../precious.png"}, {"file": 3}, "x", {"file": "notes.txt"}]
    (folder / "pictures.json").write_text(json.dumps(entries))
    (folder / "notes.txt").write_text("mine")
    write_images(folder, make_charts(png, "new", "both"), [])
    found = {path.name for path in folder.iterdir()}
    assert found == {"new.png", "both.png", "pictures.json", "notes.txt"}
    assert (tmp_path / "precious.png").read_bytes() == b"mine"


@pytest.mark.parametrize("index", ["", "[", "{}"])
def test_a_damaged_list_is_replaced(tmp_path, png, index):
    (tmp_path / "pictures.json").write_text(index)
    write_images(tmp_path, make_charts(png, "one"), [])
    assert len(json.loads((tmp_path / "pictures.json").read_text())) == 1


def test_drawings_are_side_by_side():
    sheet = draw_item(gallery_item(sizes=((90, 60), (90, 60), (90, 40))))
    assert sheet.width > 270 and sheet.height > 60
    black = sheet.convert("L").point(lambda value: 255 * (value == 0)).getbbox()
    assert black[2] - black[0] >= 270
