"""Detections in V-COCO's official layout, as JSON, NPZ or a pickle of plain data.

One entry for each detected person: `image_id` (COCO's number); `person_box`, xyxy in pixels; for
every action `<action>_agent`, a score; for every role other than the agent `<action>_<role>`, the
object's box and a score. A box of zeros or NaN stands for no object; a score of NaN means that the
action or role is not detected. JSON and pickles hold a list of such entries. The NPZ form has an
array under each of these names: (N,) for ids and agents, (N, 4) for person boxes, (N, 5) for roles.

Two-stage detectors of the SCG/UPT family omit the keys of undetected actions and roles: a missing
agent has a score of 0, a missing role is `MISSING_ROLE`. The same holds for missing arrays. Other
keys are ignored, but those that resemble a key of the layout are reported, as they may be
misspelled.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.predictions import INTEGER_KINDS, REAL_KINDS, contains_bools, iterate_entries
from pipeline.annotations.box_format import MAX_COORDINATE, XYXY, BoxFormatCheck
from pipeline.annotations.vcoco import AGENT, VcocoAction
from pipeline.types import Detections
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, identify_file
from pipeline.vocabulary import Vocabulary

# Number of entries that are converted to arrays at a time.
ENTRIES_PER_CHUNK = 2000
REQUIRED_FIELDS = {
    "image_id": "the whole number of an image",
    "person_box": "four finite numbers x1, y1, x2, y2 in pixels",
}
# The default value in the SCG/UPT family's code; a box of zeros would stand for no object.
MISSING_ROLE = (0.0, 0.0, 0.1, 0.1, 0.0)
# Boxes of roles with low scores may be arbitrary, so some of them are inverted. Of boxes given as
# x, y, width, height, more than two thirds are.
MAX_INVALID_ROLE_BOXES = 0.4
# Misspelled keys (hit_agnet, hit_object) are more similar to the correct ones, keys that projects
# add (hit_obj_class) are less.
MIN_KEY_SIMILARITY = 0.75
NPZ_EXPECTED = "an NPZ file of plain arrays"
OTHER_ARRAY_FILES = ((rb"\x93NUMPY", "a single array; save all with np.savez"),)
AGENT_EXPECTED = "a score (NaN for none)"
ROLE_EXPECTED = "five numbers x1, y1, x2, y2, score"


@dataclass(frozen=True, eq=False)
class VcocoDetections:
    """N detected people.

    Attributes:
        image_ids: (N,) int64, COCO's numbers.
        person_boxes: (N, 4) float32, xyxy, pixels.
        columns: by the keys of the layout: (N,) float32 scores of agents, (N, 5) float32 boxes
            (xyxy, pixels) and scores of roles.
        unknown_keys: keys of the file that resemble a key of the layout.
    """

    image_ids: np.ndarray
    person_boxes: np.ndarray
    columns: dict[str, np.ndarray]
    unknown_keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def keep(self, rows: np.ndarray) -> VcocoDetections:
        """The rows selected by a mask or by indices."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return VcocoDetections(
            self.image_ids[rows], self.person_boxes[rows], columns, self.unknown_keys
        )

    def agent_scores(self, action: VcocoAction) -> np.ndarray:
        """(N,) float32 scores of the agents of an action."""
        return self.columns[f"{action.name}_{AGENT}"]

    def role_boxes(self, action: VcocoAction, role: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) float32 boxes (xyxy, pixels) and (N,) scores of a role."""
        column = self.columns[f"{action.name}_{role}"]
        return column[:, :4], column[:, 4]


def column_shapes(actions: Sequence[VcocoAction]) -> dict[str, tuple[int, ...]]:
    """Shape of one value of each agent and role, by the keys of the layout."""
    shapes: dict[str, tuple[int, ...]] = {}
    for action in actions:
        shapes[f"{action.name}_{AGENT}"] = ()
        shapes.update({f"{action.name}_{role}": (5,) for role in action.roles})
    return shapes


def _all_column_shapes(actions: Sequence[VcocoAction]) -> dict[str, tuple[int, ...]]:
    return {"image_id": (), "person_box": (4,), **column_shapes(actions)}


def read_detections(path: Path, actions: Sequence[VcocoAction]) -> VcocoDetections:
    """Reads a file in the official layout.

    Raises:
        InputError: the file is missing or damaged, an entry has no image or person box or an
            invalid value, boxes have another form, or no entry has any score of the layout.
    """
    read = _read_npz if path.suffix.lower() == ".npz" else _read_entries
    columns, keys = read(path, actions)
    known = column_shapes(actions)
    if len(columns["image_id"]) and keys.isdisjoint(known):
        raise bad_field(path, "entries", f"scores such as {next(iter(known))}", "none in any entry")
    form = BoxFormatCheck(XYXY)
    form.add(columns["person_box"])
    form.check(path, "person_box")
    form = BoxFormatCheck(XYXY, max_wrong_share=MAX_INVALID_ROLE_BOXES)
    for name, shape in known.items():
        if shape:
            form.add(_real_object_boxes(columns[name]))
    form.check(path, "boxes of roles")
    unknown_keys = tuple(
        sorted(
            key
            for key in keys - _all_column_shapes(actions).keys()
            if _looks_like_layout_key(key, known)
        )
    )
    return VcocoDetections(
        columns.pop("image_id"), columns.pop("person_box"), columns, unknown_keys
    )


def _real_object_boxes(column: np.ndarray) -> np.ndarray:
    """(M, 4) boxes of a role's (N, 5) column without those that stand for no object.

    These are NaN, `MISSING_ROLE`, and boxes of -1, 0 and 1 such as zeros.
    """
    boxes = column[~np.isnan(column).any(axis=1), :4]
    empty = (np.abs(boxes) <= 1).all(axis=1) & (boxes == np.round(boxes)).all(axis=1)
    empty |= (boxes == np.array(MISSING_ROLE[:4], np.float32)).all(axis=1)
    return boxes[~empty]


def _looks_like_layout_key(key: Any, known: Collection[str]) -> bool:
    """Whether a key outside the layout resembles one of the layout's.

    Projects write keys of their own, such as the class of a role's object (obj_class) or an action
    without a role (walk).
    """
    suffixes = {f"_{name.rpartition('_')[2]}" for name in known}
    return isinstance(key, str) and (
        key.endswith(tuple(suffixes)) or bool(get_close_matches(key, known, 1, MIN_KEY_SIMILARITY))
    )


def _read_entries(
    path: Path, actions: Sequence[VcocoAction]
) -> tuple[dict[str, np.ndarray], set[Any]]:
    """Columns by name, and the keys of all entries, of a file that holds a list."""
    chunks: list[dict[str, np.ndarray]] = []
    entries: list[Any] = []
    keys: set[Any] = set()
    for entry in iterate_entries(path):
        entries.append(entry)
        keys.update(entry if isinstance(entry, dict) else ())
        if len(entries) == ENTRIES_PER_CHUNK:
            chunks.append(
                _entries_to_columns(path, entries, ENTRIES_PER_CHUNK * len(chunks), actions)
            )
            entries = []
    chunks.append(_entries_to_columns(path, entries, ENTRIES_PER_CHUNK * len(chunks), actions))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}, keys


def write_detections(path: Path, detections: VcocoDetections) -> None:
    """Writes the official layout atomically, as NPZ if the name ends in .npz, else as JSON."""
    if path.suffix.lower() == ".npz":
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = {
                "image_id": detections.image_ids,
                "person_box": detections.person_boxes,
                **detections.columns,
            }
            np.savez_compressed(file, **arrays)
        return
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in range(len(detections)):
            entry = {
                "image_id": int(detections.image_ids[row]),
                "person_box": detections.person_boxes[row].tolist(),
                **{name: column[row].tolist() for name, column in detections.columns.items()},
            }
            file.write(",\n" if row else "[\n")
            file.write(json.dumps(entry, separators=(",", ":")))
        file.write("\n]\n" if len(detections) else "[]\n")


def _entries_to_columns(
    path: Path, entries: list[Any], first: int, actions: Sequence[VcocoAction]
) -> dict[str, np.ndarray]:
    """Columns by name; `first` is the number of the first entry in the file."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise bad_field(path, f"entry {first + index}", "an object with person_box", entry)
    columns: dict[str, np.ndarray] = {}
    for name, shape in _all_column_shapes(actions).items():
        present = [row for row, entry in enumerate(entries) if name in entry]
        if name in REQUIRED_FIELDS and len(present) < len(entries):
            row = next(row for row, entry in enumerate(entries) if name not in entry)
            found = "nothing (the key is missing)"
            raise bad_field(path, f"entry {first + row}: {name}", REQUIRED_FIELDS[name], found)
        column = _missing_column(len(entries), name, shape)
        values = [entries[row][name] for row in present]
        parsed = _parse_column(values, name, shape) if present else column[:0]
        if parsed is None:
            row = _first_invalid_row(values, name, shape)
            # A text keeps its quotes, because without them it may look like a valid number.
            found = repr(values[row]) if isinstance(values[row], str) else values[row]
            where = f"entry {first + present[row]}: {name}"
            raise bad_field(path, where, _expected_value(name, shape), found)
        column[present] = parsed
        columns[name] = column
    return columns


def _parse_column(values: Any, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The values as a column; None if one of them is invalid."""
    try:
        column = np.asarray(values)
    except ValueError:
        return None
    kinds = INTEGER_KINDS if name == "image_id" else REAL_KINDS
    if column.dtype.kind not in kinds or column.shape[1:] != shape or column.ndim == 0:
        return None
    if not isinstance(values, np.ndarray) and contains_bools(values):
        return None
    with np.errstate(over="ignore"):
        cast: np.ndarray = column.astype(_column_dtype(name))
    boxes = cast[..., :4] if shape else cast[:0]
    # Numbers, and coordinates whose areas, the type cannot represent.
    overflow = cast != column if name == "image_id" else np.isinf(cast) & np.isfinite(column)
    if overflow.any() or (np.abs(boxes) > MAX_COORDINATE).any():
        return None
    return None if name == "person_box" and np.isnan(cast).any() else cast


def _first_invalid_row(
    values: Sequence[Any] | np.ndarray, name: str, shape: tuple[int, ...]
) -> int:
    """The row of the first invalid value."""
    return next(
        row
        for row in range(len(values))
        if _parse_column(values[row : row + 1], name, shape) is None
    )


def _missing_column(count: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The column of a key that is missing in all entries."""
    column: np.ndarray = np.empty((count, *shape), _column_dtype(name))
    column[...] = MISSING_ROLE if shape == (5,) else 0
    return column


def _column_dtype(name: str) -> type:
    return np.int64 if name == "image_id" else np.float32


def _expected_value(name: str, shape: tuple[int, ...]) -> str:
    return REQUIRED_FIELDS.get(name, ROLE_EXPECTED if shape else AGENT_EXPECTED)


def _read_npz(path: Path, actions: Sequence[VcocoAction]) -> tuple[dict[str, np.ndarray], set[Any]]:
    """Columns by name, with missing ones filled in, and the names of all arrays of an NPZ file."""
    arrays, keys = _load_npz_arrays(path, _all_column_shapes(actions))
    columns: dict[str, np.ndarray] = {}
    for name, shape in _all_column_shapes(actions).items():
        if name not in arrays and name not in REQUIRED_FIELDS:
            columns[name] = _missing_column(len(columns["image_id"]), name, shape)
            continue
        expected = _expected_value(name, shape)
        if name not in arrays:
            raise bad_field(path, name, expected, "no such array")
        values = arrays[name]
        column = _parse_column(values, name, shape)
        count = len(columns["image_id"]) if columns else len(np.atleast_1d(values))
        if column is None or len(column) != count:
            kinds = INTEGER_KINDS if name == "image_id" else REAL_KINDS
            if values.dtype.kind in kinds and values.shape == (count, *shape):
                row = _first_invalid_row(values, name, shape)
                raise bad_field(path, f"entry {row}: {name}", expected, values[row].tolist())
            found = f"{values.dtype} {values.shape}"
            raise bad_field(path, name, f"{count} times {expected}", found)
        columns[name] = column
    return columns, keys


def _load_npz_arrays(path: Path, names: Collection[str]) -> tuple[dict[str, np.ndarray], set[Any]]:
    """The arrays of an NPZ file that have one of the given names, and the names of all arrays."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not path.stat().st_size:
        raise InputError(f"{path}: expected {NPZ_EXPECTED}, found an empty file")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            keys = set(file.files)
            # np.load returns the bytes of a member of the archive that is not an array.
            return {name: np.asarray(file[name]) for name in names if name in keys}, keys
    # A damaged archive can raise anything in its reader.
    except Exception as error:
        found = identify_file(path, OTHER_ARRAY_FILES) or f"{error}" or type(error).__name__
        raise InputError(
            f"{path}: expected {NPZ_EXPECTED}, found {found.splitlines()[0]}"
        ) from None


def to_vcoco_detections(
    detections: Sequence[Detections],
    image_ids: Sequence[int],
    vocabulary: Vocabulary,
    actions: Sequence[VcocoAction],
) -> VcocoDetections:
    """Converts HOI detections to the official layout.

    An entry has one object for each role, so a person with several candidates for a role gets
    several entries. The first has the best candidate of every role and the scores of the agent; the
    others have no score of the agent (NaN), so that it counts once. A person's score as an agent is
    the best of the action's verbs. A verb without object (object -1) becomes a role with a box of
    zeros. Actions and roles that are not detected have score NaN.

    Args:
        detections: in a vocabulary with roles.
        image_ids: COCO's numbers of their images.
        vocabulary: of the detections.
        actions: of the annotations.
    """
    counts = np.array([len(item.boxes) for item in detections], dtype=np.int64)
    first_box = np.cumsum(counts) - counts
    per_image = [
        _person_rows(item, first, vocabulary)
        for item, first in zip(detections, first_box, strict=True)
    ]
    table = np.concatenate([np.zeros((0, 3), np.int64), *(rows for rows, _ in per_image)])
    scores = np.concatenate([np.zeros(0, np.float32), *(values for _, values in per_image)])
    # Index -1, no object, reads the appended box of zeros.
    boxes = np.concatenate([*(item.boxes for item in detections), np.zeros((1, 4))])
    boxes = boxes.astype(np.float32)

    order = np.lexsort((-scores, table[:, 2], table[:, 0]))
    table, scores = table[order], scores[order]
    people, objects, verbs = table.T
    rank = _rank_in_group(people * vocabulary.num_verbs + verbs)
    num_ranks = int(rank.max(initial=0)) + 1
    keys, entry = np.unique(people * num_ranks + rank, return_inverse=True)
    person_rows = keys // num_ranks
    images = np.repeat(np.asarray(image_ids, dtype=np.int64), counts)

    columns = {
        name: np.full((len(keys), *shape), np.nan, dtype=np.float32)
        for name, shape in column_shapes(actions).items()
    }
    for verb, action, role in _verb_roles(vocabulary, actions):
        rows = np.flatnonzero(verbs == verb)
        if role != AGENT:
            role_values = np.column_stack([boxes[objects[rows]], scores[rows]])
            columns[f"{action}_{role}"][entry[rows]] = role_values
        best = rows[rank[rows] == 0]
        agent_scores = columns[f"{action}_{AGENT}"]
        # fmax ignores NaN, the initial value.
        agent_scores[entry[best]] = np.fmax(agent_scores[entry[best]], scores[best])
    return VcocoDetections(images[person_rows], boxes[person_rows], columns)


def _person_rows(
    item: Detections, first_box: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """The detections of one image whose subject is a person.

    Returns:
        (K, 3) int64 person, object (-1 for none) and verb, boxes numbered across images; (K,)
        float32 scores.
    """
    kept = item.labels[item.hois[:, 0]] == vocabulary.person
    table = item.hois[kept].astype(np.int64)
    table[:, 0] += first_box
    table[:, 1] = np.where(table[:, 1] >= 0, table[:, 1] + first_box, -1)
    return table, item.scores[kept].astype(np.float32)


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """(K,) position of each row within its run of equal groups."""
    if not len(groups):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    sizes = np.diff(np.append(starts, len(groups)))
    return np.arange(len(groups)) - np.repeat(starts, sizes)


def _verb_roles(
    vocabulary: Vocabulary, actions: Sequence[VcocoAction]
) -> list[tuple[int, str, str]]:
    """(verb, action, role) of every verb whose action and role are annotated; the role of an action
    without roles is the agent."""
    known = {action.name: {*action.roles, AGENT} for action in actions}
    return [
        (vocabulary.verbs.index(verb), entry["action"], role)
        for entry in vocabulary.roles
        for role, verb in zip(entry["roles"] or [AGENT], entry["verbs"], strict=True)
        if role in known.get(entry["action"], ())
    ]
