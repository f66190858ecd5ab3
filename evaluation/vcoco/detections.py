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

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import ValidationError, convert

from evaluation.predictions import iterate_entries, write_entries
from pipeline.annotations.box_format import MAX_COORDINATE, XYXY, BoxFormatCheck
from pipeline.annotations.vcoco import AGENT, VcocoAction
from pipeline.types import Detections
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, identify_file
from pipeline.utils.schema import Number
from pipeline.vocabulary import Vocabulary

# Number of entries that are converted to arrays at a time.
ENTRIES_PER_CHUNK = 2000
# The default value in the SCG/UPT family's code; a box of zeros would stand for no object.
MISSING_ROLE = (0.0, 0.0, 0.1, 0.1, 0.0)
# Boxes of roles with low scores may be arbitrary, so some of them are inverted. Of boxes given as
# x, y, width, height, more than two thirds are.
MAX_INVALID_ROLE_BOXES = 0.4
# Misspelled keys (hit_agnet, hit_object) are more similar to the correct ones, keys that projects
# add (hit_obj_class) are less.
MIN_KEY_SIMILARITY = 0.75
OTHER_ARRAY_FILES = ((rb"\x93NUMPY", "a single array; save all with np.savez"),)


@dataclass(frozen=True)
class _Field:
    """The values of a key of the layout.

    Attributes:
        kind: type of a list of values, for msgspec.
        shape: of one value.
        expected: valid values in words, for errors.
        missing: value of a missing key; None where the key is required.
        dtype: of the column.
    """

    kind: Any
    shape: tuple[int, ...]
    expected: str
    missing: Any = None
    dtype: type = np.float32


FourFloats = tuple[float, float, float, float]
FiveFloats = tuple[float, float, float, float, float]
IMAGE_ID = _Field(list[Number], (), "the whole number of an image", dtype=np.int64)
PERSON_BOX = _Field(list[FourFloats], (4,), "four finite numbers x1, y1, x2, y2 in pixels")
AGENT_SCORE = _Field(list[float], (), "a score (NaN for none)", missing=0.0)
ROLE_BOX = _Field(list[FiveFloats], (5,), "five numbers x1, y1, x2, y2, score", MISSING_ROLE)


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


def score_fields(actions: Sequence[VcocoAction]) -> dict[str, _Field]:
    """The keys of all agents and roles, and their values."""
    fields: dict[str, _Field] = {}
    for action in actions:
        fields[f"{action.name}_{AGENT}"] = AGENT_SCORE
        fields.update({f"{action.name}_{role}": ROLE_BOX for role in action.roles})
    return fields


def read_detections(path: Path, actions: Sequence[VcocoAction]) -> VcocoDetections:
    """Reads a file in the official layout.

    Raises:
        InputError: the file is missing or damaged, an entry has no image or person box or an
            invalid value, boxes have another form, or no entry has any score of the layout.
    """
    known = score_fields(actions)
    fields = {"image_id": IMAGE_ID, "person_box": PERSON_BOX, **known}
    read = _read_npz if path.suffix.lower() == ".npz" else _read_entries
    columns, keys = read(path, fields)
    if len(columns["image_id"]) and keys.isdisjoint(known):
        raise bad_field(path, "entries", f"scores such as {next(iter(known))}", "none in any entry")
    form = BoxFormatCheck(XYXY)
    form.add(columns["person_box"])
    form.check(path, "person_box")
    form = BoxFormatCheck(XYXY, max_wrong_share=MAX_INVALID_ROLE_BOXES)
    for name, field in known.items():
        if field is ROLE_BOX:
            form.add(_real_object_boxes(columns[name]))
    form.check(path, "boxes of roles")
    unknown_keys = sorted(key for key in keys - fields.keys() if _is_like_known_key(key, known))
    return VcocoDetections(
        columns.pop("image_id"), columns.pop("person_box"), columns, tuple(unknown_keys)
    )


def _real_object_boxes(column: np.ndarray) -> np.ndarray:
    """(M, 4) boxes of a role's (N, 5) column without those that stand for no object.

    These are NaN, `MISSING_ROLE`, and boxes of -1, 0 and 1 such as zeros.
    """
    boxes = column[~np.isnan(column).any(axis=1), :4]
    empty = (np.abs(boxes) <= 1).all(axis=1) & (boxes == np.round(boxes)).all(axis=1)
    empty |= (boxes == np.array(MISSING_ROLE[:4], np.float32)).all(axis=1)
    return boxes[~empty]


def _is_like_known_key(key: Any, known: Collection[str]) -> bool:
    """Whether a key outside the layout resembles one of the layout's.

    Projects write keys of their own, such as the class of a role's object (obj_class) or an action
    without a role (walk).
    """
    suffixes = tuple(f"_{name.rpartition('_')[2]}" for name in known)
    return isinstance(key, str) and (
        key.endswith(suffixes) or bool(get_close_matches(key, known, 1, MIN_KEY_SIMILARITY))
    )


def _read_entries(path: Path, fields: dict[str, _Field]) -> tuple[dict[str, np.ndarray], set[Any]]:
    """Columns by name, and the keys of all entries, of a file that holds a list."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in fields}
    keys: set[Any] = set()
    entries, first = iterate_entries(path), 0
    while True:
        chunk = list(islice(entries, ENTRIES_PER_CHUNK))
        for row, entry in enumerate(chunk, first):
            if not isinstance(entry, dict):
                raise bad_field(path, f"entry {row}", "an object with person_box", entry)
            keys.update(entry)
        for name, field in fields.items():
            values = [entry.get(name, field.missing) for entry in chunk]
            columns[name].append(_parse_column(path, name, field, values, first))
        if len(chunk) < ENTRIES_PER_CHUNK:
            return {name: np.concatenate(parts) for name, parts in columns.items()}, keys
        first += len(chunk)


def _read_npz(path: Path, fields: dict[str, _Field]) -> tuple[dict[str, np.ndarray], set[Any]]:
    """Columns by name, with missing ones filled in, and the names of all arrays of an NPZ file."""
    arrays, keys = _load_npz_arrays(path, fields)
    columns: dict[str, np.ndarray] = {}
    for name, field in fields.items():
        if name not in arrays and field.missing is None:
            raise bad_field(path, name, field.expected, "no such array")
        shape = (len(np.atleast_1d(arrays["image_id"])), *field.shape)
        values = arrays.get(name)
        if values is None:
            values = np.full(shape, field.missing, np.float32)
        kinds = "iu" if field is IMAGE_ID else "iuf"
        if values.dtype.kind not in kinds or values.shape != shape:
            found = f"{values.dtype} {values.shape}"
            raise bad_field(path, name, f"{shape[0]} times {field.expected}", found)
        columns[name] = _parse_column(path, name, field, values)
    return columns, keys


def _load_npz_arrays(path: Path, names: Collection[str]) -> tuple[dict[str, np.ndarray], set[Any]]:
    """The arrays of an NPZ file that have one of the given names, and the names of all arrays."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            keys = set(file.files)
            # np.load returns the bytes of a member of the archive that is not an array.
            return {name: np.asarray(file[name]) for name in names if name in keys}, keys
    # A damaged archive can raise anything in its reader.
    except Exception as error:
        found = identify_file(path, OTHER_ARRAY_FILES) or f"{error}" or type(error).__name__
        raise InputError(
            f"{path}: expected an NPZ file of plain arrays, found {found.splitlines()[0]}"
        ) from None


def _parse_column(path: Path, name: str, field: _Field, values: Any, first: int = 0) -> np.ndarray:
    """The values as a column; `first` is the number of the first one's entry in the file."""
    column = _to_column(values, field)
    if column is None:
        row = next(i for i in range(len(values)) if _to_column(values[i : i + 1], field) is None)
        value = values[row].tolist() if isinstance(values, np.ndarray) else values[row]
        # A text keeps its quotes, because without them it may look like a valid number.
        found = "nothing" if value is None else repr(value)
        raise bad_field(path, f"entry {first + row}: {name}", field.expected, found)
    return column


def _to_column(values: Any, field: _Field) -> np.ndarray | None:
    """The values as a column; None if one of them is invalid."""
    try:
        column = values if isinstance(values, np.ndarray) else np.array(convert(values, field.kind))
    except ValidationError:
        return None
    column = column.reshape(-1, *field.shape)
    with np.errstate(over="ignore"):
        cast: np.ndarray = column.astype(field.dtype)
    boxes = cast[..., :4] if field.shape else cast[:0]
    # Numbers, and coordinates whose areas, the type cannot represent.
    overflow = cast != column if field is IMAGE_ID else np.isinf(cast) & np.isfinite(column)
    if overflow.any() or (np.abs(boxes) > MAX_COORDINATE).any():
        return None
    return None if field is PERSON_BOX and np.isnan(cast).any() else cast


def write_detections(path: Path, detections: VcocoDetections) -> None:
    """Writes the official layout atomically, as NPZ if the name ends in .npz, else as JSON."""
    columns: dict[str, Any] = {
        "image_id": detections.image_ids,
        "person_box": detections.person_boxes,
        **detections.columns,
    }
    if path.suffix.lower() == ".npz":
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **columns)
        return
    write_entries(
        path,
        (
            {name: column[row].tolist() for name, column in columns.items()}
            for row in range(len(detections))
        ),
    )


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
    verb_roles = _verb_roles(vocabulary, actions)
    images: list[int] = []
    boxes: list[np.ndarray] = []
    entries: list[dict[str, Any]] = []
    for item, image_id in zip(detections, image_ids, strict=True):
        by_person = _entries_by_person(item, vocabulary, verb_roles)
        for person, own in sorted(by_person.items()):
            images += [image_id] * len(own)
            boxes += [item.boxes[person]] * len(own)
            entries += own
    columns = {
        name: np.full((len(entries), *field.shape), np.nan, dtype=np.float32)
        for name, field in score_fields(actions).items()
    }
    for row, entry in enumerate(entries):
        for name, value in entry.items():
            columns[name][row] = value
    return VcocoDetections(
        np.array(images, dtype=np.int64), np.array(boxes, np.float32).reshape(-1, 4), columns
    )


def _entries_by_person(
    item: Detections, vocabulary: Vocabulary, verb_roles: dict[int, tuple[str, str]]
) -> dict[int, list[dict[str, Any]]]:
    """Entries of each person of an image, without image and person box; see
    `to_vcoco_detections`."""
    by_person: dict[int, list[dict[str, Any]]] = defaultdict(list)
    ranks: Counter[tuple[int, int]] = Counter()
    order = np.argsort(-item.scores, kind="stable")
    for (person, thing, verb), score in zip(
        item.hois[order].tolist(), item.scores[order].tolist(), strict=True
    ):
        if item.labels[person] != vocabulary.person:
            continue
        rank, entries = ranks[person, verb], by_person[person]
        ranks[person, verb] += 1
        if rank == len(entries):
            entries.append({})
        if verb not in verb_roles:
            continue
        action, role = verb_roles[verb]
        if role != AGENT:
            box = item.boxes[thing].tolist() if thing >= 0 else [0.0] * 4
            entries[rank][f"{action}_{role}"] = [*box, score]
        # The first verb of the action has the best score.
        entries[0].setdefault(f"{action}_{AGENT}", score)
    return by_person


def _verb_roles(
    vocabulary: Vocabulary, actions: Sequence[VcocoAction]
) -> dict[int, tuple[str, str]]:
    """Action and role of every verb whose action and role are annotated; the role of an action
    without roles is the agent."""
    known = {action.name: {*action.roles, AGENT} for action in actions}
    return {
        vocabulary.verbs.index(verb): (entry["action"], role)
        for entry in vocabulary.roles
        for role, verb in zip(entry["roles"] or [AGENT], entry["verbs"], strict=True)
        if role in known.get(entry["action"], ())
    }
