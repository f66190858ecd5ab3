"""Predictions files of the public SWIG-HOI projects (THID, CMD-SE, INP-CC, SGC-Net, SL-HOI).

JSON or a pickle: image id -> list of [interaction, score, x1, y1, x2, y2 of the person, x1, y1, x2,
y2 of the object]; or their `preds.pkl`: under `scores`, `boxes` and `keys` the scores, the eight
coordinates and the image ids of every interaction. Interactions count from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from evaluation.pickles import is_pickle, read_pickle
from evaluation.predictions import Score, shortest_floats
from pipeline.annotations.base import Coordinate
from pipeline.annotations.box_format import XYXY, BoxFormatCheck
from pipeline.annotations.swig import SwigImage
from pipeline.types import Detections
from pipeline.utils.errors import bad_field
from pipeline.utils.files import atomic_write, read_json
from pipeline.utils.schema import Number, convert
from pipeline.vocabulary import Vocabulary

C = Coordinate
# An interaction may be 454.0, as in rows that were numpy arrays.
Row = Annotated[
    tuple[C, Score, C, C, C, C, C, C, C, C],
    Meta(description="[interaction, score, person x1, y1, x2, y2, object x1, y1, x2, y2]"),
]
PairBoxes = Annotated[
    tuple[C, C, C, C, C, C, C, C],
    Meta(description="[person x1, y1, x2, y2, object x1, y1, x2, y2]"),
]
# The end of a name in JSON: texts are only the image ids.
NAME = re.compile(rb'"\s*:')
DECODE_ERRORS = (msgspec.MsgspecError, RecursionError)
EXPECTED = "image ids with lists of detections, or a pickle of scores, boxes and keys"


class _Columns(msgspec.Struct):
    """Content of `preds.pkl`, by interaction."""

    scores: dict[int, list[Score]]
    boxes: dict[int, list[PairBoxes]]
    keys: dict[int, list[Number]]


def is_published_form(path: Path) -> bool:
    """Whether a file holds an object or a pickle; the readers check the rest."""
    if is_pickle(path):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError:
        return False


def read_published(
    path: Path, images: Sequence[SwigImage], vocabulary: Vocabulary
) -> list[Detections]:
    """Reads a predictions file of the public projects.

    Args:
        path: JSON file or pickle of plain data.
        images: of the annotations; other images in the file get the number as their name.
        vocabulary: of the file's interactions.

    Returns:
        one item for each image, in the order of the file, with float64 boxes.

    Raises:
        InputError: the file is missing or damaged, has another form, an invalid number, or an image
            twice.
    """
    by_id = {image.id: image for image in images}
    tables = np.array(vocabulary.interactions, dtype=np.int64)
    form, detections = BoxFormatCheck(XYXY), []
    seen: set[int] = set()
    for number, rows in _iterate_images(path, list(by_id)):
        if number in seen:
            raise bad_field(path, f"image {number}", "every image once", "a second list")
        seen.add(number)
        interactions, image = rows[:, 0].astype(np.int64), by_id.get(number)
        wrong = (interactions < 0) | (interactions >= len(tables)) | (interactions != rows[:, 0])
        if wrong.any():
            expected = f"an interaction of {vocabulary.name}, 0 to {len(tables) - 1}"
            where = f"image {number}[{int(np.argmax(wrong))}]"
            raise bad_field(path, where, expected, f"{rows[wrong, 0][0]:.15g}")
        boxes, pairs = rows[:, 2:].reshape(-1, 4), 2 * np.arange(len(rows))
        form.add(boxes, image.size if image else None, str(number))
        verbs, objects = tables[interactions].T
        detections.append(
            Detections(
                image_id=image.name if image else str(number),
                boxes=boxes,
                labels=np.column_stack([np.full_like(objects, vocabulary.person), objects]).ravel(),
                hois=np.column_stack([pairs, pairs + 1, verbs]),
                scores=rows[:, 1],
            )
        )
    form.check(path, "boxes")
    return detections


def _image_number(path: Path, key: Any) -> int:
    """The number of an image, which is text in JSON."""
    if type(key) is int:
        return key
    if isinstance(key, str) and re.fullmatch(r"-?[0-9]{1,19}", key):
        return int(key)
    raise bad_field(path, "keys", "ids of images, as in img_id of the annotations", repr(key))


def _iterate_images(path: Path, ids: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Image id and (K, 10) float64 rows of every image, in the order of the file.

    `ids` are those of the annotations.
    """
    value = _load(path)
    if not isinstance(value, dict):
        raise bad_field(path, "file", EXPECTED, value)
    if "keys" in value and is_pickle(path):
        yield from _regroup(path, convert(value, _Columns, path), ids)
        return
    for key, rows in value.items():
        number = _image_number(path, key)
        yield number, np.array(_convert_rows(rows, path, key), dtype=np.float64).reshape(-1, 10)


def _convert_rows(rows: Any, path: Path, key: int | str) -> list[Row]:
    if isinstance(rows, msgspec.Raw):
        try:
            return msgspec.json.decode(rows, type=list[Row])
        except DECODE_ERRORS:
            rows = read_json(path)[key]
    return convert(rows, list[Row], path, f"image {key}")


def _load(path: Path) -> Any:
    """The content of a file. The values of a JSON object are left as text, because all numbers of
    a large file would take several times its size."""
    if is_pickle(path):
        return read_pickle(path)
    try:
        content = path.read_bytes()
        value = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        # Of an image's two lists msgspec would keep the last one.
        if len(NAME.findall(content)) == len(value):
            return value
    except (OSError, *DECODE_ERRORS):
        # `read_json` words the error, and reads the byte order mark and NaN that msgspec refuses.
        pass
    return read_json(path, unique_names=True)


def _regroup(path: Path, columns: _Columns, ids: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of `preds.pkl` by image, in the order of the annotations: the projects predict the
    images in this order, which counts among equal scores."""
    rows: dict[int, list[tuple[float, ...]]] = {}
    for interaction in {**columns.keys, **columns.scores, **columns.boxes}:
        keys = columns.keys.get(interaction, [])
        scores, boxes = columns.scores.get(interaction, []), columns.boxes.get(interaction, [])
        for name, length in (("scores", len(scores)), ("boxes", len(boxes))):
            if length != len(keys):
                expected = f"{len(keys)} entries, as in keys"
                raise bad_field(path, f"{name}.{interaction}", expected, length)
        for key, score, box in zip(keys, scores, boxes, strict=True):
            rows.setdefault(key, []).append((interaction, score, *box))
    place = {number: index for index, number in enumerate(ids)}
    for key in sorted(rows, key=lambda number: place.get(number, len(place))):
        yield key, np.array(rows[key], dtype=np.float64)


def write_published(
    path: Path,
    detections: Sequence[Detections],
    images: Sequence[SwigImage],
    vocabulary: Vocabulary,
) -> None:
    """Writes detections as JSON atomically, one image per line; those on images outside `images`,
    and pairs that are no interaction, are left out."""
    numbers = {image.name: image.id for image in images}
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "{"
        for item in detections:
            if item.image_id not in numbers:
                continue
            humans, objects, verbs = item.hois.T
            interactions = vocabulary.interaction_ids[verbs, item.labels[objects]]
            known = (interactions >= 0) & (item.labels[humans] == vocabulary.person)
            pairs = item.boxes[item.hois[known, :2]].reshape(-1, 8)
            rows = [
                [interaction, score, *boxes]
                for interaction, score, boxes in zip(
                    interactions[known].tolist(),
                    shortest_floats(item.scores[known]),
                    shortest_floats(pairs),
                    strict=True,
                )
            ]
            text = msgspec.json.encode(rows).decode()
            file.write(f'{separator}\n"{numbers[item.image_id]}":{text}')
            separator = ","
        file.write("{}\n" if separator == "{" else "\n}\n")
