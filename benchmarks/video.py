"""Measures `eoid-predict` on videos of several lengths. Prints JSON.

The clips show a part of one image that moves over it, at 25 frames a second and with a tone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.program import run_main
from evaluation.drawing.canvas import tile_images
from pipeline.images import read_image
from pipeline.utils.errors import InputError
from student.inference.video import VideoReader

RATE, SAMPLE_RATE = 25, 44100
# Of the image's sides, and seconds until the part is back where it was.
SHARE, PERIOD = 0.8, 20.0
COMMAND = "from student.inference.cli import main; main()"
GAP, JPEG_QUALITY = 8, 85


def write_clip(image: Image.Image, path: Path, num_frames: int) -> None:
    """Writes a clip of a part that moves over the image."""
    width, height = (int(side * SHARE) // 2 * 2 for side in image.size)
    samples_per_frame = SAMPLE_RATE // RATE
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", RATE, {"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", SAMPLE_RATE)
        audio.codec_context.layout = "mono"
        for index in range(num_frames):
            angle = 2 * np.pi * index / RATE / PERIOD
            left = (image.width - width) * (0.5 - 0.5 * np.cos(angle))
            top = (image.height - height) * (0.5 - 0.5 * np.cos(3 * angle))
            box = (left, top, left + width, top + height)
            part = image.resize((width, height), Image.Resampling.BILINEAR, box)
            frame = av.VideoFrame.from_image(part)
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(video.encode(frame))
            ticks = index * samples_per_frame + np.arange(samples_per_frame)
            tone = 0.1 * np.sin(ticks * (2 * np.pi * 440 / SAMPLE_RATE))
            samples = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = SAMPLE_RATE, int(ticks[0])
            container.mux(audio.encode(samples))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def measure(run: Path, clip: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Predicts a clip in a process of its own.

    Raises:
        InputError: the command failed.
    """
    words = [sys.executable, "-c", COMMAND, str(run), str(clip), "--out", str(out), *options]
    started = time.perf_counter()
    process = subprocess.Popen(words)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError(f"{clip}: eoid-predict failed")
    seconds = time.perf_counter() - started
    with open(out / f"{clip.stem}.jsonl", encoding="utf-8") as lines:
        ids = {box["id"] for line in list(lines)[1:] for box in json.loads(line)["boxes"]}
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        # In KiB on Linux, in bytes on macOS.
        "peak_mib": round(usage.ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))),
        "tracks": len(ids),
    }


def draw_figure(drawn: Path) -> Image.Image:
    """Three frames of a drawn video, from its beginning, middle and end."""
    with VideoReader(drawn) as reader:
        wanted = [0, reader.num_frames // 2, reader.num_frames - 1]
        images = [frame.image for frame in reader.frames() if frame.index in wanted]
    return tile_images(images, len(images), GAP, "white")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder or checkpoint")
    parser.add_argument("image", type=Path)
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 600.0], help="of clips")
    parser.add_argument("--figure", type=Path, help="JPEG file for three frames of the first clip")
    parser.add_argument("--options", default="", help="further options of eoid-predict")
    options = parser.parse_args()
    image, results = read_image(options.image), {}
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            clip, out = Path(folder, f"{seconds:g}.mp4"), Path(folder, "drawn")
            write_clip(image, clip, max(1, round(seconds * RATE)))
            results[f"{seconds:g}"] = measure(options.run, clip, out, options.options.split())
            if options.figure is not None and seconds == options.seconds[0]:
                draw_figure(out / clip.name).save(options.figure, quality=JPEG_QUALITY)
    print(json.dumps({"seconds_of_clips": results}, indent=2))


if __name__ == "__main__":
    run_main(main)
