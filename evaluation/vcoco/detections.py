"""Detections in V-COCO's official layout: JSON, NPZ, or a pickle, which is read as plain data.

One entry for each detected person: `image_id` (COCO's number), `person_box` xyxy in pixels, for
every action `<action>_agent`, a score, and for every role beside the agent `<action>_<role>`, the
object's box and a score. A box of zeros or NaN says that there is no object; a NaN score leaves
the entry out. JSON and pickles hold a list of such entries; the NPZ form has an array by the same
names, (N,) for ids and agents, (N, 4) for person boxes, (N, 5) for roles.

Two-stage detectors of the SCG/UPT family leave out the keys of what was not found. Entries of a
list mean by a missing agent a score of 0, and by a missing role `MISSING_ROLE`; so does a missing
array. Other keys are free, but those that look like the layout's are told: they may be misspelled.
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

# So many entries are turned into arrays at a time.
ENTRIES_PER_CHUNK = 2000
REQUIRED_FIELDS = {
    "image_id": "the whole number of an image",
    "person_box": "four finite numbers x1, y1, x2, y2 in pixels",
}
# As that family's cache reads it; a box of zeros would say that there is no object.
MISSING_ROLE = (0.0, 0.0, 0.1, 0.1, 0.0)
# Boxes of roles with low scores may be arbitrary; given as sides, over two thirds are no corners.
MAX_INVALID_ROLE_BOXES = 0.4
# How much of a misspelled key is as in the right one (hit_agnet, hit_object), and more than of the
# keys that projects add (hit_obj_class).
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
        person_boxes: (N, 4) float32 xyxy pixels.
        columns: by the layout's names: (N,) float32 scores of agents, (N, 5) float32 boxes and
            scores of roles.
        unknown_keys: keys of a file that look like the layout's but are not.
    """

    image_ids: np.ndarray
    person_boxes: np.ndarray
    columns: dict[str, np.ndarray]
    unknown_keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def keep(self, rows: np.ndarray) -> VcocoDetections:
        """The rows picked by a mask or by indices."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return VcocoDetections(
            self.image_ids[rows], self.person_boxes[rows], columns, self.unknown_keys
        )

    def agent_scores(self, action: VcocoAction) -> np.ndarray:
        """(N,) float32 scores."""
        return self.columns[f"{action.name}_{AGENT}"]

    def role_boxes(self, action: VcocoAction, role: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) float32 boxes and (N,) scores of a role."""
        column = self.columns[f"{action.name}_{role}"]
        return column[:, :4], column[:, 4]


def column_shapes(actions: Sequence[VcocoAction]) -> dict[str, tuple[int, ...]]:
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
            field, boxes are of another form, or no entry has any of the layout's scores.
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
    """(M, 4) boxes of a role's (N, 5) column without those that say that there is no object: NaN,
    `MISSING_ROLE`, and whole numbers within a pixel, such as zeros."""
    boxes = column[~np.isnan(column).any(axis=1), :4]
    fillers = (np.abs(boxes) <= 1).all(axis=1) & (boxes == np.round(boxes)).all(axis=1)
    fillers |= (boxes == np.array(MISSING_ROLE[:4], np.float32)).all(axis=1)
    return boxes[~fillers]


def _looks_like_layout_key(key: Any, known: Collection[str]) -> bool:
    """Whether a key that is none of the layout's looks like one. Projects write keys of their own,
    such as the class of a role's object (obj_class) or an action without a role (walk)."""
    endings = {f"_{name.rpartition('_')[2]}" for name in known}
    return isinstance(key, str) and (
        key.endswith(tuple(endings)) or bool(get_close_matches(key, known, 1, MIN_KEY_SIMILARITY))
    )


def _read_entries(
    path: Path, actions: Sequence[VcocoAction]
) -> tuple[dict[str, np.ndarray], set[Any]]:
    """Arrays by name, and the keys of all entries, of a file that holds a list."""
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
    """Writes the official layout, whole or not at all: JSON, or NPZ where the name ends so."""
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


def _all_column_shapes(actions: Sequence[VcocoAction]) -> dict[str, tuple[int, ...]]:
    return {"image_id": (), "person_box": (4,), **column_shapes(actions)}


def _entries_to_columns(
    path: Path, entries: list[Any], first: int, actions: Sequence[VcocoAction]
) -> dict[str, np.ndarray]:
    """Arrays by name of some entries; `first` is the number of the first one, for errors."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise bad_field(path, f"entry {first + index}", "an object with person_box", entry)
    columns: dict[str, np.ndarray] = {}
    for name, shape in _all_column_shapes(actions).items():
        there = [row for row, entry in enumerate(entries) if name in entry]
        if name in REQUIRED_FIELDS and len(there) < len(entries):
            row = next(row for row, entry in enumerate(entries) if name not in entry)
            found = "nothing (the key is missing)"
            raise bad_field(path, f"entry {first + row}: {name}", REQUIRED_FIELDS[name], found)
        column = _missing_column(len(entries), name, shape)
        values = [entries[row][name] for row in there]
        given = _parse_column(values, name, shape) if there else column[:0]
        if given is None:
            place = _first_invalid_row(values, name, shape)
            # A text shows its quotes: it may look like the number that was expected.
            value = values[place]
            found = repr(value) if isinstance(value, str) else value
            where = f"entry {first + there[place]}: {name}"
            raise bad_field(path, where, _expected_value(name, shape), found)
        column[there] = given
        columns[name] = column
    return columns


def _parse_column(values: Any, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The column of some values, None where one is wrong."""
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
    # Numbers that the type does not hold, and coordinates whose areas it does not hold.
    lost = cast != column if name == "image_id" else np.isinf(cast) & np.isfinite(column)
    if lost.any() or (np.abs(boxes) > MAX_COORDINATE).any():
        return None
    return None if name == "person_box" and np.isnan(cast).any() else cast


def _first_invalid_row(
    values: Sequence[Any] | np.ndarray, name: str, shape: tuple[int, ...]
) -> int:
    """The row of the first wrong one of some values."""
    return next(
        row
        for row in range(len(values))
        if _parse_column(values[row : row + 1], name, shape) is None
    )


def _missing_column(count: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The column of what no entry has."""
    column: np.ndarray = np.empty((count, *shape), _column_dtype(name))
    column[...] = MISSING_ROLE if shape == (5,) else 0
    return column


def _column_dtype(name: str) -> type:
    return np.int64 if name == "image_id" else np.float32


def _expected_value(name: str, shape: tuple[int, ...]) -> str:
    return REQUIRED_FIELDS.get(name, ROLE_EXPECTED if shape else AGENT_EXPECTED)


def _read_npz(path: Path, actions: Sequence[VcocoAction]) -> tuple[dict[str, np.ndarray], set[Any]]:
    """Arrays by name, filled up like a list's, and the names of all arrays of an NPZ file."""
    held, keys = _load_npz_arrays(path, _all_column_shapes(actions))
    columns: dict[str, np.ndarray] = {}
    for name, shape in _all_column_shapes(actions).items():
        if name not in held and name not in REQUIRED_FIELDS:
            columns[name] = _missing_column(len(columns["image_id"]), name, shape)
            continue
        expected = _expected_value(name, shape)
        if name not in held:
            raise bad_field(path, name, expected, "no such array")
        values = held[name]
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
    """Those of some arrays that an NPZ file has, and the names of all."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not path.stat().st_size:
        raise InputError(f"{path}: expected {NPZ_EXPECTED}, found an empty file")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            keys = set(file.files)
            # An entry of the archive that is no array comes as bytes.
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
    """Rewrites detections so that none is lost and none counts twice.

    The layout has room for one object a role, so a person with several candidates for a role gets
    several entries, the best candidate of every role in the first; only the first speaks of the
    agent. A person's score as an agent is the best of the action's verbs. A verb without object
    (box -1) becomes a role with a box of zeros; what is not detected has score NaN.

    Args:
        detections: in a vocabulary with roles.
        image_ids: COCO's numbers of their images.
        vocabulary: of the detections.
        actions: those of the annotations.
    """
    counts = np.array([len(item.boxes) for item in detections], dtype=np.int64)
    first_box = np.cumsum(counts) - counts
    rows = [
        _person_rows(item, first, vocabulary)
        for item, first in zip(detections, first_box, strict=True)
    ]
    table = np.concatenate([np.zeros((0, 3), np.int64), *(row for row, _ in rows)])
    scores = np.concatenate([np.zeros(0, np.float32), *(score for _, score in rows)])
    # The last row answers for -1: no object.
    boxes = np.concatenate([*(item.boxes for item in detections), np.zeros((1, 4))])
    boxes = boxes.astype(np.float32)

    order = np.lexsort((-scores, table[:, 2], table[:, 0]))
    table, scores = table[order], scores[order]
    people, objects, verbs = table.T
    rank = _rank_in_group(people * vocabulary.num_verbs + verbs)
    depth = int(rank.max(initial=0)) + 1
    keys, entry = np.unique(people * depth + rank, return_inverse=True)
    person_rows = keys // depth
    images = np.repeat(np.asarray(image_ids, dtype=np.int64), counts)

    columns = {
        name: np.full((len(keys), *shape), np.nan, dtype=np.float32)
        for name, shape in column_shapes(actions).items()
    }
    for verb, action, role in _verb_roles(vocabulary, actions):
        mine = np.flatnonzero(verbs == verb)
        if role != AGENT:
            found = np.column_stack([boxes[objects[mine]], scores[mine]])
            columns[f"{action}_{role}"][entry[mine]] = found
        best = mine[rank[mine] == 0]
        agents = columns[f"{action}_{AGENT}"]
        # fmax, for a NaN says nothing.
        agents[entry[best]] = np.fmax(agents[entry[best]], scores[best])
    return VcocoDetections(images[person_rows], boxes[person_rows], columns)


def _person_rows(
    item: Detections, first_box: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """(K, 3) person, object (-1 for none) and verb with boxes counted over all images, and (K,)
    scores; subjects that are no person are left out."""
    kept = item.labels[item.hois[:, 0]] == vocabulary.person
    table = item.hois[kept].astype(np.int64)
    table[:, 0] += first_box
    table[:, 1] = np.where(table[:, 1] >= 0, table[:, 1] + first_box, -1)
    return table, item.scores[kept].astype(np.float32)


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """(K,) place of every row among those of its group, for groups that stand together."""
    if not len(groups):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    lengths = np.diff(np.append(starts, len(groups)))
    return np.arange(len(groups)) - np.repeat(starts, lengths)


def _verb_roles(
    vocabulary: Vocabulary, actions: Sequence[VcocoAction]
) -> list[tuple[int, str, str]]:
    """(verb, action, role) for every verb that the annotations know; the role is the agent's for
    an action without roles."""
    known = {action.name: {*action.roles, AGENT} for action in actions}
    return [
        (vocabulary.verbs.index(verb), entry["action"], role)
        for entry in vocabulary.roles
        for role, verb in zip(entry["roles"] or [AGENT], entry["verbs"], strict=True)
        if role in known.get(entry["action"], ())
    ]
