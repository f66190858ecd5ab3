import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.cluster.lock import LOCK
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from student.inference import predict_images as files
from student.inference.postprocess import SelectionConfig

pytest.importorskip("av", reason="the extra video is not installed")
pytest.importorskip("trackers", reason="the extra video is not installed")

from student.inference import predict_video as module
from student.inference.predict_video import drawn_size
from student.inference.video import VideoWriter

ROOT = Path(__file__).parents[3]


@pytest.fixture
def predict(toy_detector, tmp_path):
    """`predict(*paths)` predicts files into the folder `out` and returns their number."""

    def make(*paths, threshold=0.0, every=1, smooth=0.0, overwrite=False, **options):
        options = {"out": tmp_path / "out", "json_file": None, "batch_size": 4, **options}
        return files.predict_images(
            toy_detector,
            [str(path) for path in paths],
            selection=SelectionConfig(threshold, 4),
            workers=0,
            overwrite=overwrite,
            every=every,
            smooth=smooth,
            **options,
        )

    return make


@pytest.fixture
def detect_square(toy_detector, monkeypatch):
    """The detector finds a person that holds a ball where the clip's grey square is, and its
    scores are 0.9, 0.8, 0.7, 0.9 and so on. Returns the list of the frames in every batch."""
    vocabulary, batches = toy_detector.vocabulary, []

    def detect(detector, path, batch, every, batch_size):
        frames = [frame for frame in batch if frame.index % every == 0]
        batches.append([frame.index for frame in batch])
        assert len(frames) <= batch_size
        return [
            Detections(
                "frame",
                np.array([[x, 32, x + 12, 44], [x, 36, x + 6, 42]], dtype=np.float32),
                np.array([vocabulary.person, vocabulary.objects.index("ball")]),
                np.array([[0, 1, vocabulary.verbs.index("hold")]]),
                np.array([0.9 - 0.1 * (x % 3)], dtype=np.float32),
            )
            for x in (frame.index for frame in frames)
        ]

    monkeypatch.setattr(module, "_detect", detect)
    return batches


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(folder):
    """But that of the lock."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    return sorted(name for name in names if name != LOCK)


UNEVEN = [0, 40, 90, 100, 300, 333, 400, 900, 910, 1500]


def test_a_drawn_video_and_a_line_per_frame(predict, write_clip, read_clip, tmp_path, capsys):
    clip = write_clip("trip/clip.mkv", times=UNEVEN, sound="aac")
    assert predict(tmp_path / "trip", smooth=0.5) == 1
    assert names(tmp_path / "out") == ["clip.jsonl", "clip.mp4", "settings.json"]
    header, *lines = read_lines(tmp_path / "out/clip.jsonl")
    assert (header["width"], header["height"], header["video"]) == (64, 48, str(clip))
    assert header["format"] == "eoid-predict-video-1" and header["drawn"] == "clip.mp4"
    assert (header["every"], header["smooth"], header["threshold"]) == (1, 0.5, 0)
    assert [line["frame"] for line in lines] == list(range(10))
    assert [line["time"] for line in lines] == pytest.approx([time / 1000 for time in UNEVEN])
    for line in lines:
        assert len(line["interactions"]) == 4
        for one in line["interactions"]:
            assert one["person_id"] == line["boxes"][one["person"]]["id"]
            assert one["object_id"] == line["boxes"][one["object"]]["id"]
            assert 0 <= one["score"] <= 1 and {"verb", "action", "unseen", "raw_score"} <= set(one)
        for box in line["boxes"]:
            assert np.all(np.array(box["box"]) <= [64, 48, 64, 48])
    times, images, packets = read_clip(tmp_path / "out/clip.mp4")
    assert times == pytest.approx([time / 1000 for time in UNEVEN])
    assert {image.size for image in images} == {(512, 384)}
    assert packets == read_clip(clip)[2]
    out = capsys.readouterr().out
    assert "10 frames" in out and str(clip) in out


def test_frames_are_predicted_like_images(predict, toy_detector, write_clip, read_clip, tmp_path):
    """The scores and boxes of the first frame, where there is nothing to smooth."""
    clip = write_clip("clip.mp4", 1)
    predict(clip)
    _, line = read_lines(tmp_path / "out/clip.jsonl")
    (image,) = read_clip(clip)[1]
    expected = toy_detector(image, threshold=0.0, top=4)
    scores = [one["score"] for one in line["interactions"]]
    # Pairs whose boxes are the same occur once.
    assert scores[0] == pytest.approx(expected.scores[0], abs=1e-4)
    assert line["interactions"][0]["action"] == expected.actions[0]
    first = line["boxes"][line["interactions"][0]["person"]]["box"]
    assert first == pytest.approx(expected.human_boxes[0], abs=0.01)


def test_ids_stay_the_same_in_the_lines(predict, detect_square, write_clip, tmp_path):
    predict(write_clip("clip.mp4", 30), threshold=0.3, smooth=0.5)
    _, *lines = read_lines(tmp_path / "out/clip.jsonl")
    assert {box["label"] + str(box["id"]) for line in lines for box in line["boxes"]} == {
        "person1",
        "ball2",
    }
    smoothed = None
    for line in lines:
        (one,) = line["interactions"]
        assert (one["person_id"], one["object_id"]) == (1, 2)
        raw = 0.9 - 0.1 * (line["frame"] % 3)
        smoothed = raw if smoothed is None else (smoothed + raw) / 2
        assert one["raw_score"] == pytest.approx(raw)
        assert one["score"] == pytest.approx(smoothed, abs=1e-5)


def test_every_nth_frame(predict, detect_square, write_clip, read_clip, tmp_path, monkeypatch):
    drawn = []
    draw = module.draw_tracked

    def record(image, content, *arguments):
        drawn.append(content.boxes[0, 0].tolist())
        return draw(image, content, *arguments)

    monkeypatch.setattr(module, "draw_tracked", record)
    predict(write_clip("clip.mp4", 20), threshold=0.3, every=6, batch_size=2)
    _, *lines = read_lines(tmp_path / "out/clip.jsonl")
    assert [line["frame"] for line in lines] == [0, 6, 12, 18]
    assert len(read_clip(tmp_path / "out/clip.mp4")[1]) == 20
    # Between them, the boxes of the last detected frame are drawn.
    assert drawn == [6 * (index // 6) for index in range(20)]
    assert detect_square == [[0, *range(1, 7)], list(range(7, 19)), [19]]


def test_batches_are_limited_by_memory(predict, detect_square, write_clip, monkeypatch):
    monkeypatch.setattr(module, "MAX_BATCH_BYTES", 3 * 64 * 48 * 5)
    predict(write_clip("clip.mp4", 12), threshold=0.3, every=10)
    assert [len(batch) for batch in detect_square] == [5, 5, 2]


def test_the_documentation_fits_the_lines(
    predict, detect_square, write_clip, tmp_path, monkeypatch, capsys
):
    predict(write_clip("clip.mp4", 26), threshold=0.3, out=tmp_path / "drawn")
    page = (ROOT / "docs/how-to/video.md").read_text()
    line = read_lines(tmp_path / "drawn/clip.jsonl")[1]
    shown = set(re.findall(r'"(\w+)":', page))
    assert shown == {*line, *line["boxes"][0], *line["interactions"][0]}
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out == "  1.00 s  person 1, object 2: hold ball\n"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (640, 480)),
        ((641, 481), (640, 480)),
        ((64, 48), (512, 384)),
        ((1080, 1920), (1080, 1920)),
        ((1, 900), (2, 900)),
        ((101, 77), (512, 390)),
    ],
)
def test_drawn_sizes_are_even(size, expected):
    assert drawn_size(size) == expected


def test_turned_clips_have_upright_boxes(predict, write_clip, read_clip, tmp_path):
    clip = write_clip("clip.mp4", 3, matrix=(0, 1, -1, 0))
    predict(clip)
    header, *lines = read_lines(tmp_path / "out/clip.jsonl")
    assert (header["width"], header["height"]) == (48, 64)
    boxes = np.array([box["box"] for line in lines for box in line["boxes"]])
    assert (boxes <= [48, 64, 48, 64]).all()
    assert read_clip(tmp_path / "out/clip.mp4")[1][0].size == (384, 512)


def test_finished_clips_are_kept(predict, write_clip, tmp_path, messages):
    clips = [write_clip("in/a.mp4", 2), write_clip("in/b.mkv", 2)]
    predict(tmp_path / "in")
    before = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names(tmp_path / "out")
    }
    (tmp_path / "out/b.jsonl").unlink()
    assert predict(tmp_path / "in") == 2
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names(tmp_path / "out")}
    assert after.keys() == before.keys()
    assert after["a.mp4"] == before["a.mp4"] and after["a.jsonl"] == before["a.jsonl"]
    assert after["b.mp4"] > before["b.mp4"]
    message = r"a.jsonl: expected results with the same settings.*\(every, smooth\)"
    with pytest.raises(InputError, match=message):
        predict(tmp_path / "in", every=2, smooth=0.5)
    with pytest.raises(InputError, match=r"settings.json: .*\(threshold\)"):
        predict(tmp_path / "in", threshold=0.5)
    predict(tmp_path / "in", every=2, overwrite=True)
    assert len(read_lines(tmp_path / "out/a.jsonl")) == 2
    # A clip that was replaced since.
    os.utime(clips[0], ns=(after["a.mp4"] + 10**10,) * 2)
    with pytest.raises(InputError, match=r"a.jsonl: exists"):
        predict(tmp_path / "in", every=2)


def test_clips_beside_images(predict, write_clip, write_image, tmp_path, capsys):
    write_clip("in/a.mp4", 2)
    write_image("in/a.png")
    write_image("in/trip/b.png")
    write_clip("in/trip/b.webm", 2)
    assert predict(tmp_path / "in", json_file=tmp_path / "all.json") == 4
    assert names(tmp_path / "out") == [
        *("a.jpg", "a.json", "a.jsonl", "a.mp4", "settings.json"),
        *("trip/b.jpg", "trip/b.json", "trip/b.jsonl", "trip/b.mp4"),
    ]
    pictures = json.loads((tmp_path / "all.json").read_text())["pictures"]
    assert len(pictures) == 2
    assert capsys.readouterr().out.count("results in") == 3


def test_clips_need_a_folder(predict, write_clip, write_image, tmp_path, messages):
    clip, file = write_clip("in/a.mp4", 2), tmp_path / "all.json"
    with pytest.raises(InputError, match=r"a.mp4: videos need --out"):
        predict(clip, out=None, json_file=file)
    with pytest.raises(InputError, match=r"--json: expected at least one image"):
        predict(clip, json_file=file)
    write_image("in/a.png")
    assert predict(tmp_path / "in", out=None, json_file=file) == 1
    assert [line for line in messages if "1 video skipped" in line and "--out" in line]


def test_without_the_extra(predict, write_clip, write_image, tmp_path, messages, monkeypatch):
    clip = write_clip("in/a.mp4", 2)
    write_image("in/a.png")
    monkeypatch.setattr(
        "student.inference.input_files.find_spec", lambda name: None if name == "trackers" else name
    )
    with pytest.raises(InputError, match=r"a.mp4: videos need trackers; .*\[video\]"):
        predict(clip)
    with pytest.raises(InputError, match=r"^1 of the arguments give no image or video$"):
        predict(clip, tmp_path / "in/a.png")
    assert f"{clip}: videos need trackers; pip install '.[video]'" in messages
    assert predict(tmp_path / "in") == 1
    (line,) = [line for line in messages if "skipped" in line]
    assert "1 video" in line and "[video]" in line


def test_clips_are_recognised_by_their_content(predict, write_clip, write_image, tmp_path):
    clip = write_clip("clip.mkv", 2).rename(tmp_path / "clip.download")
    image = write_image("image.png").rename(tmp_path / "image.download")
    assert predict(clip, image) == 2
    assert names(tmp_path / "out") == [
        *("clip.jsonl", "clip.mp4", "image.jpg", "image.json", "settings.json")
    ]
    # FFmpeg would read it as a film of text.
    (tmp_path / "notes.txt").write_text("notes\n" * 100)
    with pytest.raises(InputError, match=r"notes\.txt: expected an image"):
        predict(tmp_path / "notes.txt")


def test_unreadable_clips_do_not_end_the_others(predict, write_clip, tmp_path, messages):
    good, bad = write_clip("b.mp4", 2), tmp_path / "a.mp4"
    bad.write_bytes(good.read_bytes()[:900])
    with pytest.raises(InputError, match=r"a.mp4: expected a video"):
        predict(bad)
    with pytest.raises(InputError, match="1 of 2 videos could not be read"):
        predict(bad, good)
    assert sum("a.mp4: expected a video" in line for line in messages) == 1
    assert names(tmp_path / "out") == ["b.jsonl", "b.mp4", "settings.json"]


def test_extreme_frames_are_refused(predict, write_clip, tmp_path):
    clip = write_clip("clip.mp4", 2, size=(6000, 2))
    with pytest.raises(InputError, match=rf"^{re.escape(str(clip))}: size: expected sides"):
        predict(clip)
    assert names(tmp_path / "out") == ["settings.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_clip_is_playable(
    predict, detect_square, write_clip, read_clip, tmp_path, monkeypatch, number
):
    clip, written, write = write_clip("clip.mp4", 20, sound="aac"), [], VideoWriter.write

    def write_seven(self, image, frame):
        write(self, image, frame)
        written.append(frame.index)
        if len(written) == 7:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(VideoWriter, "write", write_seven)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
        predict(clip, threshold=0.3)
    assert ended.type is KeyboardInterrupt or ended.value.code == 75
    assert names(tmp_path / "out") == ["clip.jsonl.partial", "clip.mp4", "settings.json"]
    times, _, packets = read_clip(tmp_path / "out/clip.mp4")
    assert times == pytest.approx(read_clip(clip)[0][:7])
    assert 0 < packets < read_clip(clip)[2]
    assert len(read_lines(tmp_path / "out/clip.jsonl.partial")) == 8
    monkeypatch.setattr(VideoWriter, "write", write)
    assert predict(clip, threshold=0.3) == 1
    assert names(tmp_path / "out") == ["clip.jsonl", "clip.mp4", "settings.json"]
    assert len(read_clip(tmp_path / "out/clip.mp4")[1]) == 20


def test_an_interrupt_before_the_first_frame_leaves_nothing(
    predict, write_clip, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_detect", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        predict(write_clip("clip.mp4", 5))
    assert names(tmp_path / "out") == ["settings.json"]


def test_what_a_killed_command_left_is_replaced(predict, write_clip, tmp_path):
    clip = write_clip("clip[1].mp4", 2)
    (tmp_path / "out").mkdir()
    for name in (".clip[1].mp4.0123456789ab.tmp", "clip[1].jsonl.partial", ".clip1.mp4.01.tmp"):
        (tmp_path / "out" / name).write_bytes(b"half")
    predict(clip)
    assert names(tmp_path / "out") == [
        *(".clip1.mp4.01.tmp", "clip[1].jsonl", "clip[1].mp4", "settings.json")
    ]


def test_a_clip_named_like_an_unfinished_one(predict, write_clip, tmp_path):
    predict(write_clip("in/a.partial.mp4", 2), write_clip("in/a.mp4", 2))
    expected = ["a.jsonl", "a.mp4", "a.partial.jsonl", "a.partial.mp4", "settings.json"]
    assert names(tmp_path / "out") == expected


def test_errors_while_predicting_leave_nothing(predict, write_clip, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("batch size 4: expected less")

    monkeypatch.setattr(module, "_detect", fail)
    with pytest.raises(InputError, match="batch size"):
        predict(write_clip("clip.mp4", 5))
    assert names(tmp_path / "out") == ["settings.json"]


MEMORY = """
import json, resource, sys
import numpy as np
from pathlib import Path
from pipeline.cluster.lock import LOCK
from pipeline.types import Detections
from student.inference import predict_video as module
from student.inference.detector import Detector
from student.inference.postprocess import SelectionConfig

def detect(detector, path, batch, every, batch_size):
    rng = np.random.default_rng(batch[0].index)
    return [
        Detections(
            "frame",
            (rng.integers(0, 40, (2, 4)) + [0, 0, 40, 40]).astype(np.float32),
            np.array([detector.vocabulary.person, 1]),
            np.array([[0, 1, 0]]),
            np.array([0.9], dtype=np.float32),
        )
        for _ in batch
    ]

module._detect = detect
# For speed.
module.MIN_LONG_SIDE = 64
detector = Detector.open(sys.argv[1], "cpu")
peaks = []
for name in sys.argv[2:]:
    path = Path(name)
    drawn = path.with_suffix(".drawn.mp4")
    module.predict_video(
        detector, path, drawn, path.with_suffix(".jsonl"), SelectionConfig(0.3), 1, 0.7, {}
    )
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(toy_checkpoint, write_clip):
    """New people come in every batch of the clips. Decoder, encoder and allocator take their memory
    during the first 500 frames."""
    clips = [write_clip(f"{count}.mp4", count, sound="aac") for count in (500, 5000)]
    words = [sys.executable, "-c", MEMORY, str(toy_checkpoint), *map(str, clips)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    short, long = json.loads(done.stdout.splitlines()[-1])
    print(f"peak of memory: {short} and {long} KiB for 500 and 5000 frames")
    assert long - short < 10_000
