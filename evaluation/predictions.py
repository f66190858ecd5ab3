"""Predictions files in the HOIA/PPDM JSON form, which other HOI projects read and write as well.

A list with one entry for each image: `file_name`, `predictions` (boxes: `bbox` xyxy in pixels,
`category_id` as in annotation files) and `hoi_prediction` (`subject_id` and `object_id`, indices
of boxes; `category_id`, the verb counted from 1; `score`). As in annotation files of the same form,
vocabularies with roles (V-COCO's) count verbs from 0 and have `object_id` -1 where a verb has no
object. Files that this project writes name in their first entry the `vocabulary` of their numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from evaluation.pickles import is_pickle, iterate_pickle
from pipeline.annotations.base import Box
from pipeline.annotations.box_format import XYXY, BoxFormatCheck
from pipeline.types import Detections
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, iter_json
from pipeline.utils.schema import Number, convert
from pipeline.vocabulary import Vocabulary

# Name of the predictions file in a run folder.
PREDICTIONS_FILE = "predictions.json"
CHECKPOINT_SUFFIXES = (".pt", ".pth")
BOX_EXPECTED = "four finite numbers x1, y1, x2, y2 in pixels with x1 <= x2 and y1 <= y2"
MAX_SCORE = sys.float_info.max
Score = Annotated[float, Meta(ge=-MAX_SCORE, le=MAX_SCORE, description="a finite number")]
# Files with fewer pairs are not checked for the numbering of their verbs.
MIN_PAIRS = 20
# A file counts verbs from the wrong number if, with the verbs shifted by one, at least this share
# of its pairs are interactions, and without the shift at most this part of that share.
MIN_VALID_SHARE, MAX_RELATIVE_SHARE = 0.9, 0.75


class _Box(Struct):
    bbox: Box
    category_id: Number


class _Hoi(Struct):
    subject_id: Number
    object_id: Number
    category_id: Number
    score: Score


class _Entry(Struct):
    file_name: str
    predictions: list[_Box]
    hoi_prediction: list[_Hoi]


def find_predictions_file(path: Path) -> Path:
    """A predictions file: the path itself, or `predictions.json` of a run folder.

    Raises:
        InputError: the path is a checkpoint, or a folder without predictions; the message names
            the command that writes predictions.
    """
    how = f"to predict and score with it: eoid-train evaluate {path} --data DATASET"
    if path.suffix in CHECKPOINT_SUFFIXES:
        raise InputError(f"{path}: expected predictions, found a checkpoint; {how}")
    if not path.is_dir():
        return path
    file = path / PREDICTIONS_FILE
    if not file.is_file():
        raise InputError(f"{path}: expected {PREDICTIONS_FILE} of a run, found none; {how}")
    return file


def predictions_name(file: Path) -> str:
    """Display name of a predictions file: the name of the run folder, or of another file."""
    return file.resolve().parent.name if file.name == PREDICTIONS_FILE else file.stem


def write_predictions(
    path: Path | str, detections: Sequence[Detections], vocabulary: Vocabulary
) -> None:
    """Writes detections atomically, one image per line.

    Numbers have as many digits as their type needs, so the scores of the file are exactly those of
    `detections`.
    """
    category_ids = np.array(vocabulary.category_ids)
    first_ids = np.array([0, 0, vocabulary.first_verb_id])
    marker = {"name": vocabulary.name, "digest": vocabulary.digest()}

    def entry(index: int, item: Detections) -> dict[str, Any]:
        boxes, categories = shortest_floats(item.boxes), category_ids[item.labels].tolist()
        hois, scores = (item.hois + first_ids).tolist(), shortest_floats(item.scores)
        return {
            "file_name": item.image_id,
            **({} if index else {"vocabulary": marker}),
            "predictions": [
                {"bbox": box, "category_id": category}
                for box, category in zip(boxes, categories, strict=True)
            ],
            "hoi_prediction": [
                {"subject_id": human, "object_id": target, "category_id": verb, "score": score}
                for (human, target, verb), score in zip(hois, scores, strict=True)
            ],
        }

    write_entries(path, starmap(entry, enumerate(detections)))


def write_entries(path: Path | str, entries: Iterable[dict[str, Any]]) -> None:
    """Writes a list as JSON atomically, one entry per line."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "["
        for entry in entries:
            text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
            file.write(f"{separator}\n{text}")
            separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


def read_predictions(
    path: Path | str,
    vocabulary: Vocabulary,
    sizes: Mapping[str, tuple[int, int] | None] | None = None,
) -> list[Detections]:
    """Reads predictions of any HOI project that writes this form.

    Args:
        path: the JSON file.
        vocabulary: of the file's numbers.
        sizes: width and height of images by name, for the check of the box form; None unknown.

    Returns:
        one item for each image, in the order of the file; scores as float64.

    Raises:
        InputError: the file is missing, is not JSON, uses another vocabulary or numbering, has an
            image twice, or has an invalid entry.
    """
    path = Path(path)
    detections: list[Detections] = []
    names: set[str] = set()
    for index, value in enumerate(iterate_entries(path)):
        name = value.get("file_name") if isinstance(value, dict) else None
        if not isinstance(name, str):
            official = isinstance(value, dict) and "person_box" in value
            found = "V-COCO's official layout, which eoid-eval vcoco scores" if official else value
            raise bad_field(path, f"entry {index}", "an object with file_name", found)
        if name in names:
            raise bad_field(path, f"{name}: file_name", "each image once", "a second entry")
        names.add(name)
        if "vocabulary" in value:
            _check_vocabulary_marker(path, value["vocabulary"], vocabulary)
        entry = convert(value, _Entry, f"{path}: {name}")
        detections.append(_to_detections(entry, vocabulary, f"{path}: {name}"))
    if not detections:
        raise bad_field(path, "file", "a list with an entry for each image", "an empty list")
    form = BoxFormatCheck(XYXY)
    for item in detections:
        form.add(item.boxes, (sizes or {}).get(item.image_id), item.image_id)
    form.check(path, "predictions.bbox")
    for item in detections:
        inverted = (item.boxes[:, 2:] < item.boxes[:, :2]).any(axis=1)
        if inverted.any():
            row = int(np.argmax(inverted))
            where = f"{item.image_id}: predictions[{row}].bbox"
            box = shortest_floats(item.boxes[row])
            raise bad_field(path, where, BOX_EXPECTED, box)
    check_numbering(path, detections, vocabulary)
    return detections


def iterate_entries(path: Path) -> Iterator[Any]:
    """The entries of a file that holds a list, as JSON or as a pickle of plain data.

    Raises:
        InputError: the file is missing, damaged or holds something else; see `iterate_pickle`.
    """
    yield from iterate_pickle(path) if is_pickle(path) else iter_json(path)


def _check_vocabulary_marker(path: Path, marker: Any, vocabulary: Vocabulary) -> None:
    fields = marker if isinstance(marker, dict) else {}
    if fields.get("digest") != vocabulary.digest():
        expected = f"predictions of vocabulary {vocabulary.name}"
        raise bad_field(path, "vocabulary", expected, str(fields.get("name", marker)))


def _to_detections(entry: _Entry, vocabulary: Vocabulary, where: str) -> Detections:
    """The detections of an image; `where` names the file and the image in errors."""

    def check(valid: np.ndarray, values: np.ndarray, field: str, key: str, expected: str) -> None:
        if not valid.all():
            row = int(np.argmin(valid))
            raise bad_field(where, f"{field}[{row}].{key}", expected, int(values[row]))

    categories = np.array([box.category_id for box in entry.predictions], dtype=np.int64)
    ids = vocabulary.category_ids
    check(
        np.isin(categories, ids),
        categories,
        "predictions",
        "category_id",
        f"an object id of vocabulary {vocabulary.name}, one of {min(ids)} to {max(ids)} (not its"
        f" position, 0 to {vocabulary.num_objects - 1})",
    )
    hois = np.array(
        [(hoi.subject_id, hoi.object_id, hoi.category_id) for hoi in entry.hoi_prediction],
        dtype=np.int64,
    ).reshape(-1, 3)
    first = vocabulary.first_verb_id
    # A verb of V-COCO may have no object.
    for column, (key, low, high, expected) in enumerate(
        (
            ("subject_id", 0, len(categories), "the number of a box"),
            ("object_id", -1 if vocabulary.roles else 0, len(categories), "the number of a box"),
            (
                "category_id",
                first,
                first + vocabulary.num_verbs,
                f"a verb of vocabulary {vocabulary.name}, counted from {first}",
            ),
        )
    ):
        values = hois[:, column]
        valid = (values >= low) & (values < high)
        check(valid, values, "hoi_prediction", key, f"{expected}, {low} to {high - 1}")
    return Detections(
        image_id=entry.file_name,
        boxes=np.array([box.bbox for box in entry.predictions], np.float32).reshape(-1, 4),
        labels=np.array([vocabulary.label_by_category_id[c] for c in categories.tolist()], int),
        hois=hois - [0, 0, first],
        scores=np.array([hoi.score for hoi in entry.hoi_prediction], dtype=np.float64),
    )


def shortest_floats(values: np.ndarray) -> list[Any]:
    """Nested lists of Python floats with the fewest digits that restore `values` in their type:
    0.1, not 0.10000000149011612."""
    return np.asarray(values).astype(str).astype(np.float64).tolist()


def check_numbering(path: Path, detections: Sequence[Detections], vocabulary: Vocabulary) -> None:
    """Checks that subjects and objects are not swapped and verbs are counted from the right number.

    Verb numbers that are off by one are nearly all in range, but their pairs with the objects are
    rarely interactions of the vocabulary.

    Raises:
        InputError: most pairs have a person as object and none as subject, or nearly all pairs are
            interactions only with the verbs shifted by one.
    """
    verbs, objects = verb_object_pairs(detections)
    if len(verbs) < MIN_PAIRS:
        return
    swapped = sum(_count_swapped(item, vocabulary) for item in detections)
    if 2 * swapped > len(verbs):
        raise InputError(
            f"{path}: hoi_prediction: expected a person as subject_id and a thing as object_id,"
            f" found subject and object swapped in {swapped} of {len(verbs)} pairs"
        )
    share = vocabulary.valid[verbs, objects].mean()
    # Verbs counted from 0 where 1 was expected were read one too low, and the other way round.
    shifted = verbs + (1 if vocabulary.first_verb_id else -1)
    in_range = (shifted >= 0) & (shifted < vocabulary.num_verbs)
    valid = vocabulary.valid[shifted.clip(0, vocabulary.num_verbs - 1), objects] & in_range
    first = vocabulary.first_verb_id
    if valid.mean() >= MIN_VALID_SHARE and share <= MAX_RELATIVE_SHARE * valid.mean():
        raise InputError(
            f"{path}: hoi_prediction.category_id: expected verbs of vocabulary {vocabulary.name}"
            f" counted from {first}, found verbs counted from {1 - first}: so counted"
            f" {100 * valid.mean():.0f} % of the pairs are interactions, else {100 * share:.0f} %"
        )


def _count_swapped(item: Detections, vocabulary: Vocabulary) -> int:
    """Number of pairs with a person as object and something else as subject."""
    pairs = item.labels[item.hois[item.hois[:, 1] >= 0, :2]]
    return int(((pairs[:, 0] != vocabulary.person) & (pairs[:, 1] == vocabulary.person)).sum())


def verb_object_pairs(detections: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) verbs and (P,) object classes of all detections that have an object."""
    hois = np.concatenate([np.zeros((0, 3), np.int64), *(item.hois for item in detections)])
    labels = [item.labels[item.hois[:, 1]] for item in detections if len(item.hois)]
    paired = hois[:, 1] >= 0
    return hois[paired, 2], np.concatenate([np.zeros(0, np.int64), *labels])[paired]
