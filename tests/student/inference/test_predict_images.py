import json
import os
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from pipeline.utils.errors import InputError
from student.inference.detector import Detector
from student.inference.postprocess import SelectionConfig
from student.inference.predict_images import find_images, plan_outputs, predict_images


@pytest.fixture
def out(write_image, tmp_path):
    """The output folder, beside a folder `in` with three images, one of them in a subfolder."""
    for row, name in enumerate(("a.png", "b.jpg", "trip/a.png")):
        write_image(f"in/{name}", (64 + 32 * (row % 2), 64), row)
    return tmp_path / "out"


@pytest.fixture
def predict(toy_detector, out):
    """`predict(...)` predicts the images and returns their number."""

    def make(detector=toy_detector, patterns=(out.parent / "in",), threshold=0.0, **options):
        options = {"out": out, "json_file": None, **options}
        selection = SelectionConfig(threshold, 4)
        patterns = tuple(map(str, patterns))
        run = partial(predict_images, batch_size=2, workers=0, selection=selection)
        return run(detector, patterns, **options)

    return make


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def modification_times(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in files(folder)}


RESULTS = ["a.jpg", "a.json", "b.jpg", "b.json", "settings.json", "trip/a.jpg", "trip/a.json"]


def test_a_drawing_and_a_result_per_image(predict, out):
    assert predict() == 3
    assert files(out) == RESULTS
    entry = json.loads((out / "trip/a.json").read_text())
    assert entry["image"].endswith("in/trip/a.png") and entry["drawn"] == "trip/a.jpg"
    assert (entry["width"], entry["height"]) == (64, 64)
    assert len(entry["interactions"]) == 4
    with Image.open(out / "trip/a.jpg") as drawn:
        assert drawn.format == "JPEG" and drawn.width == 512


def test_one_json_file_for_all_images(predict, out):
    file, folder = out.parent / "all.json", out.parent / "in"
    assert predict(patterns=[folder, folder], out=None, json_file=file) == 3
    value = json.loads(file.read_text())
    assert value["format"] == "eoid-predict-2" and value["split"] == "ua" and value["top"] == 4
    assert value["vocabulary"] == "toy" and value["failed"] == []
    assert [os.path.basename(one["image"]) for one in value["pictures"]] == [
        "a.png",
        "b.jpg",
        "a.png",
    ]
    assert "drawn" not in value["pictures"][0] and not out.exists()
    file.write_text("mine")
    with pytest.raises(InputError, match=r"all.json: exists"):
        predict(json_file=file)
    assert file.read_text() == "mine" and not out.exists()


def test_unreadable_files_are_reported_once_at_the_end(predict, out, tmp_path, messages):
    (tmp_path / "in/b.jpg").write_bytes(b"no image")
    patterns = tmp_path / "in", tmp_path / "gone.png", tmp_path / "x*.jpg"
    expected = "2 of 4 images could not be read; 1 of the arguments match no image"
    with pytest.raises(InputError, match=expected):
        predict(patterns=patterns, json_file=tmp_path / "all.json")
    for message in (
        "b.jpg: expected an image",
        "gone.png: no such image",
        "x*.jpg: no file matches",
    ):
        assert sum(message in line for line in messages) == 1
    assert files(out) == [name for name in RESULTS if not name.startswith("b")]
    failed = json.loads((tmp_path / "all.json").read_text())["failed"]
    assert [os.path.basename(one["image"]) for one in failed] == ["b.jpg", "gone.png"]
    assert all(one["reason"] for one in failed)


def test_the_same_command_predicts_the_remaining_images(predict, out, write_image, tmp_path):
    predict()
    before = modification_times(out)
    (out / "b.json").unlink()
    write_image("in/new.png")
    assert predict(json_file=tmp_path / "all.json") == 4
    after = modification_times(out)
    done = {"a.jpg", "a.json", "trip/a.jpg", "trip/a.json"}
    assert {name for name in before if before[name] == after[name]} == done
    assert after.keys() == before.keys() | {"new.jpg", "new.json"}
    assert len(json.loads((tmp_path / "all.json").read_text())["pictures"]) == 4


def test_a_changed_image_is_predicted_again(predict, out, tmp_path):
    predict()
    before = modification_times(out)
    ahead = before["a.json"] + 10**9
    os.utime(tmp_path / "in/a.png", ns=(ahead, ahead))
    with pytest.raises(InputError, match=r"a.json: exists"):
        predict()
    assert predict(overwrite=True) == 3
    assert modification_times(out)["a.json"] > before["a.json"]


@pytest.mark.parametrize("changed", ["threshold", "split, unseen"])
def test_results_of_other_settings_are_refused(predict, out, toy_checkpoint, changed):
    predict()
    before = modification_times(out)
    change = {"threshold": 0.5}
    if changed == "split, unseen":
        change = {"detector": Detector.open(toy_checkpoint, "cpu", split="full")}
    message = rf"settings.json: expected results with the same settings.*\({changed}\)"
    with pytest.raises(InputError, match=message):
        predict(**change)
    assert modification_times(out) == before
    predict(**change, overwrite=True)
    assert modification_times(out)["a.json"] != before["a.json"]


@pytest.mark.parametrize("name", ["a.jpg", "a.json"])
def test_existing_files_are_refused(predict, out, name):
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}: exists; give --overwrite or another name"):
        predict()
    assert (out / name).read_text() == "mine" and files(out) == [name]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of empty image files; its parent is the working folder."""
    for name in (
        "photos/b.JPG",
        "photos/a.png",
        "photos/notes.txt",
        "photos/.hidden.jpg",
        "photos/trip/a.png",
        "photos/trip/more/c.webp",
        "photos/.cache/d.jpg",
        "photos/a[1].jpg",
        "photos/folder.jpg/notes.txt",
        "empty/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # Links to folders are not followed.
    os.symlink(tmp_path / "photos", tmp_path / "photos" / "again")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL_PHOTOS = [
    *("photos/a.png", "photos/a[1].jpg", "photos/b.JPG", "photos/trip/a.png"),
    "photos/trip/more/c.webp",
]


@pytest.mark.parametrize(
    ("patterns", "paths", "problems"),
    [
        ([], [], []),
        (["photos/b.JPG"], ["photos/b.JPG"], []),
        # A named file is taken whatever its extension.
        (["photos/notes.txt"], ["photos/notes.txt"], []),
        (["photos/gone.jpg"], ["photos/gone.jpg"], []),
        (["photos"], ALL_PHOTOS, []),
        (["photos/*.png"], ["photos/a.png"], []),
        (["photos/tri*"], ["photos/trip/a.png", "photos/trip/more/c.webp"], []),
        (["photos/a[1].jpg"], ["photos/a[1].jpg"], []),
        (["photos/b.JPG", "./photos/b.JPG", "photos/b*"], ["photos/b.JPG"], []),
        (["empty"], [], ["empty: no images in this folder"]),
        (
            ["x/*.jpg", "photos/a.png"],
            ["photos/a.png"],
            ["x/*.jpg: no file matches this pattern"],
        ),
    ],
)
def test_find_images(photos, patterns, paths, problems):
    found, _, lines, skipped = find_images(patterns)
    assert not skipped
    assert ([os.path.relpath(path) for path in found], lines) == (paths, problems)


def test_the_output_folder_is_not_searched(photos):
    for patterns in (["photos"], ["photos/trip/**/*.*"]):
        found, *_ = find_images(patterns, Path("photos/trip"))
        assert not any("trip" in path.parts for path in found)


def test_photographs_of_unsupported_formats_are_counted(photos):
    """One line for each argument; hidden files, other files and the output folder do not count."""
    names = ("b.HEIC", "trip/c.heic", "d.jxl", ".e.heic", "notes.txt", "out/f.dng")
    for name in names:
        Path("photos", name).parent.mkdir(exist_ok=True)
        Path("photos", name).write_bytes(b"?")
    found, _, problems, (line,) = find_images(["photos"], Path("photos/out"))
    assert found and not problems
    assert line.startswith("photos: 3 image files in formats that are not supported")
    assert "2 .heic, 1 .jxl" in line and "JPEG or PNG" in line
    _, _, problems, (line,) = find_images(["photos/out"])
    assert problems == ["photos/out: no images in this folder"]
    assert "1 image file in" in line and "1 .dng" in line


def test_a_skipped_photograph_is_a_warning(predict, out, messages):
    (out.parent / "in/c.heic").write_bytes(b"?")
    assert predict() == 3
    (line,) = [line for line in messages if "not supported" in line]
    assert line.startswith(f"{out.parent / 'in'}: 1 image file") and "1 .heic" in line


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], []),
        (["a.png", "a.jpg", "a.jpg"], ["a.json", "a-2.json", "a-3.json"]),
        (["a.png", "A.png"], ["a.json", "A-2.json"]),
        (["a.png", "a-2.png", "a.png"], ["a.json", "a-2.json", "a-3.json"]),
        (["trip/a.png", "a.png"], ["trip/a.json", "a.json"]),
        (["a.b.png", "a"], ["a.b.json", "a.json"]),
        (["settings.png"], ["settings-2.json"]),
    ],
)
def test_every_image_has_distinct_result_files(paths, expected):
    images = {Path("in") / str(row) / path: Path(path) for row, path in enumerate(paths)}
    planned = plan_outputs(images, Path("out"))
    assert [one.result.relative_to("out").as_posix() for one in planned] == expected
    assert all(one.drawn == one.result.with_suffix(".jpg") for one in planned)


def test_results_never_replace_an_input_image(tmp_path):
    image = tmp_path / "a.jpg"
    image.touch()
    with pytest.raises(
        InputError, match=r"--out: expected a folder without input files, found .*a.jpg"
    ):
        plan_outputs({image: Path("a.jpg")}, tmp_path)


def test_the_only_image_is_reported_in_one_line(toy_detector, tmp_path, messages):
    with pytest.raises(InputError, match=r"^gone\.jpg: no such"):
        predict_images(toy_detector, ["gone.jpg"], tmp_path / "out", None, SelectionConfig(0.1, 5))
    assert messages == []
