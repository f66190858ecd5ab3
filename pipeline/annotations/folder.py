"""A folder of pictures that nobody annotated, in the place of an annotation file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.errors import InputError
from pipeline.files import sha256_of_json
from pipeline.images import SUFFIXES
from pipeline.types import Annotation


def list_images(folder: Path, part: str) -> AnnotationFile:
    """The pictures in a folder, by their endings, in the order of their names; hidden files and
    folders in it are left out.

    Args:
        folder: the images folder.
        part: the dataset part that it is.

    Returns:
        An annotation without box or label for each; the digest is that of the names.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not names:
        raise InputError(f"{folder}: expected at least one picture, found none")
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    return AnnotationFile(
        path=folder,
        annotations=tuple(Annotation(name, *nothing) for name in names),
        blemishes=Counter(),
        digest=sha256_of_json(names),
        part=part,
        boxes_only=True,
    )
