"""Predicts image files and folders into drawn images and JSON, resumable after an interruption.

In the output folder every image has a drawn image and a JSON file. The JSON file is written last,
so that its existence shows that the image is finished.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from student.inference.predict import UnreadableImage
from student.inference.predictor import Detector
from student.inference.results import HOIResult

logger = get_logger(__name__)

SETTINGS = "settings.json"
JPEG_QUALITY = 92
DRAWING_SUFFIX, RESULT_SUFFIX = ".jpg", ".json"
FORMAT = "eoid-predict-2"
COMPARED_SETTINGS = (
    *("format", "model_sha256", "vocabulary", "split", "unseen", "prompts"),
    *("threshold", "top", "nms"),
)


@dataclass(frozen=True)
class PredictImagesConfig:
    """Settings of `predict_images`.

    Attributes:
        model: the detector.
        images: files, folders and glob patterns, see `find_images`.
        out: folder for a drawn image and a JSON file per image; None writes neither.
        json: file for the results of all images; None writes none.
        threshold: minimum score of an interaction.
        top: maximum number of interactions per image.
        batch_size: maximum number of images per batch.
        workers: number of threads that read images; None takes the spare cores.
        device: device to run the model on.
        overwrite: replace existing results.
        nms: settings of a pairwise NMS; None runs none.
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
    """Predicts images; with `out`, resumes an interrupted prediction with the same settings.

    Returns:
        The number of images with results, including those of an interrupted command.

    Raises:
        InputError: there are no images, or results exist; or, after all others are predicted,
            images could not be read.
    """
    images, problems = find_images(config.images, config.out)
    for line in problems:
        logger.warning(line)
    if not images:
        raise InputError("expected at least one image, found none")
    if config.json is not None:
        refuse_existing(config.json, config.overwrite)
    device = resolve_device(config.device)
    loaded = load_inference_model(config.model)
    settings = prediction_settings(loaded, config.threshold, config.top, config.nms)
    planned: list[ImageOutputs] = []
    results: dict[int, dict[str, Any]] = {}
    if config.out is not None:
        planned = plan_outputs(images, config.out, {Path(SETTINGS).stem})
        results = _open_out_folder(config.out, planned, settings, config.overwrite)
    remaining = [index for index in range(len(images)) if index not in results]
    failed = []
    with Progress(len(images), "predicting", "images", initial=len(results)) as progress:
        stream = Detector(loaded, device).stream(
            [images[index].path for index in remaining],
            config.threshold,
            config.top,
            config.batch_size,
            default_num_workers(config.workers),
            config.nms,
        )
        for position, prediction in stream:
            index = remaining[position]
            try:
                if isinstance(prediction, UnreadableImage):
                    raise InputError(prediction.reason)
                result = prediction.to_dict()
                if config.out is not None:
                    _write_outputs(prediction, result, planned[index], config.out)
                results[index] = result
            # Drawing reads the file again, which may be gone by then.
            except InputError as error:
                logger.warning(str(error))
                failed.append({"image": str(images[index].path), "reason": str(error)})
            progress.update()
    if config.json is not None:
        entries = [results[index] for index in sorted(results)]
        write_json(config.json, {**settings, "pictures": entries, "failed": failed})
    _raise_failures(len(problems), len(failed), len(images))
    return len(results)


def _open_out_folder(
    out: Path, planned: Sequence[ImageOutputs], settings: dict[str, Any], overwrite: bool
) -> dict[int, dict[str, Any]]:
    """Prepares the output folder.

    Returns:
        The results of an interrupted command with the same settings, by index.

    Raises:
        InputError: the folder contains results of other settings, or files that would be replaced.
    """
    file = out / SETTINGS
    results = {}
    if not overwrite:
        if file.exists():
            check_same_settings(read_json(file), settings, file)
        for index, outputs in enumerate(planned):
            result = _read_result(outputs) if file.exists() else None
            if result is not None:
                results[index] = result
            else:
                refuse_existing(outputs.result, overwrite)
                # An interrupted command may leave a drawn image without its JSON file.
                if not file.exists():
                    refuse_existing(outputs.drawn, overwrite)
    write_json(file, settings)
    return results


def _read_result(outputs: ImageOutputs) -> dict[str, Any] | None:
    """The finished result of an image; None where it is missing, or of another or older image."""
    if not (outputs.result.is_file() and outputs.drawn.is_file() and outputs.path.is_file()):
        return None
    result = read_json(outputs.result)
    is_same = isinstance(result, dict) and result.get("image") == str(outputs.path)
    is_current = outputs.result.stat().st_mtime_ns >= outputs.path.stat().st_mtime_ns
    return result if is_same and is_current else None


def _write_outputs(
    prediction: HOIResult, result: dict[str, Any], outputs: ImageOutputs, out: Path
) -> None:
    """Writes the drawn image, then the JSON file, which marks the image as finished."""
    drawn = prediction.draw()
    with atomic_write(outputs.drawn) as temporary:
        drawn.save(temporary, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    result["drawn"] = outputs.drawn.relative_to(out).as_posix()
    write_json(outputs.result, result)


def _raise_failures(problems: int, failed: int, num_images: int) -> None:
    parts = []
    if failed:
        parts.append(f"{failed} of {num_images} images could not be read")
    if problems:
        parts.append(f"{problems} of the arguments match no image")
    if parts:
        raise InputError("; ".join(parts))


@dataclass(frozen=True)
class FoundImage:
    """An image file and its path in the output folder.

    Attributes:
        path: the file.
        relative_path: its path below the folder that was searched, or its file name.
    """

    path: Path
    relative_path: Path


@dataclass(frozen=True)
class ImageOutputs:
    """An image file and the files of its results."""

    path: Path
    drawn: Path
    result: Path


def find_images(
    patterns: Sequence[str], exclude: Path | None = None
) -> tuple[list[FoundImage], list[str]]:
    """Finds image files, each once, in the order of the arguments.

    Args:
        patterns: files, taken as they are; folders, searched recursively for files with an image's
            extension, without hidden ones; and glob patterns such as "photos/**/*.jpg".
        exclude: folder that is not searched, for the results.

    Returns:
        The images, and a message for every argument without any.
    """
    found: dict[str, FoundImage] = {}
    problems = []
    for pattern in patterns:
        matches = list(_expand(pattern, exclude))
        if not matches:
            problems.append(_no_match_line(pattern))
        for image in matches:
            found.setdefault(os.path.abspath(image.path), image)
    return list(found.values()), problems


def _expand(pattern: str, exclude: Path | None) -> Iterator[FoundImage]:
    path = Path(pattern)
    # An existing file with a name such as "a[1].jpg" is that file. The matches of a glob pattern
    # are treated as if the shell had expanded it.
    is_glob = glob.has_magic(pattern) and not path.exists()
    matches = sorted(map(Path, glob.glob(pattern, recursive=True))) if is_glob else [path]
    for match in matches:
        if match.is_dir():
            yield from _walk_folder(match, exclude)
        elif not is_glob or exclude is None or not _is_below(match, exclude):
            yield FoundImage(match, Path(match.name))


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _walk_folder(folder: Path, exclude: Path | None) -> Iterator[FoundImage]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and (exclude is None or not _is_below(Path(parent, name), exclude))
        )
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in IMAGE_EXTENSIONS and not name.startswith("."):
                yield FoundImage(path, path.relative_to(folder))


def _no_match_line(pattern: str) -> str:
    if Path(pattern).is_dir():
        return f"{pattern}: no images in this folder"
    return f"{pattern}: no file matches this pattern"


def plan_outputs(
    images: Sequence[FoundImage], out: Path, reserved: Collection[str] = ()
) -> list[ImageOutputs]:
    """Chooses distinct result files below `out` for every image.

    They are "a.jpg" and "a.json" for "a.png", and "a-2.jpg" and "a-2.json" for a second image with
    this name.

    Args:
        images: the images.
        out: output folder.
        reserved: names without extension that must not be used.

    Raises:
        InputError: a result would replace one of the images.
    """
    # Some file systems do not distinguish "A" and "a".
    taken = {name.lower() for name in reserved}
    planned = []
    for image in images:
        stem = image.relative_path.with_suffix("")
        name, number = stem.as_posix(), 1
        while name.lower() in taken:
            number += 1
            name = f"{stem.as_posix()}-{number}"
        taken.add(name.lower())
        planned.append(
            ImageOutputs(
                image.path, out / f"{name}{DRAWING_SUFFIX}", out / f"{name}{RESULT_SUFFIX}"
            )
        )
    inputs = {os.path.realpath(image.path) for image in images}
    for outputs in planned:
        if os.path.realpath(outputs.drawn) in inputs:
            raise InputError(
                f"--out: expected a folder without input images, found {outputs.drawn}"
            )
    return planned


def prediction_settings(
    loaded: InferenceModel, threshold: float, top: int, nms: NmsConfig | None
) -> dict[str, Any]:
    """Settings that the results depend on, as JSON: model, vocabulary, split and selection."""
    return {
        "format": FORMAT,
        "model": str(loaded.file),
        "model_sha256": sha256_of_file(loaded.file),
        "vocabulary": loaded.vocabulary.name,
        "split": loaded.split.name if loaded.split else None,
        "unseen": [loaded.vocabulary.interaction_name(hoi) for hoi in sorted(loaded.unseen)],
        "prompts": sha256_of_file(loaded.prompts) if loaded.prompts else None,
        "threshold": threshold,
        "top": top,
        "nms": None if nms is None else asdict(nms),
    }


def check_same_settings(found: Any, settings: dict[str, Any], file: Path) -> None:
    """Checks that existing results were made with the same settings.

    Args:
        found: content of `file`.
        settings: settings of this command.
        file: the settings file of the existing results.

    Raises:
        InputError: a compared setting differs.
    """
    different = differing_keys(found, {key: settings[key] for key in COMPARED_SETTINGS})
    if different:
        raise InputError(
            f"{file}: expected results with the same settings, found others"
            f" ({', '.join(different)}); choose a new folder or give --overwrite"
        )
