import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.utils.errors import InputError
from student.inference.model import ModelSpec
from student.inference.predict_images import (
    FoundImage,
    PredictImagesConfig,
    find_images,
    plan_outputs,
    predict_images,
)


@pytest.fixture
def config(toy_checkpoint, write_image, tmp_path):
    """Settings for three images in `tmp_path/in`, one of them in a subfolder."""
    for row, name in enumerate(("a.png", "b.jpg", "trip/a.png")):
        write_image(f"in/{name}", (64 + 32 * (row % 2), 64), row)
    return PredictImagesConfig(
        model=ModelSpec(toy_checkpoint),
        images=(str(tmp_path / "in"),),
        out=tmp_path / "out",
        json=None,
        threshold=0.0,
        top=4,
        batch_size=2,
        workers=0,
        device="cpu",
        overwrite=False,
    )


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


RESULTS = ["a.jpg", "a.json", "b.jpg", "b.json", "settings.json", "trip/a.jpg", "trip/a.json"]


def test_a_drawing_and_a_result_per_image(config):
    assert predict_images(config) == 3
    assert files(config.out) == RESULTS
    entry = json.loads((config.out / "trip/a.json").read_text())
    assert entry["image"].endswith("in/trip/a.png") and entry["drawn"] == "trip/a.jpg"
    assert (entry["width"], entry["height"]) == (64, 64)
    assert len(entry["interactions"]) == 4
    with Image.open(config.out / "trip/a.jpg") as drawn:
        assert drawn.format == "JPEG" and drawn.width == 512


def test_one_json_file_for_all_images(config):
    config = replace(config, out=None, json=config.out / "all.json", images=config.images * 2)
    assert predict_images(config) == 3
    value = json.loads(config.json.read_text())
    assert value["format"] == "eoid-predict-2" and value["split"] == "ua" and value["top"] == 4
    assert value["vocabulary"] == "toy" and value["failed"] == []
    assert [os.path.basename(one["image"]) for one in value["pictures"]] == [
        "a.png",
        "b.jpg",
        "a.png",
    ]
    assert "drawn" not in value["pictures"][0]


def test_unreadable_files_are_reported_once_at_the_end(config, tmp_path, messages):
    (tmp_path / "in/b.jpg").write_bytes(b"no image")
    images = (*config.images, str(tmp_path / "gone.png"), str(tmp_path / "x*.jpg"))
    config = replace(config, images=images, json=tmp_path / "all.json")
    expected = "2 of 4 images could not be read; 1 of the arguments match no image"
    with pytest.raises(InputError, match=expected):
        predict_images(config)
    lines = messages
    for message in (
        "b.jpg: expected an image",
        "gone.png: no such image",
        "x*.jpg: no file matches",
    ):
        assert sum(message in line for line in lines) == 1
    assert [name for name in files(config.out) if name.startswith("b")] == []
    assert len(files(config.out)) == 5
    failed = json.loads(config.json.read_text())["failed"]
    assert [os.path.basename(one["image"]) for one in failed] == ["b.jpg", "gone.png"]
    assert all(one["reason"] for one in failed)


def test_no_images(config, tmp_path, messages):
    with pytest.raises(InputError, match="expected at least one image"):
        predict_images(replace(config, images=(str(tmp_path / "x*"),)))
    assert "no file matches this pattern" in "\n".join(messages)


def modification_times(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in files(folder)}


def test_the_same_command_predicts_the_remaining_images(config, write_image):
    predict_images(config)
    before = modification_times(config.out)
    (config.out / "b.json").unlink()
    write_image("in/new.png")
    json_file = config.out.parent / "all.json"
    assert predict_images(replace(config, json=json_file, batch_size=1)) == 4
    after = modification_times(config.out)
    done = {"a.jpg", "a.json", "trip/a.jpg", "trip/a.json"}
    assert {name for name in before if before[name] == after[name]} == done
    assert after.keys() == before.keys() | {"new.jpg", "new.json"}
    assert len(json.loads(json_file.read_text())["pictures"]) == 4


def test_a_changed_image_is_predicted_again(config, tmp_path):
    predict_images(config)
    before = modification_times(config.out)
    ahead = before["a.json"] + 10**9
    os.utime(tmp_path / "in/a.png", ns=(ahead, ahead))
    with pytest.raises(InputError, match=r"a.json: exists"):
        predict_images(config)
    assert predict_images(replace(config, overwrite=True)) == 3
    assert modification_times(config.out)["a.json"] > before["a.json"]


@pytest.mark.parametrize(
    ("change", "names"), [({"threshold": 0.5}, "threshold"), ({"model": "full"}, "split, unseen")]
)
def test_results_of_other_settings_are_refused(config, change, names):
    predict_images(config)
    before = modification_times(config.out)
    if "model" in change:
        change = {"model": replace(config.model, split=change["model"])}
    with pytest.raises(
        InputError, match=rf"settings.json: expected results with the same settings.*\({names}\)"
    ):
        predict_images(replace(config, **change))
    assert modification_times(config.out) == before
    predict_images(replace(config, **change, overwrite=True))
    assert modification_times(config.out)["a.json"] != before["a.json"]


@pytest.mark.parametrize("name", ["a.jpg", "a.json"])
def test_existing_files_are_refused(config, name):
    config.out.mkdir()
    (config.out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}: exists; give --overwrite or another name"):
        predict_images(config)
    assert (config.out / name).read_text() == "mine" and files(config.out) == [name]


def test_an_existing_json_file_is_refused(config, tmp_path):
    (tmp_path / "all.json").write_text("mine")
    with pytest.raises(InputError, match=r"all.json: exists"):
        predict_images(replace(config, json=tmp_path / "all.json"))
    assert (tmp_path / "all.json").read_text() == "mine" and not config.out.exists()


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
        "empty/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(found):
    return [os.path.relpath(one.path) for one in found]


@pytest.mark.parametrize(
    ("patterns", "paths", "problems"),
    [
        ([], [], []),
        (["photos/b.JPG"], ["photos/b.JPG"], []),
        # A named file is taken whatever its extension.
        (["photos/notes.txt"], ["photos/notes.txt"], []),
        (["photos/gone.jpg"], ["photos/gone.jpg"], []),
        (
            ["photos"],
            [
                *("photos/a.png", "photos/a[1].jpg", "photos/b.JPG", "photos/trip/a.png"),
                "photos/trip/more/c.webp",
            ],
            [],
        ),
        (["photos/*.png"], ["photos/a.png"], []),
        (["photos/**/a.png"], ["photos/a.png", "photos/trip/a.png"], []),
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
    found, lines = find_images(patterns)
    assert (names(found), lines) == (paths, problems)


@pytest.mark.parametrize("patterns", [["photos"], ["photos/**/*.*"]])
def test_the_output_folder_is_not_searched(photos, patterns):
    found, _ = find_images(patterns, Path("photos/trip"))
    assert [name for name in names(found) if "trip" in name] == []


def test_a_link_to_a_parent_folder_is_not_followed(photos):
    os.symlink(photos / "photos", photos / "photos" / "again")
    assert len(find_images(["photos"])[0]) == 5


def plan(*paths, **options):
    images = [FoundImage(Path("in") / str(n) / p, Path(p)) for n, p in enumerate(paths)]
    planned = plan_outputs(images, Path("out"), **options)
    for one in planned:
        assert one.drawn.with_suffix("") == one.result.with_suffix("")
    return [one.result.relative_to("out").as_posix() for one in planned]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], []),
        (["a.png"], ["a.json"]),
        (["a.png", "a.jpg", "a.jpg"], ["a.json", "a-2.json", "a-3.json"]),
        (["a.png", "A.png"], ["a.json", "A-2.json"]),
        (["a.png", "a-2.png", "a.png"], ["a.json", "a-2.json", "a-3.json"]),
        (["trip/a.png", "a.png"], ["trip/a.json", "a.json"]),
        (["a.b.png", "a"], ["a.b.json", "a.json"]),
    ],
)
def test_every_image_has_distinct_result_files(paths, expected):
    assert plan(*paths) == expected


def test_reserved_names():
    assert plan("settings.png", reserved={"settings"}) == ["settings-2.json"]


def test_results_never_replace_an_input_image(tmp_path):
    image = tmp_path / "a.jpg"
    image.touch()
    with pytest.raises(
        InputError, match=r"--out: expected a folder without input images, found .*a.jpg"
    ):
        plan_outputs([FoundImage(image, Path("a.jpg"))], tmp_path)
