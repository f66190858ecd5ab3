"""Detections in V-COCO's official layout: JSON, NPZ, or a pickle, which is read as plain data.

One entry for each detected person: `image_id` (COCO's number), `person_box` xyxy in pixels, for
every action `<action>_agent`, a score, and for every role beside the agent `<action>_<role>`, the
object's box and a score. A box of zeros or NaN says that there is no object; a NaN score leaves
the entry out. JSON and pickles hold a list of such entries; the NPZ form has an array by the same
names, (N,) for ids and agents, (N, 4) for person boxes, (N, 5) for roles.

Two-stage detectors of the SCG/UPT family leave out the keys of what was not found. Entries of a
list mean by a missing agent a score of 0, and by a missing role `MISSING_ROLE`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.pickles import iterate_entries
from pipeline.annotations.vcoco_actions import AGENT, VcocoAction
from pipeline.box_form import CORNERS, BoxForm
from pipeline.errors import InputError, bad_field
from pipeline.files import replacing

# So many entries are turned into arrays at a time.
CHUNK = 2000
EXPECTED = {
    "image_id": "the whole number of an image",
    "person_box": "four finite numbers x1, y1, x2, y2",
}
# As that family's cache reads it; a box of zeros would say that there is no object.
MISSING_ROLE = (0.0, 0.0, 0.1, 0.1, 0.0)
AGENT_EXPECTED = "a score (NaN for none)"
ROLE_EXPECTED = "five numbers x1, y1, x2, y2, score"


@dataclass(frozen=True, eq=False)
class VcocoDetections:
    """N detected people.

    Attributes:
        image_ids: (N,) int64, COCO's numbers.
        person_boxes: (N, 4) float32 xyxy pixels.
        columns: by the layout's names: (N,) float32 scores of agents, (N, 5) float32 boxes and
            scores of roles.
    """

    image_ids: np.ndarray
    person_boxes: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.image_ids)

    def keep(self, rows: np.ndarray) -> VcocoDetections:
        """The rows picked by a mask or by indices."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return VcocoDetections(self.image_ids[rows], self.person_boxes[rows], columns)

    def agent(self, action: VcocoAction) -> np.ndarray:
        """(N,) float32 scores."""
        return self.columns[f"{action.name}_{AGENT}"]

    def role(self, action: VcocoAction, role: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) float32 boxes and (N,) scores of a role."""
        column = self.columns[f"{action.name}_{role}"]
        return column[:, :4], column[:, 4]


def shapes(actions: Sequence[VcocoAction]) -> dict[str, tuple[int, ...]]:
    """Names of the layout's columns beside id and box, and the shape of one value."""
    named: dict[str, tuple[int, ...]] = {}
    for action in actions:
        named[f"{action.name}_{AGENT}"] = ()
        named.update({f"{action.name}_{role}": (5,) for role in action.roles})
    return named


def read_detections(path: Path, actions: Sequence[VcocoAction]) -> VcocoDetections:
    """Reads a file in the official layout.

    Raises:
        InputError: the file is missing or damaged, an entry lacks its image or box or mistakes a
            field, or no entry has any of the layout's scores.
    """
    if path.suffix.lower() == ".npz":
        return _from_npz(path, actions)
    chunks: list[dict[str, np.ndarray]] = []
    entries: list[Any] = []
    scored, known = False, shapes(actions).keys()
    for entry in iterate_entries(path):
        entries.append(entry)
        scored = scored or (isinstance(entry, dict) and not known.isdisjoint(entry))
        if len(entries) == CHUNK:
            chunks.append(_columns(path, entries, CHUNK * len(chunks), actions))
            entries = []
    chunks.append(_columns(path, entries, CHUNK * len(chunks), actions))
    if not scored and (len(chunks) > 1 or entries):
        raise bad_field(path, "entries", f"scores such as {next(iter(known))}", "none in any entry")
    joined = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    form = BoxForm(CORNERS)
    form.add(joined["person_box"])
    form.check(path, "person_box")
    return VcocoDetections(joined.pop("image_id"), joined.pop("person_box"), joined)


def write_detections(path: Path, detections: VcocoDetections) -> None:
    """Writes the official layout, whole or not at all: JSON, or NPZ where the name ends so."""
    if path.suffix.lower() == ".npz":
        with replacing(path) as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = {
                "image_id": detections.image_ids,
                "person_box": detections.person_boxes,
                **detections.columns,
            }
            np.savez_compressed(file, **arrays)
        return
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in range(len(detections)):
            entry = {
                "image_id": int(detections.image_ids[row]),
                "person_box": detections.person_boxes[row].tolist(),
                **{name: column[row].tolist() for name, column in detections.columns.items()},
            }
            file.write(",\n" if row else "[\n")
            file.write(json.dumps(entry, separators=(",", ":")))
        file.write("\n]\n" if len(detections) else "[]\n")


def _all_shapes(actions: Sequence[VcocoAction]) -> dict[str, tuple[int, ...]]:
    return {"image_id": (), "person_box": (4,), **shapes(actions)}


def _columns(
    path: Path, entries: list[Any], first: int, actions: Sequence[VcocoAction]
) -> dict[str, np.ndarray]:
    """Arrays by name of some entries; `first` is the number of the first one, for errors."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise bad_field(path, f"entry {first + index}", "an object with person_box", entry)
    columns: dict[str, np.ndarray] = {}
    for name, shape in _all_shapes(actions).items():
        there = [row for row, entry in enumerate(entries) if name in entry]
        if name in EXPECTED and len(there) < len(entries):
            row = next(row for row, entry in enumerate(entries) if name not in entry)
            found = "nothing (the key is missing)"
            raise bad_field(path, f"entry {first + row}: {name}", EXPECTED[name], found)
        column: np.ndarray = np.empty((len(entries), *shape), _type(name))
        column[...] = MISSING_ROLE if shape == (5,) else 0
        values = [entries[row][name] for row in there]
        given = _array(values, name, shape) if there else column[:0]
        if given is None:
            place = next(
                i for i, value in enumerate(values) if _array([value], name, shape) is None
            )
            # A text shows its quotes: it may look like the number that was expected.
            value = values[place]
            found = repr(value) if isinstance(value, str) else value
            where = f"entry {first + there[place]}: {name}"
            raise bad_field(path, where, _expected(name, shape), found)
        column[there] = given
        columns[name] = column
    return columns


def _array(values: Any, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The column of some values, None where one is wrong."""
    try:
        column = np.asarray(values)
    except ValueError:
        return None
    kinds = "iu" if name == "image_id" else "iuf"
    if column.dtype.kind not in kinds or column.shape[1:] != shape or column.ndim == 0:
        return None
    if name == "person_box" and not np.isfinite(column).all():
        return None
    return column.astype(_type(name))


def _type(name: str) -> type:
    return np.int64 if name == "image_id" else np.float32


def _expected(name: str, shape: tuple[int, ...]) -> str:
    return EXPECTED.get(name, ROLE_EXPECTED if shape else AGENT_EXPECTED)


def _from_npz(path: Path, actions: Sequence[VcocoAction]) -> VcocoDetections:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not path.stat().st_size:
        raise InputError(f"{path}: expected an NPZ file of plain arrays, found an empty file")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in _all_shapes(actions) if name in file}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected an NPZ file of plain arrays, found {error}") from None
    columns: dict[str, np.ndarray] = {}
    for name, shape in _all_shapes(actions).items():
        column = _array(held.get(name), name, shape)
        count = len(columns["image_id"]) if columns else len(held.get(name, ()))
        if column is None or len(column) != count:
            found = f"{held[name].dtype} {held[name].shape}" if name in held else "no such array"
            each = f"{count} times {_expected(name, shape)}"
            raise bad_field(path, name, each, found)
        columns[name] = column
    return VcocoDetections(columns.pop("image_id"), columns.pop("person_box"), columns)
