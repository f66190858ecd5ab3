import json
import os
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cluster.lock import LOCK, lock_folder
from pipeline.utils.errors import InputError
from student.inference.detector import Detector
from student.inference.postprocess import SelectionConfig
from student.inference.predict_images import plan_outputs, predict_images


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
    """Names of the files but that of the lock."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if name != LOCK)


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


def test_a_file_that_cannot_be_written_is_refused(predict, tmp_path, monkeypatch, predicted):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "locked")
    with pytest.raises(InputError, match=r"all\.json: expected a place that can be written to"):
        predict(out=None, json_file=tmp_path / "locked/all.json")
    assert not predicted


def test_unreadable_files_are_reported_once_at_the_end(predict, out, tmp_path, messages):
    for name in ("in/b.jpg", "empty.png"):
        (tmp_path / name).write_bytes(b"no image")
    patterns = tmp_path / "in", tmp_path / "empty.png", tmp_path / "x*.jpg"
    expected = "2 of 4 images could not be read; 1 of the arguments give no image or video"
    with pytest.raises(InputError, match=expected):
        predict(patterns=patterns, json_file=tmp_path / "all.json")
    for message in (
        "b.jpg: expected an image",
        "empty.png: expected an image",
        "x*.jpg: no file matches",
    ):
        assert sum(message in line for line in messages) == 1
    assert files(out) == [name for name in RESULTS if not name.startswith("b")]
    failed = json.loads((tmp_path / "all.json").read_text())["failed"]
    assert [os.path.basename(one["image"]) for one in failed] == ["b.jpg", "empty.png"]
    assert all(one["reason"] for one in failed)


def test_if_no_file_can_be_read_there_are_no_results(predict, tmp_path, messages, capsys):
    paths = [tmp_path / f"{row}.png" for row in range(2)]
    for path in paths:
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^2 of 2 images could not be read$"):
        predict(patterns=paths, json_file=tmp_path / "all.json")
    assert len(messages) == 2 and capsys.readouterr().out == ""
    assert not (tmp_path / "all.json").exists()


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


def test_two_commands_cannot_write_to_one_folder(predict, out):
    with lock_folder(out), pytest.raises(InputError, match="another command"):
        predict()
    assert files(out) == []
    assert predict() == 3


@pytest.mark.parametrize("name", ["a.jpg", "a.json"])
def test_existing_files_are_refused(predict, out, name):
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}: exists; give --overwrite or another name"):
        predict()
    assert (out / name).read_text() == "mine" and files(out) == [name]


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


def test_the_only_image_is_reported_in_one_line(predict, tmp_path, messages):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match=r"empty\.jpg: expected an image"):
        predict(patterns=[tmp_path / "empty.jpg"])
    assert messages == []


def test_a_student_of_drawn_images_says_so_where_it_finds_nothing(predict, messages):
    predict(threshold=1.0)
    assert any("drawn images" in text for text in messages)
