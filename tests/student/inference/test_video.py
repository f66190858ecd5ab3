import itertools
import os
import struct

import numpy as np
import pytest

from pipeline.utils.errors import InputError

av = pytest.importorskip("av", reason="the extra video is not installed")

from student.inference import video  # noqa: E402
from student.inference.video import VideoReader, VideoWriter  # noqa: E402

# In milliseconds.
UNEVEN = [0, 40, 90, 100, 300, 333, 400, 900, 910, 1500, 1540, 1600]
# (a, b, c, d) of the eight display matrices without scaling.
TURNS = [
    matrix
    for matrix in itertools.product((-1, 0, 1), repeat=4)
    if abs(matrix[0] * matrix[3] - matrix[1] * matrix[2]) == 1 and sum(map(abs, matrix)) == 2
]


def read_all(path):
    with VideoReader(path) as reader:
        return list(reader.frames())


def copy(path, target):
    """Writes the frames of a video to another one, undrawn."""
    with VideoReader(path) as reader:
        writer = VideoWriter(target, reader, reader.size)
        for frame in reader.frames():
            writer.write(frame.image, frame)
        writer.close(is_complete=True)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.mov"])
def test_uneven_times_are_kept(write_clip, read_clip, tmp_path, messages, name):
    path = write_clip(name, times=UNEVEN)
    frames = read_all(path)
    assert [frame.index for frame in frames] == list(range(len(UNEVEN)))
    expected = [time / 1000 for time in UNEVEN]
    assert [frame.time for frame in frames] == pytest.approx(expected, abs=1e-9)
    copy(path, tmp_path / "copy.mp4")
    times, images, _ = read_clip(tmp_path / "copy.mp4")
    assert times == pytest.approx(expected, abs=1e-9)
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(np.asarray(frame.image).astype(int) - np.asarray(image)).mean() < 3
    assert not messages


def test_times_count_from_the_start_of_the_clip(write_clip, tmp_path, read_clip):
    path = write_clip("a.mkv", times=[5000 + time for time in UNEVEN])
    with av.open(str(path)) as container:
        assert container.start_time == 5_000_000
    expected = [time / 1000 for time in UNEVEN]
    assert [frame.time for frame in read_all(path)] == pytest.approx(expected, abs=1e-6)
    copy(path, tmp_path / "copy.mp4")
    assert read_clip(tmp_path / "copy.mp4")[0] == pytest.approx(expected, abs=1e-6)


def test_joined_recordings_continue(write_clip, read_clip, tmp_path, messages):
    """The times of the second one begin again, as in files that were joined by `cat`."""
    path = write_clip("a.ts", 40, sound="aac")
    *_, num_packets = read_clip(path)
    path.write_bytes(path.read_bytes() * 2)
    frames = read_all(path)
    assert len(frames) == 80
    assert np.diff([frame.time for frame in frames]) == pytest.approx(0.04, abs=1e-4)
    copy(path, tmp_path / "copy.mp4")
    times, _, copied = read_clip(tmp_path / "copy.mp4")
    assert times == pytest.approx([frame.time for frame in frames], abs=1e-4)
    assert copied > 1.9 * num_packets
    assert not any("sound" in line for line in messages)


def test_gaps_that_mp4_cannot_have(write_clip, read_clip, tmp_path):
    """A gap of minutes is kept, one of days is damage."""
    days = 30 * 86_400_000
    path = write_clip("a.mkv", times=[0, 40, 600_000, days, days + 40])
    times = [frame.time for frame in read_all(path)]
    assert times[:3] == pytest.approx([0, 0.04, 600])
    assert 600 < times[3] < 1000 and times[4] - times[3] == pytest.approx(0.04)
    copy(path, tmp_path / "copy.mp4")
    assert read_clip(tmp_path / "copy.mp4")[0] == pytest.approx(times, abs=1e-4)


def test_streams_without_times_begin_at_zero(write_clip):
    path = write_clip("a.h264", 5, format="h264")
    assert [frame.time for frame in read_all(path)] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


def corner(image, is_colour):
    """(right, bottom) signs of the quarter of an image with the most pixels of a colour."""
    rows, columns = np.nonzero(is_colour(np.asarray(image).astype(int)))
    return np.sign([columns.mean() - image.width / 2, rows.mean() - image.height / 2]).tolist()


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_upright(write_clip, tmp_path, read_clip, matrix):
    assert len(TURNS) == 8
    a, b, c, d = matrix
    path = write_clip("a.mp4", 3, matrix=matrix)
    frame = read_all(path)[0]
    assert frame.image.size == ((64, 48) if a else (48, 64))
    copy(path, tmp_path / "copy.mp4")
    for image in (frame.image, read_clip(tmp_path / "copy.mp4")[1][0]):
        # (x, y) is shown at (ax + cy, bx + dy).
        for x, y, find in (
            (-1, -1, lambda pixels: pixels.min(axis=2) > 200),
            (1, -1, lambda pixels: pixels[..., 0] - pixels[..., 1:].max(axis=2) > 100),
        ):
            assert corner(image, find) == [a * x + c * y, b * x + d * y]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.ts", "aac"), ("a.avi", "mp3")],
)
def test_sound_is_copied(write_clip, read_clip, tmp_path, messages, name, codec):
    path = write_clip(name, sound=codec)
    copy(path, tmp_path / "copy.mp4")
    times, _, packets = read_clip(path)
    copied_times, _, copied = read_clip(tmp_path / "copy.mp4")
    assert copied == packets > 0 and not messages
    with av.open(str(path)) as one, av.open(str(tmp_path / "copy.mp4")) as other:
        assert one.streams.audio[0].codec.name == other.streams.audio[0].codec.name
    assert np.diff(copied_times) == pytest.approx(np.diff(times), abs=1e-4)


def test_sound_that_mp4_does_not_allow_is_left_out(write_clip, read_clip, tmp_path, messages):
    path = write_clip("a.avi", sound="wmav2")
    copy(path, tmp_path / "copy.mp4")
    (line,) = messages
    assert str(path) in line and "sound" in line
    assert len(read_clip(tmp_path / "copy.mp4")[1]) == len(read_clip(path)[1])


def test_sound_that_is_refused_at_the_end_is_left_out(write_clip, read_clip, tmp_path, messages):
    """MP4's description of Opus is written with the index, after all frames."""
    path = write_clip("a.mkv", sound="libopus")
    content = bytearray(path.read_bytes())
    # The element CodecPrivate becomes one that is unknown.
    start = content.rindex(b"\x63\xa2", 0, content.index(b"OpusHead"))
    content[start + 1] = 0xAB
    path.write_bytes(content)
    copy(path, tmp_path / "copy.mp4")
    (line,) = messages
    assert "sound" in line
    assert len(read_clip(tmp_path / "copy.mp4")[1]) == 20


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_a_broken_tail_ends_with_what_was_read(write_clip, read_clip, tmp_path, messages, name):
    # The index of MP4 files is at their end, unless they are meant for streaming.
    options = {"movflags": "+faststart"} if name.endswith("mp4") else {}
    path = write_clip(name, 40, sound="aac" if name != "a.avi" else "mp3", options=options)
    assert len(read_all(path)) == len(read_clip(path)[1]) and not messages
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    frames = read_all(path)
    assert 10 < len(frames) < 40
    if name != "a.ts":
        (line,) = messages
        assert line.startswith(f"{path}: ") and f"{len(frames)} frames" in line
    copy(path, tmp_path / "copy.mp4")
    assert len(read_clip(tmp_path / "copy.mp4")[1]) == len(frames)


@pytest.mark.parametrize("milliseconds", [1e13, 1e300, float("nan"), -5.0, 1.0])
def test_a_wild_duration_is_not_believed(write_clip, messages, milliseconds):
    path = write_clip("a.mkv", 40)
    content = bytearray(path.read_bytes())
    struct.pack_into(">d", content, content.index(b"\x44\x89\x88") + 3, milliseconds)
    path.write_bytes(content)
    with VideoReader(path) as reader:
        assert reader.num_frames in (0, 40)
        assert len(list(reader.frames())) == 40
    assert messages == []
    path.write_bytes(content[: len(content) * 2 // 3])
    num_frames = len(read_all(path))
    assert 0 < num_frames < 40
    for line in messages:
        assert line.endswith(f"read {num_frames} frames, {num_frames / 25:.2f} seconds")


def test_damage_in_the_middle_is_reported(write_clip, messages):
    path = write_clip("a.avi", 40)
    content = bytearray(path.read_bytes())
    middle = content.index(b"movi") + 200
    content[middle : middle + 800] = bytes(800)
    path.write_bytes(content)
    assert read_all(path)
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such video"),
        (b"", "expected a video"),
        (b"some text\n" * 50, "expected a video"),
        (b"<!DOCTYPE html><html>", "expected a video"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n", "expected a video"),
    ],
)
def test_other_files_are_refused(tmp_path, content, expected):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"a.mp4: {expected}"):
        VideoReader(path)


def test_videos_that_cannot_be_read_are_refused(write_clip, tmp_path, monkeypatch):
    whole = write_clip("a.mp4", sound="aac").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    with pytest.raises(InputError, match=r"cut.mp4: expected a video.* is it whole"):
        VideoReader(tmp_path / "cut.mp4")
    with pytest.raises(InputError, match="found a folder"):
        VideoReader(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="found something that is not a file"):
        VideoReader(tmp_path / "pipe.mp4")
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        audio = container.add_stream("aac", 44100)
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), "fltp", "stereo")
        samples.sample_rate = 44100
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))
    with pytest.raises(InputError, match=r"sound.m4a: .*without video stream"):
        VideoReader(tmp_path / "sound.m4a")
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 1000)
    with pytest.raises(InputError, match=r"a.mp4: frame size: .*found 64 x 48 pixels"):
        VideoReader(tmp_path / "a.mp4")


def test_a_video_without_frames_is_refused(write_clip, tmp_path):
    content = bytearray(write_clip("a.mp4").read_bytes())
    start = content.index(b"mdat") + 4
    content[start : content.index(b"moov") - 4] = bytes(content.index(b"moov") - 4 - start)
    (tmp_path / "zero.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"zero.mp4: video: expected at least one frame"):
        VideoReader(tmp_path / "zero.mp4")


def test_without_h264_the_video_is_mpeg4(write_clip, read_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "ENCODERS", ("unknown", "mpeg4"))
    path = write_clip("a.mkv", times=UNEVEN)
    copy(path, tmp_path / "copy.mp4")
    expected = [time / 1000 for time in UNEVEN]
    assert read_clip(tmp_path / "copy.mp4")[0] == pytest.approx(expected, abs=1e-4)


def test_names_with_a_colon_are_files(write_clip, read_clip, tmp_path):
    path = write_clip("http:a b%d.mkv")
    copy(path, tmp_path / "file:copy é.mp4")
    assert len(read_clip(tmp_path / "./file:copy é.mp4")[1]) == 20


def test_errors_of_writing_name_the_file(write_clip, tmp_path):
    with VideoReader(write_clip("a.mp4")) as reader, pytest.raises(OSError) as raised:
        VideoWriter(tmp_path / "gone" / "copy.mp4", reader, reader.size)
    assert raised.value.filename == str(tmp_path / "gone" / "copy.mp4")
