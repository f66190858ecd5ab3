"""Detects in people's own pictures: drawn pictures, JSON, and a line for what cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.nms import NmsConfig
from pipeline.devices import resolve_device, spare_cores
from pipeline.errors import InputError
from pipeline.files import read_json, refuse_existing, replacing, write_json
from pipeline.progress import Progress
from student.detector import Detector
from student.findings import Findings
from student.picture_files import PlannedPicture, find_pictures, plan_results
from student.predict import Unreadable
from student.predict_settings import prediction_settings, refuse_other_settings
from student.ready import ModelSource, ready_model

SETTINGS = "settings.json"
JPEG_QUALITY = 92


@dataclass(frozen=True)
class PicturesConfig:
    """Which detector looks at which pictures.

    Attributes:
        model: the detector.
        images: files, folders and patterns, see `find_pictures`.
        out: folder for a drawn picture and a JSON file of each; None draws nothing.
        json: file for the answers to all pictures; None writes none.
        threshold, top: least score and most interactions of a picture.
        batch_size: most pictures at once.
        workers: threads that read pictures; None takes the spare cores.
        device: where the model runs.
        overwrite: replace results that are there.
        nms: pairwise NMS first; None without.
    """

    model: ModelSource
    images: tuple[str, ...]
    out: Path | None
    json: Path | None
    threshold: float
    top: int
    batch_size: int
    workers: int | None
    device: str
    overwrite: bool
    nms: NmsConfig | None = None


def predict_pictures(config: PicturesConfig) -> int:
    """Looks at the pictures; with `out`, the same command goes on after a stop.

    Returns:
        How many pictures have their answer now.

    Raises:
        InputError: nothing to look at, results in the way; or, after all others have been looked
            at, that there were pictures that cannot be read.
    """
    pictures, problems = find_pictures(config.images, config.out)
    for line in problems:
        print(line, file=sys.stderr)
    if not pictures:
        raise InputError("no pictures to look at")
    if config.json is not None:
        refuse_existing(config.json, config.overwrite)
    device = resolve_device(config.device)
    opened = ready_model(config.model)
    settings = prediction_settings(opened, config.threshold, config.top, config.nms)
    planned: list[PlannedPicture] = []
    answers: dict[int, dict[str, Any]] = {}
    if config.out is not None:
        planned = plan_results(pictures, config.out, {Path(SETTINGS).stem})
        answers = _claim(config.out, planned, settings, config.overwrite)
    left = [index for index in range(len(pictures)) if index not in answers]
    failed = []
    with Progress(len(pictures), "predicting", "pictures", done=len(answers)) as progress:
        stream = Detector(opened, device).stream(
            [pictures[index].path for index in left],
            config.threshold,
            config.top,
            config.batch_size,
            spare_cores(config.workers),
            config.nms,
        )
        for place, found in stream:
            index = left[place]
            try:
                if isinstance(found, Unreadable):
                    raise InputError(found.reason)
                answer = found.to_dict()
                if config.out is not None:
                    _write(found, answer, planned[index], config.out)
                answers[index] = answer
            except InputError as error:
                progress.tell(str(error))
                failed.append({"image": str(pictures[index].path), "reason": str(error)})
            progress.advance()
    if config.json is not None:
        looked = [answers[index] for index in sorted(answers)]
        write_json(config.json, {**settings, "pictures": looked, "failed": failed})
    _complain(len(problems), len(failed), len(pictures))
    return len(answers)


def _claim(
    out: Path, planned: Sequence[PlannedPicture], settings: dict[str, Any], overwrite: bool
) -> dict[int, dict[str, Any]]:
    """Takes the results folder over; the answers that an earlier, stopped command left in it.

    Raises:
        InputError: it holds results of other settings, or files in the way.
    """
    file = out / SETTINGS
    answers = {}
    if not overwrite:
        if file.exists():
            refuse_other_settings(read_json(file), settings, file)
        for index, one in enumerate(planned):
            answer = _answer(one) if file.exists() else None
            if answer is not None:
                answers[index] = answer
            else:
                refuse_existing(one.answer, overwrite)
                # A command stopped between the two leaves a drawn picture without its answer.
                if not file.exists():
                    refuse_existing(one.drawn, overwrite)
    write_json(file, settings)
    return answers


def _answer(one: PlannedPicture) -> dict[str, Any] | None:
    """The finished answer to a picture; None where there is none, or an answer to another one."""
    if not (one.answer.is_file() and one.drawn.is_file() and one.path.is_file()):
        return None
    answer = read_json(one.answer)
    same = isinstance(answer, dict) and answer.get("image") == str(one.path)
    fresh = one.answer.stat().st_mtime_ns >= one.path.stat().st_mtime_ns
    return answer if same and fresh else None


def _write(found: Findings, answer: dict[str, Any], place: PlannedPicture, out: Path) -> None:
    """Writes the drawn picture, then the answer, whose being there says that both are."""
    _save(found.draw(), place.drawn)
    answer["drawn"] = place.drawn.relative_to(out).as_posix()
    write_json(place.answer, answer)


def _save(drawn: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        drawn.save(temporary, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _complain(problems: int, failed: int, pictures: int) -> None:
    parts = []
    if failed:
        parts.append(f"{failed} of {pictures} pictures could not be read")
    if problems:
        parts.append(f"{problems} of the names found no picture")
    if parts:
        raise InputError("; ".join(parts))
