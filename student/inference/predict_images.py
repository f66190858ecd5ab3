"""Detects in people's own pictures: drawn pictures, JSON, and a line for what cannot be read."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.hico.nms import NmsConfig
from pipeline.images import IMAGE_EXTENSIONS
from pipeline.utils.devices import default_num_workers, resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.files import (
    atomic_write,
    differing_keys,
    read_json,
    refuse_existing,
    sha256_of_file,
    write_json,
)
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from student.inference.model import InferenceModel, ModelSpec, load_inference_model
from student.inference.predict import ImageError
from student.inference.predictor import Detector
from student.inference.results import HOIResult

logger = get_logger(__name__)

SETTINGS = "settings.json"
JPEG_QUALITY = 92


@dataclass(frozen=True)
class PredictImagesConfig:
    """Which detector looks at which pictures.

    Attributes:
        model: the detector.
        images: files, folders and patterns, see `find_images`.
        out: folder for a drawn picture and a JSON file of each; None draws nothing.
        json: file for the answers to all pictures; None writes none.
        threshold, top: least score and most interactions of a picture.
        batch_size: most pictures at once.
        workers: threads that read pictures; None takes the spare cores.
        device: where the model runs.
        overwrite: replace results that are there.
        nms: pairwise NMS first; None without.
    """

    model: ModelSpec
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


def predict_images(config: PredictImagesConfig) -> int:
    """Looks at the pictures; with `out`, the same command goes on after a stop.

    Returns:
        How many pictures have their answer now.

    Raises:
        InputError: nothing to look at, results in the way; or, after all others have been looked
            at, that there were pictures that cannot be read.
    """
    pictures, problems = find_images(config.images, config.out)
    for line in problems:
        logger.warning(line)
    if not pictures:
        raise InputError("no pictures to look at")
    if config.json is not None:
        refuse_existing(config.json, config.overwrite)
    device = resolve_device(config.device)
    loaded = load_inference_model(config.model)
    settings = prediction_settings(loaded, config.threshold, config.top, config.nms)
    planned: list[ImageOutputs] = []
    answers: dict[int, dict[str, Any]] = {}
    if config.out is not None:
        planned = plan_outputs(pictures, config.out, {Path(SETTINGS).stem})
        answers = _open_out_folder(config.out, planned, settings, config.overwrite)
    left = [index for index in range(len(pictures)) if index not in answers]
    failed = []
    with Progress(len(pictures), "predicting", "pictures", initial=len(answers)) as progress:
        stream = Detector(loaded, device).stream(
            [pictures[index].path for index in left],
            config.threshold,
            config.top,
            config.batch_size,
            default_num_workers(config.workers),
            config.nms,
        )
        for place, found in stream:
            index = left[place]
            try:
                if isinstance(found, ImageError):
                    raise InputError(found.reason)
                answer = found.to_dict()
                if config.out is not None:
                    _write_outputs(found, answer, planned[index], config.out)
                answers[index] = answer
            except InputError as error:
                logger.warning(str(error))
                failed.append({"image": str(pictures[index].path), "reason": str(error)})
            progress.update()
    if config.json is not None:
        looked = [answers[index] for index in sorted(answers)]
        write_json(config.json, {**settings, "pictures": looked, "failed": failed})
    _raise_failures(len(problems), len(failed), len(pictures))
    return len(answers)


def _open_out_folder(
    out: Path, planned: Sequence[ImageOutputs], settings: dict[str, Any], overwrite: bool
) -> dict[int, dict[str, Any]]:
    """Takes the results folder over; the answers that an earlier, stopped command left in it.

    Raises:
        InputError: it holds results of other settings, or files in the way.
    """
    file = out / SETTINGS
    answers = {}
    if not overwrite:
        if file.exists():
            check_same_settings(read_json(file), settings, file)
        for index, one in enumerate(planned):
            answer = _read_result(one) if file.exists() else None
            if answer is not None:
                answers[index] = answer
            else:
                refuse_existing(one.result, overwrite)
                # A command stopped between the two leaves a drawn picture without its answer.
                if not file.exists():
                    refuse_existing(one.drawn, overwrite)
    write_json(file, settings)
    return answers


def _read_result(one: ImageOutputs) -> dict[str, Any] | None:
    """The finished answer to a picture; None where there is none, or an answer to another one."""
    if not (one.result.is_file() and one.drawn.is_file() and one.path.is_file()):
        return None
    answer = read_json(one.result)
    same = isinstance(answer, dict) and answer.get("image") == str(one.path)
    fresh = one.result.stat().st_mtime_ns >= one.path.stat().st_mtime_ns
    return answer if same and fresh else None


def _write_outputs(
    found: HOIResult, answer: dict[str, Any], outputs: ImageOutputs, out: Path
) -> None:
    """Writes the drawn picture, then the answer, whose being there says that both are."""
    _save_jpeg(found.draw(), outputs.drawn)
    answer["drawn"] = outputs.drawn.relative_to(out).as_posix()
    write_json(outputs.result, answer)


def _save_jpeg(drawn: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        drawn.save(temporary, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _raise_failures(problems: int, failed: int, pictures: int) -> None:
    parts = []
    if failed:
        parts.append(f"{failed} of {pictures} pictures could not be read")
    if problems:
        parts.append(f"{problems} of the names found no picture")
    if parts:
        raise InputError("; ".join(parts))


DRAWING_SUFFIX, RESULT_SUFFIX = ".jpg", ".json"


@dataclass(frozen=True)
class FoundImage:
    """A picture and where it stands below what was named: the place of its results.

    Attributes:
        path: the file.
        relative_path: its path below the folder that was named, or its file name.
    """

    path: Path
    relative_path: Path


@dataclass(frozen=True)
class ImageOutputs:
    """A picture and the files that its results go to."""

    path: Path
    drawn: Path
    result: Path


def find_images(
    patterns: Sequence[str], exclude: Path | None = None
) -> tuple[list[FoundImage], list[str]]:
    """The pictures that people named, each once, in their order.

    Args:
        patterns: files; folders, searched with all folders below them for files with a picture's
            ending, hidden ones left out; or patterns like "photos/**/*.jpg".
        exclude: a folder not to search, which the results go to.

    Returns:
        The pictures, and a line for every word that names none.
    """
    found: dict[str, FoundImage] = {}
    problems = []
    for word in patterns:
        own = list(_expand(word, exclude))
        if not own:
            problems.append(_no_match_line(word))
        for picture in own:
            found.setdefault(os.path.abspath(picture.path), picture)
    return list(found.values()), problems


def _expand(word: str, exclude: Path | None) -> Iterator[FoundImage]:
    path = Path(word)
    # A pattern's matches are taken as if a shell had put them onto the command line.
    pattern = glob.has_magic(word) and not path.exists()
    matches = sorted(map(Path, glob.glob(word, recursive=True))) if pattern else [path]
    for match in matches:
        if match.is_dir():
            yield from _walk_folder(match, exclude)
        elif not pattern or exclude is None or not _is_below(match, exclude):
            yield FoundImage(match, Path(match.name))


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _walk_folder(folder: Path, exclude: Path | None) -> Iterator[FoundImage]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and (exclude is None or not _is_below(Path(where, name), exclude))
        )
        for name in sorted(files):
            path = Path(where, name)
            if path.suffix.lower() in IMAGE_EXTENSIONS and not name.startswith("."):
                yield FoundImage(path, path.relative_to(folder))


def _no_match_line(word: str) -> str:
    if Path(word).is_dir():
        return f"{word}: no pictures in this folder"
    return f"{word}: no file matches this pattern"


def plan_outputs(
    pictures: Sequence[FoundImage], out: Path, reserved: Collection[str] = ()
) -> list[ImageOutputs]:
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
        stem = picture.relative_path.with_suffix("")
        name, number = stem.as_posix(), 1
        while name.lower() in taken:
            number += 1
            name = f"{stem.as_posix()}-{number}"
        taken.add(name.lower())
        planned.append(
            ImageOutputs(
                picture.path, out / f"{name}{DRAWING_SUFFIX}", out / f"{name}{RESULT_SUFFIX}"
            )
        )
    sources = {os.path.realpath(picture.path) for picture in pictures}
    for one in planned:
        if os.path.realpath(one.drawn) in sources:
            raise InputError(
                f"{one.drawn}: is a picture to look at; --out has to be another folder"
            )
    return planned


FORMAT = "eoid-predict-2"
COMPARED_SETTINGS = (
    *("format", "model_sha256", "vocabulary", "split", "unseen", "prompts"),
    *("threshold", "top", "nms"),
)


def prediction_settings(
    loaded: InferenceModel, threshold: float, top: int, nms: NmsConfig | None
) -> dict[str, Any]:
    """The settings as JSON: the model, what its numbers mean, and what is kept."""
    return {
        "format": FORMAT,
        "model": str(loaded.file),
        "model_sha256": sha256_of_file(loaded.file),
        "vocabulary": loaded.vocabulary.name,
        "split": loaded.split.name if loaded.split else None,
        "unseen": [loaded.vocabulary.interaction_name(one) for one in sorted(loaded.unseen)],
        "prompts": sha256_of_file(loaded.prompts) if loaded.prompts else None,
        "threshold": threshold,
        "top": top,
        "nms": None if nms is None else asdict(nms),
    }


def check_same_settings(found: Any, settings: dict[str, Any], file: Path) -> None:
    """Guards results that are there.

    Args:
        found: the settings that `file` holds.

    Raises:
        InputError: they are not `settings`.
    """
    different = differing_keys(found, {key: settings[key] for key in COMPARED_SETTINGS})
    if different:
        raise InputError(
            f"{file}: holds results of other settings ({', '.join(different)}); name a new folder"
            " or give --overwrite"
        )
