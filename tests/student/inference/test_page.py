"""What the page of `eoid-predict --serve` does with uploads, without its server."""

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.hico.nms import NmsConfig
from pipeline.utils.errors import InputError
from student.inference import page
from student.inference.page import PageConfig, make_room, predict_clip, read_picture
from student.inference.postprocess import SelectionConfig
from student.utils.preemption import StopRequest, StopSignalHandler


@pytest.mark.parametrize("options", [{}, {"threshold": 0, "top": 100}, {"nms": NmsConfig()}])
def test_kept_detections_give_the_detectors_result(each_detector, write_image, options):
    file = write_image("some.png", size=(90, 60))
    picture = read_picture(each_detector, file)
    for selection in (options, {**options, "threshold": 0.01}, {**options, "top": 2}):
        found = picture.select(SelectionConfig(**selection)).to_dict()
        expected = each_detector(file, **selection).to_dict()
        assert found == {**expected, "image": "some.png"}


def test_large_and_turned_pictures(toy_detector, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (1000, 1600, 3), dtype=np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    picture = read_picture(toy_detector, tmp_path / "turned.jpg")
    assert picture.prediction.size == (1000, 1600)
    assert picture.image.size == (800, 1280)
    result = picture.select(SelectionConfig(threshold=0, top=5))
    expected = toy_detector(tmp_path / "turned.jpg", threshold=0, top=5)
    assert result.to_dict() == {**expected.to_dict(), "image": "turned.jpg"}
    drawn = picture.draw(result)
    # The legend may add to the height.
    assert drawn.width == 800 and drawn.height >= 1280
    # Boxes of the reduced picture are at the same places: most pixels equal those of the drawing
    # in full size.
    full = expected.draw().resize(drawn.size)
    difference = np.abs(np.asarray(full, dtype=int) - np.asarray(drawn, dtype=int)).mean()
    assert difference < 25


def test_errors_of_pictures(toy_detector, tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.jpg: expected an image"):
        read_picture(toy_detector, tmp_path / "text.jpg")
    monkeypatch.setattr(page, "MAX_MEGAPIXELS", 0.001)
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"0\.001 megapixels, found 40 x 30 pixels"):
        read_picture(toy_detector, tmp_path / "large.png")


@pytest.fixture
def config():
    return PageConfig(SelectionConfig(threshold=0, top=3), every=1, smooth=0.0)


def test_clips(toy_detector, write_clip, tmp_path, config, monkeypatch):
    pytest.importorskip("trackers", reason="trackers is not installed")
    monkeypatch.setattr(page, "MAX_CLIP_FRAMES", 4)
    drawn, (settings, *lines) = predict_clip(
        toy_detector, write_clip("clip.mp4", 10), tmp_path / "out", config
    )
    assert drawn.name == "clip.mp4" and list(drawn.parent.iterdir()) == [drawn]
    assert (settings["video"], settings["every"]) == ("clip.mp4", 3)
    assert [line["frame"] for line in lines] == [0, 3, 6, 9]
    monkeypatch.setattr(page, "MAX_CLIP_SECONDS", 0.1)
    with pytest.raises(InputError, match=r"clip\.mp4: expected a clip of at most 0\.1 seconds"):
        predict_clip(toy_detector, tmp_path / "clip.mp4", tmp_path / "out", config)


def test_a_stop_ends_the_prediction_of_a_clip(toy_detector, write_clip, tmp_path, config):
    pytest.importorskip("trackers", reason="trackers is not installed")
    stop = StopSignalHandler()
    stop.request = StopRequest.REQUEUE
    with pytest.raises(SystemExit):
        predict_clip(toy_detector, write_clip("clip.mp4"), tmp_path / "out", config, stop)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "seconds"),
    [
        ("clip.h264", {"format": "h264"}, 32),
        # As browsers record it.
        ("clip.mkv", {"options": {"live": "1"}}, 32),
        ("clip.mkv", {"times": list(range(800))}, 1),
    ],
)
def test_long_clips_whose_header_says_nothing(
    toy_detector, write_clip, tmp_path, config, monkeypatch, name, options, seconds
):
    pytest.importorskip("trackers", reason="trackers is not installed")
    monkeypatch.setattr(page, "MAX_CLIP_RATE", 25)
    clip = write_clip(name, 800, **options)
    with pytest.raises(InputError, match=f"found {seconds} seconds with 800 frames"):
        predict_clip(toy_detector, clip, tmp_path / "out", config)


def test_files_that_are_no_clip(toy_detector, tmp_path, config, monkeypatch):
    file = tmp_path / "text.mp4"
    file.write_text("no clip")
    assert not page._is_image(file)
    if find_spec("trackers") is not None:
        with pytest.raises(InputError, match=r"text\.mp4: expected a picture or a video"):
            predict_clip(toy_detector, file, tmp_path, config)
    monkeypatch.setitem(sys.modules, "student.inference.predict_video", None)
    with pytest.raises(InputError, match="clips need the extra video"):
        predict_clip(toy_detector, file, tmp_path, config)


def test_rows_of_a_clip():
    boxes = [
        {"label": name, "id": number} for name, number in (("person", 1), ("traffic_light", 2))
    ]

    def line(time, *interactions):
        names = ("action", "unseen", "person", "object", "score")
        found = [dict(zip(names, one, strict=True)) for one in interactions]
        return {"time": time, "boxes": boxes, "interactions": found}

    watch, walk = ("watch light", True, 0, 1), ("walk", False, 0, None)
    lines = [{}, line(9.5, (*watch, 0.4), (*walk, 0.5)), line(9.75), line(10.25, (*watch, 0.6))]
    assert page._clip_rows(lines) == [
        ["0.60", "★ watch light (person 1, traffic light 2; 9.5 to 10.2 s)"],
        ["0.50", "walk (person 1; 9.5 s)"],
    ]


def test_old_files_make_room(tmp_path, monkeypatch):
    folder = tmp_path / "uploads"
    make_room(folder)
    (folder / "one").mkdir(parents=True)
    files = [folder / "one" / "first", folder / "second", folder / "third"]
    for file in files:
        file.write_bytes(bytes(700_000))
        # Times have the resolution of the kernel's clock.
        time.sleep(0.02)
    make_room(folder, 3)
    assert all(map(Path.exists, files))
    make_room(folder, 1)
    assert [file.exists() for file in files] == [False, False, True]
    monkeypatch.setattr(page, "MAX_AGE", 0)
    make_room(folder)
    assert not files[2].exists()
