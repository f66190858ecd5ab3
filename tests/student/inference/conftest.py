import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from student.inference.batch_predictor import BatchPredictor
from student.inference.detector import Detector


@pytest.fixture(scope="session")
def toy_detector(toy_checkpoint):
    """The untrained student with queries from proposals; split ua."""
    return Detector.open(toy_checkpoint, "cpu")


@pytest.fixture(scope="session")
def published_detector(published_checkpoint):
    """A small detector from a file in the published form, without a split."""
    return Detector.open(published_checkpoint, "cpu")


@pytest.fixture(params=["toy", "published"])
def each_detector(request):
    return request.getfixturevalue(f"{request.param}_detector")


WHITE, RED = (255, 255, 255), (255, 0, 0)


@pytest.fixture
def write_clip(tmp_path):
    """`write_clip("a.mp4", 20)` writes a blue video with a white square at the top left, a red one
    at the top right and a grey one that moves by a pixel per frame below.

    `times` are those of the frames in milliseconds (25 frames a second without), `matrix` is the
    upper left part (a, b, c, d) of an MP4 file's display matrix, `sound` the codec of a tone.
    """
    av = pytest.importorskip("av", reason="the extra video is not installed")
    pytest.importorskip("trackers", reason="the extra video is not installed")

    def make(name, num_frames=20, size=(64, 48), times=None, matrix=None, sound=None, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        times = times or [40 * index for index in range(num_frames)]
        is_avi = path.suffix == ".avi"
        # AVI has no times of frames, only a rate.
        unit = Fraction(1, 25 if is_avi else 1000)
        with av.open(str(path), "w", **options) as container:
            codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(path.suffix, "libx264")
            video = container.add_stream(codec, 25)
            video.width, video.height = size
            video.pix_fmt, video.codec_context.time_base = "yuv420p", unit
            audio = (
                container.add_stream(sound, 48000 if sound == "libopus" else 44100)
                if sound
                else None
            )
            if audio:
                audio.codec_context.layout, audio.bit_rate = "mono", 64000
            for index, time in enumerate(times):
                pixels = np.zeros((size[1], size[0], 3), np.uint8)
                pixels[..., 2] = 160
                pixels[:16, :16], pixels[:16, -16:] = WHITE, RED
                pixels[-16:-4, index % size[0] : index % size[0] + 12] = 128
                frame = av.VideoFrame.from_ndarray(pixels)
                frame.pts, frame.time_base = index if is_avi else time, unit
                container.mux(video.encode(frame))
                if audio:
                    tone = np.sin(np.arange(1764, dtype=np.float32)[None] / 15)
                    samples = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
                    samples.sample_rate, samples.pts = 44100, 1764 * index
                    container.mux(audio.encode(samples))
            for stream in filter(None, (video, audio)):
                container.mux(stream.encode(None))
        if matrix:
            a, b, c, d = (value << 16 for value in matrix)
            content = bytearray(path.read_bytes())
            # Of the first track, which is the video: after 40 bytes of the track header.
            struct.pack_into(
                ">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30
            )
            path.write_bytes(content)
        return path

    return make


@pytest.fixture
def read_clip():
    """`read_clip(path)` returns the times in seconds, the images and the number of packets of
    sound of a video, read with PyAV alone."""

    def read(path):
        import av

        times, images, num_packets = [], [], 0
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                times.append(float(frame.pts * frame.time_base))
                images.append(frame.to_image())
        with av.open(str(path)) as container:
            if container.streams.audio:
                num_packets = sum(packet.size > 0 for packet in container.demux(audio=0))
        return times, images, num_packets

    return read


@pytest.fixture
def predicted(monkeypatch):
    """Names of predicted images, of which the one after `stop_at` ends with Ctrl-C."""

    class Names(list):
        stop_at = None

    stream, names = BatchPredictor.stream, Names()

    def recorded(self, sources, *arguments):
        for one in stream(self, sources, *arguments):
            if len(names) == names.stop_at:
                raise KeyboardInterrupt
            names.append(Path(sources[one.index]).name)
            yield one

    monkeypatch.setattr(BatchPredictor, "stream", recorded)
    return names
