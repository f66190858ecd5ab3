"""Reading and writing of video files with PyAV: upright frames with their times, sound copied."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import cast

import av
from av.container import InputContainer, OutputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition, Stream
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from pipeline.images import EXIF_TRANSPOSES
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import identify_file
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun

logger = get_logger(__name__)

# What FFmpeg also reads, but no video: lists of other files, and text.
REFUSED_FORMATS = frozenset({"concat", "dash", "hls", "imf", "tty"})
# Encoders by preference; builds of FFmpeg without H.264 have the last one.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
ENCODER_OPTIONS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qscale": "4"}}
# Largest time base that MPEG-4 part 2 allows.
MPEG4_TIME_BASE = Fraction(1, 65535)
# FFmpeg's numbers of the colour matrix of HD video, and of the range 16 to 235.
BT709, LIMITED_RANGE = 1, 1
# H.264's longest side, and a number of pixels that a batch of decoded frames has memory for.
MAX_SIDE, MAX_FRAME_PIXELS = 16384, 1 << 26
# EXIF orientation by the signs of the display matrix's upper left 2 x 2 part, by rows.
ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
# In frames and seconds: what may be missing at the end of a whole file, because its duration is
# rounded or a stream that is not read is longer.
END_SLACK_FRAMES, END_SLACK, END_SLACK_SHARE = 2, 0.1, 0.01
# Some containers have the times of frames in the order of decoding, in which a frame is at most
# this many behind its place.
MAX_REORDER = 16
# In seconds: finer times, and frames at longer distances, exceed MP4's numbers of 32 bits.
MIN_TIME_BASE, MAX_GAP = Fraction(1, 90000), 3 * 3600
# No container and codec take less for a frame.
MIN_FRAME_BYTES = 8
# Frames per second; others are damaged or meaningless numbers.
MIN_RATE, MAX_RATE = 0.001, 10_000


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video.

    Attributes:
        index: its number in the order of presentation, from 0.
        ticks: its time in units of the reader's `time_base`, from the start of the clip.
        time: the same in seconds.
        image: RGB, upright.
    """

    index: int
    ticks: int
    time: float
    image: Image.Image


class VideoReader:
    """Context manager that reads the frames of a video once, one after the other.

    Attributes:
        path: the file.
        size: (width, height) of the upright frames, in pixels; all frames have it.
        rate: mean number of frames per second, 30 if unknown or implausible.
        num_frames: estimated number of frames, 0 if unknown.
        time_base: seconds, the unit of the frames' times, that of the file if it is not too fine.
        start: seconds, the time in the file at which the clip starts.
        pixel_aspect: width of a pixel divided by its height.

    Raises:
        InputError: the file is missing, no video, or has no frame that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container = _open(path)
        try:
            self._stream = _find_video(self._container, path)
            self._stream.thread_type = "AUTO"
            unit = self._stream.time_base or MIN_TIME_BASE
            self.time_base = unit if MIN_TIME_BASE <= unit <= 1 else MIN_TIME_BASE
            rate = float(self._stream.average_rate or self._stream.guessed_rate or 30)
            self.rate = rate if MIN_RATE <= rate <= MAX_RATE else 30.0
            # Sound may start before 0, with samples that are not played.
            self.start = max(Fraction(self._container.start_time or 0, av.time_base), Fraction(0))
            if (first_ticks := self._stream.start_time or 0) < 0:
                self.start = first_ticks * self.time_base
            duration = (self._container.duration or 0) / av.time_base
            # Damaged headers may declare any numbers.
            max_frames = path.stat().st_size // MIN_FRAME_BYTES
            if duration * self.rate > max_frames:
                duration = 0.0
            known = [self._stream.frames, round(duration * self.rate)]
            self.num_frames = min((one for one in known if 0 < one <= max_frames), default=0)
            self._duration, self._read_until = duration, 0.0
            self._num_packets = 0
            self._problem, self._last_ticks, self._index = "", -1, 0
            self._step = max(1, round(1 / (self.rate * self.time_base)))
            self._timeline = _Timeline(self.time_base, MAX_REORDER * self._step)
            # Frames' own methods prepare the conversion anew for every frame, which takes longer
            # than the conversion of small ones.
            self._reformatter = VideoReformatter()
            pictures = self._decode()
            first = next(pictures, None)
            if first is None:
                found = self._problem or "none"
                raise bad_field(path, "video", "at least one frame that can be decoded", found)
            image = self._to_upright(first)
            self.size = image.size
            aspect = self._stream.sample_aspect_ratio or Fraction(1)
            turned = image.size != (first.width, first.height)
            self.pixel_aspect = 1 / aspect if aspect and turned else aspect or Fraction(1)
            self._pictures = chain([first], pictures)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    def frames(self) -> Iterator[Frame]:
        """Yields the frames that are left; a warning says if the end of the file is damaged."""
        yield from map(self._build_frame, self._pictures)
        missing = self._duration - self._read_until
        slack = max(END_SLACK, END_SLACK_FRAMES / self.rate, END_SLACK_SHARE * self._duration)
        if self._problem or (self._duration and missing > slack):
            problem = self._problem or "the file ends too early"
            read = float((self._last_ticks + self._step) * self.time_base)
            total = f" of {self._duration:.2f}" if read <= self._duration else ""
            logger.warning(
                f"{self.path}: the video is damaged ({problem}); read"
                f" {count_noun(self._index, 'frames')}, {read:.2f}{total} seconds"
            )

    def measure(self) -> tuple[int, float]:
        """The number of frames and the seconds of the whole file, counted, because headers may say
        nothing or be wrong. No frames are left afterwards."""
        for _ in self._demux():
            pass
        return self._num_packets, self._read_until or self._num_packets / self.rate

    def _build_frame(self, picture: av.VideoFrame) -> Frame:
        if picture.pts is None or picture.time_base is None:
            ticks = self._last_ticks + self._step if self._index else 0
        else:
            ticks = round((picture.pts * picture.time_base - self.start) / self.time_base)
            ticks = self._timeline.place(ticks, self._step)
        # Encoders refuse times that do not increase, which damaged files have.
        ticks = max(ticks, self._last_ticks + 1)
        image = self._to_upright(picture)
        # Streams may change their resolution.
        if image.size != self.size:
            image = image.resize(self.size)
        frame = Frame(self._index, ticks, float(ticks * self.time_base), image)
        self._last_ticks, self._index = ticks, self._index + 1
        return frame

    def _to_upright(self, picture: av.VideoFrame) -> Image.Image:
        """RGB, turned and mirrored as the display matrix of phone videos says."""
        image = self._reformatter.reformat(picture, format="rgb24").to_image()
        data = picture.side_data.get("DISPLAYMATRIX")
        if data is None:
            return image
        a, b, _, c, d, *_ = struct.unpack("9i", cast(SideData, data))
        largest = max(map(abs, (a, b, c, d))) or 1
        # Angles between the multiples of 90 degrees are rounded.
        signs = tuple(round(value / largest) for value in (a, b, c, d))
        turn = EXIF_TRANSPOSES.get(ORIENTATIONS.get(signs, 1))
        return image if turn is None else image.transpose(turn)

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames in the order of presentation, as many as can be decoded."""
        for packet in self._demux():
            try:
                decoded = self._stream.decode(packet)
            except av.FFmpegError as error:
                self._problem = self._problem or str(error.strerror)
                continue
            yield from decoded

    def _demux(self) -> Iterator[av.Packet[VideoStream] | None]:
        """Packets of the video stream; the last one makes the decoder give its last frames."""
        # The sound counts for the duration.
        streams = [self._stream, *self._container.streams.audio]
        try:
            for packet in self._container.demux(streams):
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base - self.start
                    self._read_until = max(self._read_until, float(end))
                if packet.is_corrupt:
                    self._problem = self._problem or "a packet is not whole"
                if packet.stream is self._stream:
                    # The last one is empty.
                    self._num_packets += packet.size > 0
                    yield cast("av.Packet[VideoStream]", packet)
        except av.FFmpegError as error:
            self._problem = self._problem or str(error.strerror)
            yield None


class _Timeline:
    """Times of a stream that continue where it begins anew, as in files that were joined.

    Args:
        time_base: seconds, the unit of the times.
        max_back: a time that is further behind the last one, or more than `MAX_GAP` after it,
            begins a new part.
    """

    def __init__(self, time_base: Fraction, max_back: int) -> None:
        self._max_back, self._max_gap = max_back, MAX_GAP / time_base
        self._shift = 0
        self._last: int | None = None

    def place(self, ticks: int, step: int) -> int:
        """The time in the whole stream; a new part begins `step` after the end of the last one."""
        placed = ticks + self._shift
        last = min(placed, 0) if self._last is None else self._last
        if not -self._max_back <= placed - last <= self._max_gap:
            placed = last + step
            self._shift = placed - ticks
        self._last = max(last, placed)
        return placed


def _open(path: Path) -> InputContainer:
    # With the prefix, names such as "http://a.mp4" and "a:b.mp4" are files. Files that name others
    # cannot have them fetched from the network.
    name, options = f"file:{path}", {"protocol_whitelist": "file"}
    # Opening a named pipe would block for ever.
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "something that is not a file"
        raise InputError(f"{path}: expected a video, found {found}")
    try:
        container = av.open(name, "r", options=options, metadata_errors="replace")
    except FileNotFoundError:
        raise InputError(f"{path}: no such video") from None
    # Demuxers also raise other errors about damaged files.
    except (av.FFmpegError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        found = identify_file(path) or f"a file that FFmpeg cannot open ({reason}; is it whole?)"
        raise InputError(f"{path}: expected a video, found {found}") from None
    if REFUSED_FORMATS & set(container.format.name.split(",")):
        found = container.format.name
        container.close()
        raise InputError(f"{path}: expected a video, found a file of the format {found}")
    return container


def _find_video(container: InputContainer, path: Path) -> VideoStream:
    """The video stream; covers of music files do not count."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise InputError(f"{path}: expected a video, found a file without video stream")
    # Of several, that which the file marks.
    stream = max(streams, key=lambda one: bool(one.disposition & Disposition.default))
    if stream.codec_context is None:
        raise InputError(f"{path}: expected a video, found a codec that FFmpeg cannot decode")
    width, height = stream.width, stream.height
    if max(width, height) > MAX_SIDE or width * height > MAX_FRAME_PIXELS:
        expected = f"at most {MAX_SIDE} pixels a side and {MAX_FRAME_PIXELS} in all"
        raise bad_field(path, "frame size", expected, f"{width} x {height} pixels")
    return stream


class VideoWriter:
    """Writes images to an MP4 file, with the times and the sound of the video they come from.

    Args:
        path: the file to write.
        reader: the source, whose file is opened again for the sound.
        size: (width, height) of the images, both even.

    Raises:
        OSError: the file cannot be written.
        InputError: the video is damaged so that FFmpeg cannot write its frames.
    """

    def __init__(self, path: Path, reader: VideoReader, size: tuple[int, int]) -> None:
        self._path, self._reader = path, reader
        self._sound, self._reformatter = _Sound(reader), VideoReformatter()
        self._container, self._video = self._start(size)

    def _start(self, size: tuple[int, int]) -> tuple[OutputContainer, VideoStream]:
        """Opens the file and writes its header."""
        name = next(filter(_has_encoder, ENCODERS))
        # Of the offset at the start, in this unit; by default it is rounded to milliseconds.
        options = {"movie_timescale": str(self._reader.time_base.denominator)}
        with self._convert_errors():
            container = av.open(f"file:{self._path}", "w", format="mp4", container_options=options)
        rate = Fraction(self._reader.rate).limit_denominator(1001)
        video = container.add_stream(name, rate, ENCODER_OPTIONS.get(name))
        assert isinstance(video, VideoStream)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.time_base = self._reader.time_base
        if name == "mpeg4":
            context.time_base = max(context.time_base, MPEG4_TIME_BASE)
        context.sample_aspect_ratio = self._reader.pixel_aspect
        context.colorspace, context.color_range = BT709, LIMITED_RANGE
        self._sound.add_to(container)
        with self._convert_errors():
            container.start_encoding()
        return container, video

    def write(self, image: Image.Image, frame: Frame) -> None:
        """Writes an image with the time of a frame of the source, and the sound until then."""
        picture = self._reformatter.reformat(
            av.VideoFrame.from_image(image),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        picture.pts, picture.time_base = frame.ticks, self._reader.time_base
        with self._convert_errors():
            self._sound.copy(self._container, frame.time)
            self._mux(self._video.encode(picture))

    def close(self, is_complete: bool) -> None:
        """Completes the file; if all frames of the source were written, with the last sound."""
        with self._convert_errors():
            try:
                self._mux(self._video.encode(None))
                if is_complete:
                    self._sound.copy(self._container, None)
            finally:
                with self._sound.accept_damage():
                    self._container.close()
                self._sound.close()

    def _mux(self, packets: Iterable[av.Packet[VideoStream]]) -> None:
        for packet in packets:
            # The container keeps packets of the sound for a while before it writes them.
            with self._sound.accept_damage():
                self._container.mux(packet)

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        """Converts FFmpeg's errors to `OSError`s that name the file, and those which are not the
        operating system's to `InputError`s."""
        try:
            yield
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            raise InputError(
                f"{self._reader.path}: expected a video, found one that FFmpeg cannot write"
                f" ({error.strerror})"
            ) from None


class _Sound:
    """Copies the sound of a video to another file without decoding it.

    The file is read independently of the frames, so that packets are written in the order of their
    times however the source arranges them, and none wait in memory.

    Attributes:
        outputs: streams of the other file, by the index of the stream that is copied.
    """

    def __init__(self, reader: VideoReader) -> None:
        self._reader = reader
        self._container = _open(reader.path)
        self._packets = self._read()
        self._next: av.Packet | None = None
        self._is_damaged = False
        self.outputs: dict[int, Stream] = {}

    def add_to(self, container: OutputContainer) -> None:
        """Adds the streams that the container allows; a warning says if there are others."""
        streams = self._container.streams.audio
        allowed = [stream for stream in streams if self._is_allowed(stream.index)]
        self.outputs = {one.index: container.add_stream_from_template(one) for one in allowed}
        if len(allowed) < len(streams):
            logger.warning(f"{self._reader.path}: MP4 files cannot have this sound; it is left out")

    def _is_allowed(self, index: int) -> bool:
        """Whether a file with the start of a stream can be written. Some parameters are refused
        only at the end of the writing, when it is too late to leave the stream out."""
        try:
            with _open(self._reader.path) as source, av.open(BytesIO(), "w", format="mp4") as trial:
                stream = source.streams[index]
                output = trial.add_stream_from_template(stream)
                packets = source.demux(stream)
                first = next((packet for packet in packets if packet.dts is not None), None)
                if first is None:
                    trial.start_encoding()
                else:
                    first.stream = output
                    trial.mux(first)
        # AttributeError: FFmpeg has no decoder of the codec.
        except (av.FFmpegError, ValueError, AttributeError):
            return False
        return True

    def copy(self, container: OutputContainer, until: float | None) -> None:
        """Copies the packets up to a time in seconds from the start of the clip; None for all."""
        while (packet := self._next or next(self._packets, None)) is not None:
            assert packet.dts is not None
            if until is not None and packet.dts * packet.time_base > until:
                self._next = packet
                return
            self._next = None
            packet.stream = self.outputs[packet.stream_index]
            with self.accept_damage():
                container.mux(packet)

    @contextmanager
    def accept_damage(self) -> Iterator[None]:
        """Ends the copying if FFmpeg cannot write what the body gives it, with a warning."""
        try:
            yield
        except av.FFmpegError as error:
            # Errors of the disk end the writing.
            if isinstance(error, OSError) or not self.outputs:
                raise
            if not self._is_damaged:
                logger.warning(f"{self._reader.path}: the sound is damaged; the rest is left out")
            self._is_damaged, self._packets = True, iter(())

    def _read(self) -> Iterator[av.Packet]:
        """Packets in the order of the file, with times from the start of the clip."""
        streams = [self._container.streams[index] for index in self.outputs]
        timelines = {one.index: _Timeline(one.time_base or MIN_TIME_BASE, 0) for one in streams}
        # Without streams, PyAV reads all of them.
        if streams:
            # The reader of the frames reports a damaged file.
            with suppress(av.FFmpegError):
                for packet in self._container.demux(streams):
                    if packet.dts is not None:
                        start = round(self._reader.start / packet.time_base)
                        timeline = timelines[packet.stream_index]
                        dts = timeline.place(packet.dts - start, packet.duration or 0)
                        if packet.pts is not None:
                            packet.pts += dts - packet.dts
                        packet.dts = dts
                        yield packet

    def close(self) -> None:
        self._container.close()


def _has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:
        return False
    return True
