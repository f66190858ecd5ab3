"""Predictions on disk in the HOIA/PPDM JSON form, which other HOI projects read and write too.

A list with one entry for each image: `file_name`, `predictions` (boxes: `bbox` xyxy in pixels,
`category_id` as in annotation files) and `hoi_prediction` (`subject_id` and `object_id` pointing
into the boxes, `category_id` the verb counted from 1, `score`). As in annotation files of the same
form, vocabularies with roles (V-COCO's) count verbs from 0 and have `object_id` -1 where a verb has
no object. Our own files say in their first entry which `vocabulary` their numbers are of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.numbering import check_numbering
from evaluation.pickles import iterate_entries
from evaluation.prediction_fields import REAL, WHOLE, Fields, box_hint, object_hint, verb_hint
from pipeline.box_form import CORNERS, FARTHEST, BoxForm
from pipeline.errors import InputError, bad_field
from pipeline.files import replacing
from pipeline.types import Detections
from pipeline.vocabulary import Vocabulary

# What a run calls its predictions.
PREDICTIONS = "predictions.json"
BOX = "four finite numbers x1, y1, x2, y2 in pixels with x1 <= x2 and y1 <= y2"
CHECKPOINTS = (".pt", ".pth")


def predictions_path(path: Path) -> Path:
    """A predictions file, or that of a run's folder.

    Raises:
        InputError: a checkpoint, or a folder without predictions; says how to get some.
    """
    how = f"to predict and score with it: eoid-train evaluate {path} --data DATASET"
    if path.suffix in CHECKPOINTS:
        raise InputError(f"{path}: expected predictions, found a checkpoint; {how}")
    if not path.is_dir():
        return path
    file = path / PREDICTIONS
    if not file.is_file():
        raise InputError(f"{path}: expected {PREDICTIONS} of a run, found none; {how}")
    return file


def predictions_name(file: Path) -> str:
    """What people call the predictions of a file: a run's by its folder, others by the file."""
    return file.resolve().parent.name if file.name == PREDICTIONS else file.stem


def write_predictions(
    path: Path | str, detections: Sequence[Detections], vocabulary: Vocabulary
) -> None:
    """Writes detections, one image a line, whole or not at all.

    Numbers get as many digits as tell them apart, so the file scores exactly like `detections`.
    """
    object_ids = np.array(vocabulary.object_ids)
    counted_from = np.array([0, 0, vocabulary.first_verb])
    marker = {"name": vocabulary.name, "digest": vocabulary.digest()}
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for index, item in enumerate(detections):
            first = {} if index else {"vocabulary": marker}
            entry = {
                "file_name": item.image_id,
                **first,
                "predictions": [
                    {"bbox": box, "category_id": category}
                    for box, category in zip(
                        _shortest(item.boxes), object_ids[item.labels].tolist(), strict=True
                    )
                ],
                "hoi_prediction": [
                    {"subject_id": human, "object_id": target, "category_id": verb, "score": s}
                    for (human, target, verb), s in zip(
                        (item.hois + counted_from).tolist(),
                        _shortest(item.scores),
                        strict=True,
                    )
                ],
            }
            file.write(",\n" if index else "[\n")
            file.write(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))
        file.write("\n]\n" if detections else "[]\n")


def read_predictions(
    path: Path | str,
    vocabulary: Vocabulary,
    sizes: Mapping[str, tuple[int, int] | None] | None = None,
) -> list[Detections]:
    """Reads predictions of any HOI project that writes this form.

    Args:
        path: the JSON file.
        vocabulary: what its numbers mean.
        sizes: width and height of images, by name, as far as known.

    Returns:
        one entry for each image of the file, in its order; scores as float64.

    Raises:
        InputError: the file is missing, is not JSON, is of another vocabulary or numbering, names
            an image twice, or an entry is wrong.
    """
    path = Path(path)
    detections, names = [], set()
    for index, entry in enumerate(iterate_entries(path)):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            official = isinstance(entry, dict) and "person_box" in entry
            found = "V-COCO's official layout, which eoid-eval vcoco scores" if official else entry
            raise bad_field(path, f"entry {index}", "an object with file_name", found)
        if name in names:
            raise bad_field(path, f"{name}: file_name", "each image once", "a second entry")
        if "vocabulary" in entry:
            _check_vocabulary(path, entry["vocabulary"], vocabulary)
        names.add(name)
        detections.append(_detections(Fields(path, name, entry), vocabulary))
    if not detections:
        raise bad_field(path, "file", "a list with an entry for each image", "an empty list")
    form = BoxForm(CORNERS)
    for one in detections:
        form.add(one.boxes, (sizes or {}).get(one.image_id), one.image_id)
    form.check(path, "predictions.bbox")
    for one in detections:
        inverted = (one.boxes[:, 2:] < one.boxes[:, :2]).any(axis=1)
        if inverted.any():
            row = int(np.argmax(inverted))
            where = f"{one.image_id}: predictions[{row}].bbox"
            box = _shortest(one.boxes[row])
            raise InputError(f"{bad_field(path, where, BOX, box)}{box_hint(box)}")
    check_numbering(path, detections, vocabulary)
    return detections


def _check_vocabulary(path: Path, marker: Any, vocabulary: Vocabulary) -> None:
    told = marker if isinstance(marker, dict) else {}
    if told.get("digest") != vocabulary.digest():
        expected = f"predictions of vocabulary {vocabulary.name}"
        raise bad_field(path, "vocabulary", expected, str(told.get("name", marker)))


def _detections(fields: Fields, vocabulary: Vocabulary) -> Detections:
    boxes = fields.column(
        *("predictions", "bbox", REAL, (4,)),
        BOX,
        # NaN is not below the limit either.
        lambda box: (np.abs(box) <= FARTHEST).all(axis=1),
    )
    categories = fields.column(
        *("predictions", "category_id", WHOLE, ()),
        f"an object id of vocabulary {vocabulary.name}, one of"
        f" {min(vocabulary.object_ids)} to {max(vocabulary.object_ids)}",
        lambda category: np.isin(category, vocabulary.object_ids),
        lambda found: object_hint(found, vocabulary),
    )

    def box_numbers(key: str, least: int) -> np.ndarray:
        return fields.column(
            *("hoi_prediction", key, WHOLE, ()),
            f"the number of a box, {least} to {len(boxes) - 1}",
            lambda box: (box >= least) & (box < len(boxes)),
        )

    humans = box_numbers("subject_id", 0)
    # A verb of V-COCO may have no object.
    objects = box_numbers("object_id", -1 if vocabulary.roles else 0)
    first = vocabulary.first_verb
    last = first + vocabulary.num_verbs - 1
    verbs = fields.column(
        *("hoi_prediction", "category_id", WHOLE, ()),
        f"a verb number of vocabulary {vocabulary.name}, {first} to {last}",
        lambda verb: (verb >= first) & (verb <= last),
        lambda found: verb_hint(found, vocabulary),
    )
    scores = fields.column(
        *("hoi_prediction", "score", REAL, ()), "a finite number", lambda score: np.isfinite(score)
    )
    return Detections(
        image_id=fields.image,
        boxes=boxes.astype(np.float32),
        labels=np.array([vocabulary.label_of_id[c] for c in categories.tolist()], dtype=np.int64),
        hois=np.column_stack([humans, objects, verbs - first]).astype(np.int64),
        scores=scores.astype(np.float64),
    )


def _shortest(values: np.ndarray) -> list[Any]:
    """Nested lists of Python floats with the fewest digits that give `values` back in their own
    precision (0.1, not 0.10000000149011612)."""
    return np.asarray(values).astype(str).astype(np.float64).tolist()
