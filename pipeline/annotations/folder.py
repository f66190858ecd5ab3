"""A folder of pictures that nobody annotated, in the place of an annotation file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.annotations.fields import is_utf8
from pipeline.annotations.load import AnnotationFile
from pipeline.errors import InputError
from pipeline.files import sha256_of_json
from pipeline.images import SUFFIXES
from pipeline.types import Annotation

NO_UTF8 = "pictures whose names are no UTF-8 (left out)"


def list_images(folder: Path, part: str) -> AnnotationFile:
    """The pictures in a folder, by their endings, in the order of their names; hidden files and
    folders in it are left out.

    Args:
        folder: the images folder.
        part: the dataset part that it is.

    Returns:
        An annotation without box or label for each; the digest is that of the names. Pictures
        whose names are no UTF-8 are left out and counted.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    names = [name for name in found if is_utf8(name)]
    if not names:
        raise InputError(f"{folder}: expected at least one picture, found none")
    odd = [ascii(name) for name in found if not is_utf8(name)]
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    return AnnotationFile(
        path=folder,
        annotations=tuple(Annotation(name, *nothing) for name in names),
        blemishes=Counter({NO_UTF8: len(odd)} if odd else ()),
        digest=sha256_of_json(names),
        part=part,
        examples={NO_UTF8: f"{folder}: {odd[0]}"} if odd else {},
        boxes_only=True,
    )
