import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from pipeline.utils.errors import InputError
from student.inference.model import ModelSpec
from student.inference.predict_images import PredictImagesConfig, predict_images


@pytest.fixture
def config(toy_checkpoint, write_image, tmp_path):
    """Looks at three pictures in `tmp_path/in`, one of them in a folder below."""
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


def test_a_drawn_picture_and_an_answer_for_each(config):
    assert predict_images(config) == 3
    assert files(config.out) == RESULTS
    answer = json.loads((config.out / "trip/a.json").read_text())
    assert answer["image"].endswith("in/trip/a.png") and answer["drawn"] == "trip/a.jpg"
    assert (answer["width"], answer["height"]) == (64, 64)
    assert len(answer["interactions"]) == 4
    with Image.open(config.out / "trip/a.jpg") as drawn:
        assert drawn.format == "JPEG" and drawn.width == 512


def test_one_file_for_all(config):
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


def test_bad_files_stop_nothing_and_are_told_once(config, tmp_path, messages):
    (tmp_path / "in/b.jpg").write_bytes(b"no picture")
    images = (*config.images, str(tmp_path / "gone.png"), str(tmp_path / "x*.jpg"))
    config = replace(config, images=images, json=tmp_path / "all.json")
    expected = "2 of 4 pictures could not be read; 1 of the names found no picture"
    with pytest.raises(InputError, match=expected):
        predict_images(config)
    lines = messages
    for says in ("b.jpg: expected an image", "gone.png: no such image", "x*.jpg: no file matches"):
        assert sum(says in line for line in lines) == 1
    assert [name for name in files(config.out) if name.startswith("b")] == []
    assert len(files(config.out)) == 5
    failed = json.loads(config.json.read_text())["failed"]
    assert [os.path.basename(one["image"]) for one in failed] == ["b.jpg", "gone.png"]
    assert all(one["reason"] for one in failed)


def test_nothing_to_look_at(config, tmp_path, messages):
    with pytest.raises(InputError, match="no pictures to look at"):
        predict_images(replace(config, images=(str(tmp_path / "x*"),)))
    assert "no file matches this pattern" in "\n".join(messages)


def stamps(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in files(folder)}


def test_the_same_command_does_only_what_is_left(config, write_image):
    predict_images(config)
    before = stamps(config.out)
    (config.out / "b.json").unlink()
    write_image("in/new.png")
    json_file = config.out.parent / "all.json"
    assert predict_images(replace(config, json=json_file, batch_size=1)) == 4
    after = stamps(config.out)
    done = {"a.jpg", "a.json", "trip/a.jpg", "trip/a.json"}
    assert {name for name in before if before[name] == after[name]} == done
    assert after.keys() == before.keys() | {"new.jpg", "new.json"}
    assert len(json.loads(json_file.read_text())["pictures"]) == 4


def test_a_picture_changed_since_is_looked_at_again(config, tmp_path):
    predict_images(config)
    before = stamps(config.out)
    ahead = before["a.json"] + 10**9
    os.utime(tmp_path / "in/a.png", ns=(ahead, ahead))
    with pytest.raises(InputError, match=r"a.json: exists"):
        predict_images(config)
    assert predict_images(replace(config, overwrite=True)) == 3
    assert stamps(config.out)["a.json"] > before["a.json"]


@pytest.mark.parametrize(
    ("change", "names"), [({"threshold": 0.5}, "threshold"), ({"model": "full"}, "split, unseen")]
)
def test_other_settings_do_not_mix_in(config, change, names):
    predict_images(config)
    before = stamps(config.out)
    if "model" in change:
        change = {"model": replace(config.model, split=change["model"])}
    with pytest.raises(InputError, match=rf"settings.json: holds results of other .*\({names}\)"):
        predict_images(replace(config, **change))
    assert stamps(config.out) == before
    predict_images(replace(config, **change, overwrite=True))
    assert stamps(config.out)["a.json"] != before["a.json"]


@pytest.mark.parametrize("name", ["a.jpg", "a.json"])
def test_files_in_the_way(config, name):
    config.out.mkdir()
    (config.out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}: exists; give --overwrite or another name"):
        predict_images(config)
    assert (config.out / name).read_text() == "mine" and files(config.out) == [name]


def test_an_answers_file_in_the_way(config, tmp_path):
    (tmp_path / "all.json").write_text("mine")
    with pytest.raises(InputError, match=r"all.json: exists"):
        predict_images(replace(config, json=tmp_path / "all.json"))
    assert (tmp_path / "all.json").read_text() == "mine" and not config.out.exists()
