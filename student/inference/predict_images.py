"""Detects in people's own pictures: drawn pictures, JSON, and a line for what cannot be read."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.hico.nms import NmsConfig
from pipeline.images import SUFFIXES
from pipeline.utils.devices import resolve_device, spare_cores
from pipeline.utils.errors import InputError
from pipeline.utils.files import (
    differing_keys,
    read_json,
    refuse_existing,
    replacing,
    sha256_of_file,
    write_json,
)
from pipeline.utils.progress import Progress
from student.inference.model import ModelSource, ReadyModel, ready_model
from student.inference.predict import Unreadable
from student.inference.predictor import Detector
from student.inference.results import Findings

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


DRAWN, ANSWER = ".jpg", ".json"


@dataclass(frozen=True)
class NamedPicture:
    """A picture and where it stands below what was named: the place of its results.

    Attributes:
        path: the file.
        place: its path below the folder that was named, or its file name.
    """

    path: Path
    place: Path


@dataclass(frozen=True)
class PlannedPicture:
    """A picture and the files that its results go to."""

    path: Path
    drawn: Path
    answer: Path


def find_pictures(
    words: Sequence[str], left_out: Path | None = None
) -> tuple[list[NamedPicture], list[str]]:
    """The pictures that people named, each once, in their order.

    Args:
        words: files; folders, searched with all folders below them for files with a picture's
            ending, hidden ones left out; or patterns like "photos/**/*.jpg".
        left_out: a folder not to search, which the results go to.

    Returns:
        The pictures, and a line for every word that names none.
    """
    found: dict[str, NamedPicture] = {}
    problems = []
    for word in words:
        own = list(_named(word, left_out))
        if not own:
            problems.append(_problem(word))
        for picture in own:
            found.setdefault(os.path.abspath(picture.path), picture)
    return list(found.values()), problems


def _named(word: str, left_out: Path | None) -> Iterator[NamedPicture]:
    path = Path(word)
    # A pattern's matches are taken as if a shell had put them onto the command line.
    pattern = glob.has_magic(word) and not path.exists()
    matches = sorted(map(Path, glob.glob(word, recursive=True))) if pattern else [path]
    for match in matches:
        if match.is_dir():
            yield from _in_folder(match, left_out)
        elif not pattern or left_out is None or not _is_below(match, left_out):
            yield NamedPicture(match, Path(match.name))


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _in_folder(folder: Path, left_out: Path | None) -> Iterator[NamedPicture]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and (left_out is None or not _is_below(Path(where, name), left_out))
        )
        for name in sorted(files):
            path = Path(where, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield NamedPicture(path, path.relative_to(folder))


def _problem(word: str) -> str:
    if Path(word).is_dir():
        return f"{word}: no pictures in this folder"
    return f"{word}: no file matches this pattern"


def plan_results(
    pictures: Sequence[NamedPicture], out: Path, reserved: Collection[str] = ()
) -> list[PlannedPicture]:
    """Gives every picture result files of its own below `out`: "a.jpg" and "a.json" for "a.png",
    "a-2.jpg" and "a-2.json" for the next that would be called so.

    Args:
        reserved: names (without ending) that are taken.

    Raises:
        InputError: a result would replace one of the pictures.
    """
    # Some file systems take "A" and "a" for one name.
    taken = {name.lower() for name in reserved}
    planned = []
    for picture in pictures:
        stem = picture.place.with_suffix("")
        name, number = stem.as_posix(), 1
        while name.lower() in taken:
            number += 1
            name = f"{stem.as_posix()}-{number}"
        taken.add(name.lower())
        planned.append(
            PlannedPicture(picture.path, out / f"{name}{DRAWN}", out / f"{name}{ANSWER}")
        )
    sources = {os.path.realpath(picture.path) for picture in pictures}
    for one in planned:
        if os.path.realpath(one.drawn) in sources:
            raise InputError(
                f"{one.drawn}: is a picture to look at; --out has to be another folder"
            )
    return planned


FORMAT = "eoid-predict-2"
COMPARED = (
    *("format", "model_sha256", "vocabulary", "split", "unseen", "prompts"),
    *("threshold", "top", "nms"),
)


def prediction_settings(
    opened: ReadyModel, threshold: float, top: int, nms: NmsConfig | None
) -> dict[str, Any]:
    """The settings as JSON: the model, what its numbers mean, and what is kept."""
    return {
        "format": FORMAT,
        "model": str(opened.file),
        "model_sha256": sha256_of_file(opened.file),
        "vocabulary": opened.vocabulary.name,
        "split": opened.split.name if opened.split else None,
        "unseen": [opened.vocabulary.interaction_name(one) for one in sorted(opened.unseen)],
        "prompts": sha256_of_file(opened.prompts) if opened.prompts else None,
        "threshold": threshold,
        "top": top,
        "nms": None if nms is None else asdict(nms),
    }


def refuse_other_settings(found: Any, settings: dict[str, Any], file: Path) -> None:
    """Guards results that are there.

    Args:
        found: the settings that `file` holds.

    Raises:
        InputError: they are not `settings`.
    """
    different = differing_keys(found, {key: settings[key] for key in COMPARED})
    if different:
        raise InputError(
            f"{file}: holds results of other settings ({', '.join(different)}); name a new folder"
            " or give --overwrite"
        )
