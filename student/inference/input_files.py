"""The images and videos that the arguments of `eoid-predict` name: files, folders, patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.images import (
    IMAGE_EXTENSIONS,
    UNREAD_EXTENSIONS,
    read_image_size,
    unread_images,
)
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun

logger = get_logger(__name__)

# Endings of the files that count as videos in a folder. Files with other endings than these and
# those of images are tried; ".ts" is also the ending of TypeScript.
VIDEO_EXTENSIONS = frozenset(
    {
        *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".vob", ".webm", ".wmv"),
    }
)
VIDEO_PACKAGES = ("av", "trackers")


@dataclass(frozen=True)
class InputFiles:
    """Image and video files, each once, in the order of the arguments.

    Attributes:
        images, videos: for every file its path below the folder that was searched, or its name.
        num_unused: number of arguments without any image or video that can be taken.
    """

    images: dict[Path, Path]
    videos: dict[Path, Path]
    num_unused: int


def refuse_missing(patterns: Sequence[str]) -> None:
    """Raises:
    InputError: a file is named, without a pattern's special characters, that does not exist.
    """
    missing = [one for one in patterns if not glob.has_magic(one) and not os.path.exists(one)]
    if missing:
        others = f", nor {count_noun(len(missing) - 1, 'others')}" if len(missing) > 1 else ""
        raise InputError(f"{missing[0] or 'an empty text'}: no such file or folder{others}")


def find_images(
    patterns: Sequence[str], exclude: Path | None = None, no_videos: str = ""
) -> InputFiles:
    """Finds image and video files.

    Warnings name the arguments without any of them, the videos that cannot be taken, and folders
    with images of formats that are not supported.

    Args:
        patterns: files, taken as they are; folders, searched recursively for files with the
            extension of an image or video, without hidden ones; and glob patterns such as
            "photos/**/*.jpg".
        exclude: folder that is not searched, for the results.
        no_videos: why videos are skipped; "" to take them.

    Raises:
        InputError: a file that is named does not exist, or nothing is found at all.
    """
    refuse_missing(patterns)
    images: dict[str, tuple[Path, Path]] = {}
    videos: dict[str, tuple[Path, Path]] = {}
    warnings = []
    num_unused = 0
    for pattern in patterns:
        others: list[Path] = []
        matches = list(_expand(pattern, exclude, others))
        unread, kind = unread_images(others)
        if unread:
            message = count_noun(len(unread), kind)
            warnings.append(f"{pattern}: {message}; convert them to JPEG or PNG")
        skipped = []
        for path, relative in matches:
            if not _is_video(path):
                images.setdefault(os.path.abspath(path), (path, relative))
            elif not no_videos:
                videos.setdefault(os.path.abspath(path), (path, relative))
            else:
                skipped.append(path)
        if not matches and Path(pattern).is_dir():
            is_skipped = _is_below(Path(pattern), exclude)
            why = ", which is not searched because it is for the results" if is_skipped else ""
            warnings.append(f"{pattern}: no images in this folder{why}")
        elif not matches:
            warnings.append(f"{pattern}: no file matches this pattern")
        elif skipped == [Path(pattern)]:
            warnings.append(f"{pattern}: {no_videos}")
        elif skipped:
            count = count_noun(len(skipped), "videos")
            warnings.append(f"{pattern}: {count} skipped; {no_videos}")
        num_unused += len(skipped) == len(matches)
    if not images and not videos:
        raise InputError("; ".join(warnings) or "expected at least one image or video, found none")
    for line in warnings:
        logger.warning(line)
    return InputFiles(dict(images.values()), dict(videos.values()), num_unused)


def _is_video(path: Path) -> bool:
    """Whether a file is a video, by its ending, or by its content if the ending is unknown."""
    ending = path.suffix.lower()
    if ending in VIDEO_EXTENSIONS or ending in IMAGE_EXTENSIONS | UNREAD_EXTENSIONS:
        return ending in VIDEO_EXTENSIONS
    if not path.is_file() or missing_video_packages():
        return False
    from student.inference.video import VideoReader

    try:
        read_image_size(path)
    except InputError:
        with suppress(InputError), VideoReader(path):
            return True
    return False


def _expand(pattern: str, exclude: Path | None, others: list[Path]) -> Iterator[tuple[Path, Path]]:
    """(file, path in the output folder) of every image and video that an argument names; adds the
    other files of its folders to `others`."""
    path = Path(pattern)
    # An existing file with a name such as "a[1].jpg" is that file. The matches of a glob pattern
    # are treated as if the shell had expanded it.
    is_glob = glob.has_magic(pattern) and not path.exists()
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))) if is_glob else [path]:
        if match.is_dir():
            for file in map(Path, _walk(match, exclude)):
                if file.suffix.lower() in IMAGE_EXTENSIONS | VIDEO_EXTENSIONS:
                    yield file, file.relative_to(match)
                else:
                    others.append(file)
        elif not (is_glob and _is_below(match, exclude)):
            yield match, Path(match.name)


def _walk(folder: str | Path, exclude: Path | None) -> Iterator[str]:
    """Paths of the files in a folder and its folders, without hidden ones and links to folders.

    Of a million files, only folders are asked for more than the entry in their parent.
    """
    if _is_below(Path(folder), exclude):
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, exclude)
        # Links that lead nowhere, or in a circle, are files that cannot be read.
        elif not (entry.is_symlink() and os.path.isdir(entry)):
            yield entry.path


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(
        os.path.realpath(folder)
    )


def missing_video_packages() -> str:
    """Why videos cannot be predicted, "" if they can."""
    missing = [name for name in VIDEO_PACKAGES if find_spec(name) is None]
    return f"videos need {' and '.join(missing)}; pip install '.[video]'" if missing else ""
