"""Predicts image files and folders into drawn images and JSON, resumable after an interruption.

In the output folder every image has a drawn image and a JSON file. The JSON file is written last,
so that its existence shows that the image is finished.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.images import IMAGE_EXTENSIONS, unread_images
from pipeline.utils.devices import default_num_workers
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
from pipeline.utils.text import count_noun
from student.inference.batch_predictor import UnreadableImage
from student.inference.detector import BATCH_SIZE, Detector
from student.inference.postprocess import SelectionConfig
from student.inference.results import HOIResult

logger = get_logger(__name__)

SETTINGS = "settings.json"
JPEG_QUALITY = 92
FORMAT = "eoid-predict-2"


@dataclass(frozen=True)
class ImageOutputs:
    """An image file and the files of its results."""

    path: Path
    drawn: Path
    result: Path


def predict_images(
    detector: Detector,
    patterns: Sequence[str],
    out: Path | None,
    json_file: Path | None,
    selection: SelectionConfig,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Predicts images and prints a summary.

    With `out`, an interrupted prediction with the same settings is resumed.

    Args:
        detector: the detector.
        patterns: files, folders and glob patterns, see `find_images`.
        out: folder for a drawn image and a JSON file per image; None writes neither.
        json_file: file for the results of all images; None writes none.
        selection: which detections are written.
        batch_size: maximum number of images per batch.
        workers: number of threads that read images; None takes the spare cores.
        overwrite: replace existing results.

    Returns:
        The number of images with results, including those of an interrupted command.

    Raises:
        InputError: there are no images, or results exist; or, after all others are predicted,
            images could not be read.
    """
    images, problems, skipped = find_images(patterns, out)
    for line in problems + skipped:
        logger.warning(line)
    if not images:
        raise InputError("expected at least one image, found none")
    if json_file is not None:
        refuse_existing(json_file, overwrite)
    settings = prediction_settings(detector, selection)
    planned = [] if out is None else plan_outputs(images, out)
    results = {} if out is None else _open_out_folder(out, planned, settings, overwrite)
    paths = list(images)
    remaining = [index for index in range(len(paths)) if index not in results]
    failed = []
    with Progress(len(paths), "predicting", "images", initial=len(results)) as progress:
        for position, prediction in detector.stream(
            [paths[index] for index in remaining],
            selection,
            batch_size,
            default_num_workers(workers),
        ):
            index = remaining[position]
            try:
                if isinstance(prediction, UnreadableImage):
                    raise InputError(prediction.reason)
                result = prediction.to_dict()
                if out is not None:
                    _write_outputs(prediction, result, planned[index], out)
                results[index] = result
            # Drawing reads the file again, which may be gone by then.
            except InputError as error:
                logger.warning(str(error))
                failed.append({"image": str(paths[index]), "reason": str(error)})
            progress.update()
    if json_file is not None:
        entries = [results[index] for index in sorted(results)]
        write_json(json_file, {**settings, "pictures": entries, "failed": failed})
    count = sum(len(result["interactions"]) for result in results.values())
    places = [str(place) for place in (out, json_file) if place is not None]
    print(
        f"{count_noun(len(results), 'images')}, {count_noun(count, 'interactions')} with a score of"
        f" at least {selection.threshold:g}; results in {' and '.join(places)}"
    )
    reasons = [f"{len(failed)} of {len(paths)} images could not be read"] if failed else []
    if problems:
        reasons.append(f"{len(problems)} of the arguments match no image")
    if reasons:
        raise InputError("; ".join(reasons))
    return len(results)


def prediction_settings(detector: Detector, selection: SelectionConfig) -> dict[str, Any]:
    """Settings that the results depend on, as JSON: model, vocabulary, split and selection."""
    vocabulary, split = detector.vocabulary, detector.split
    return {
        "format": FORMAT,
        "model": str(detector.file),
        "model_sha256": sha256_of_file(detector.file),
        "vocabulary": vocabulary.name,
        "split": split.name if split else None,
        "unseen": [vocabulary.interaction_name(hoi) for hoi in sorted(detector.unseen)],
        "prompts": sha256_of_file(detector.prompts) if detector.prompts else None,
        **asdict(selection),
    }


def _open_out_folder(
    out: Path, planned: Sequence[ImageOutputs], settings: dict[str, Any], overwrite: bool
) -> dict[int, dict[str, Any]]:
    """Prepares the output folder; gives the results of an interrupted command, by index.

    Raises:
        InputError: the folder contains results of other settings, or files that would be replaced.
    """
    file = out / SETTINGS
    results = {}
    resumed = file.exists() and not overwrite
    if resumed:
        # The file of the model may have been moved.
        compared = {key: value for key, value in settings.items() if key != "model"}
        if different := differing_keys(read_json(file), compared):
            raise InputError(
                f"{file}: expected results with the same settings, found others"
                f" ({', '.join(different)}); choose a new folder or give --overwrite"
            )
    for index, outputs in enumerate(planned):
        if resumed and (result := _read_result(outputs)) is not None:
            results[index] = result
            continue
        refuse_existing(outputs.result, overwrite)
        # An interrupted command may leave a drawn image without its JSON file.
        if not resumed:
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


def find_images(
    patterns: Sequence[str], exclude: Path | None = None
) -> tuple[dict[Path, Path], list[str], list[str]]:
    """Finds image files, each once, in the order of the arguments.

    Args:
        patterns: files, taken as they are; folders, searched recursively for files with an image's
            extension, without hidden ones; and glob patterns such as "photos/**/*.jpg".
        exclude: folder that is not searched, for the results.

    Returns:
        - for every image its path below the folder that was searched, or its file name;
        - a message for every argument without any image;
        - a message for every argument with image files of formats that are not supported.
    """
    found: dict[str, tuple[Path, Path]] = {}
    problems, skipped = [], []
    for pattern in patterns:
        others: list[Path] = []
        matches = list(_expand(pattern, exclude, others))
        unread, kind = unread_images(others)
        if unread:
            message = count_noun(len(unread), kind)
            skipped.append(f"{pattern}: {message}; convert them to JPEG or PNG")
        if not matches:
            what = (
                "images in this folder" if Path(pattern).is_dir() else "file matches this pattern"
            )
            problems.append(f"{pattern}: no {what}")
        for path, relative in matches:
            found.setdefault(os.path.abspath(path), (path, relative))
    return dict(found.values()), problems, skipped


def _expand(pattern: str, exclude: Path | None, others: list[Path]) -> Iterator[tuple[Path, Path]]:
    """(file, path in the output folder) of every image that an argument names; adds the other files
    of its folders to `others`."""
    path = Path(pattern)
    # An existing file with a name such as "a[1].jpg" is that file. The matches of a glob pattern
    # are treated as if the shell had expanded it.
    is_glob = glob.has_magic(pattern) and not path.exists()
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))) if is_glob else [path]:
        if match.is_dir():
            for file in sorted(match.rglob("*")):
                relative = file.relative_to(match)
                hidden = any(name.startswith(".") for name in relative.parts)
                if hidden or file.is_dir() or _is_below(file, exclude):
                    continue
                if file.suffix.lower() in IMAGE_EXTENSIONS:
                    yield file, relative
                else:
                    others.append(file)
        elif not (is_glob and _is_below(match, exclude)):
            yield match, Path(match.name)


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(folder)
    )


def plan_outputs(images: Mapping[Path, Path], out: Path) -> list[ImageOutputs]:
    """Chooses distinct result files below `out` for every image, from its preferred path there.

    They are "a.jpg" and "a.json" for "a.png", and "a-2.jpg" and "a-2.json" for a second image with
    this name.

    Raises:
        InputError: a result would replace one of the images.
    """
    # Some file systems do not distinguish "A" and "a".
    taken = {Path(SETTINGS).stem}
    inputs = {os.path.realpath(path) for path in images}
    planned = []
    for path, relative in images.items():
        stem = relative.with_suffix("").as_posix()
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        planned.append(ImageOutputs(path, out / f"{name}.jpg", out / f"{name}.json"))
        if os.path.realpath(planned[-1].drawn) in inputs:
            raise InputError(
                f"--out: expected a folder without input images, found {planned[-1].drawn}"
            )
    return planned
