"""Which pictures a command line names, and under which names their results go."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.images import SUFFIXES

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
