import json

import pytest
from PIL import Image

from evaluation.report.charts.figure import Chart
from evaluation.report.gallery import GalleryImage, GalleryItem, GalleryRow
from evaluation.report.write import draw_item, write_images


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    file = tmp_path_factory.mktemp("png") / "chart.png"
    Image.new("RGB", (8, 8), "red").save(file)
    return file.read_bytes()


def card(image_id="a.jpg", sizes=((90, 60), (90, 60))):
    pictures = [
        GalleryImage(f"View {place}", "AP 3" * place, "ground_truth", Image.new("RGB", size), "Alt")
        for place, size in enumerate(sizes)
    ]
    return GalleryItem(image_id, tuple(pictures))


def charts(png, *names):
    return [Chart(name, f"Title of {name}", f"Alt of {name}", "", "", png) for name in names]


def test_nothing(tmp_path):
    write_images(tmp_path / "new" / "pictures", [], [])
    assert json.loads((tmp_path / "new/pictures/pictures.json").read_text()) == []


def test_every_picture_and_what_it_shows(tmp_path, png):
    gallery_rows = [
        GalleryRow("Best", "", (card("a.jpg"), card("b.jpg"))),
        GalleryRow("Worst", "", (card(),)),
    ]
    write_images(tmp_path, charts(png, "one", "two"), gallery_rows)
    entries = json.loads((tmp_path / "pictures.json").read_text())
    names = ["one.png", "two.png", "picture-01.png", "picture-02.png", "picture-03.png"]
    assert [entry["file"] for entry in entries] == names
    assert [entry["title"] for entry in entries[1:4]] == ["Title of two", "Best", "Best"]
    assert entries[0]["description"] == "Alt of one"
    assert {path.name for path in tmp_path.iterdir()} == {*names, "pictures.json"}
    for name in names:
        Image.open(tmp_path / name).load()


def test_pictures_of_an_earlier_report_go_and_nothing_else(tmp_path, png):
    folder = tmp_path / "pictures"
    write_images(folder, charts(png, "old", "both"), [])
    entries = json.loads((folder / "pictures.json").read_text())
    (tmp_path / "precious.png").write_bytes(b"mine")
    entries += [{"file": "../precious.png"}, {"file": 3}, "x", {"file": "notes.txt"}]
    (folder / "pictures.json").write_text(json.dumps(entries))
    (folder / "notes.txt").write_text("mine")
    write_images(folder, charts(png, "new", "both"), [])
    found = {path.name for path in folder.iterdir()}
    assert found == {"new.png", "both.png", "pictures.json", "notes.txt"}
    assert (tmp_path / "precious.png").read_bytes() == b"mine"


@pytest.mark.parametrize("index", ["", "[", "{}"])
def test_a_damaged_list_is_replaced(tmp_path, png, index):
    (tmp_path / "pictures.json").write_text(index)
    write_images(tmp_path, charts(png, "one"), [])
    assert len(json.loads((tmp_path / "pictures.json").read_text())) == 1


def test_views_stand_side_by_side():
    sheet = draw_item(card(sizes=((90, 60), (90, 60), (90, 40))))
    assert sheet.width > 270 and sheet.height > 60
    black = sheet.convert("L").point(lambda value: 255 * (value == 0)).getbbox()
    assert black[2] - black[0] >= 270
