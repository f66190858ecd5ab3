"""V-COCO's official annotations: actions of people and the objects of their roles.

The actions file is a list with one entry per action: `action_name`; `role_name` ("agent" first);
and, for the same people in every entry, `image_id`, `ann_id` (id of COCO's annotation), `label`
(0 or 1) and `role_object_id` (all agents, then all objects of the first role, and so on; 0 for
none). As in V-COCO's own code, COCO's boxes x, y, width, height become x2 = x + max(0, width - 1),
y2 = y + max(0, height - 1), clipped to the image, and boxes without area are left out. People
without action labels are kept, because the protocol ignores detections that match them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.base import (
    EMPTY_BOX,
    SUBJECT_NOT_PERSON,
    EntryReader,
    ParseContext,
    RawAnnotation,
    build_annotation,
)
from pipeline.annotations.box_format import XYWH
from pipeline.annotations.coco import COCO_BOX_FORMAT, CocoInstances
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, sha256_of_file, sha256_of_json

UNKNOWN_ROLE_BOX = "role objects that are not a box of the image (removed)"
UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class VcocoImage:
    """Annotations of one image, with all of COCO's boxes that have an area.

    Attributes:
        id: COCO's image id.
        name: file name.
        boxes: (N, 4) float32, xyxy, pixels.
        categories: (N,) int64, COCO's category ids.
        is_person, is_crowd: (N,) bool.
        action_labels: (N, A) int8, 1 if the person does the action, 0 if not, -1 if unlabelled.
        role_boxes: (N, A, R) int64, index of the role's box, -1 for none.
        size: width and height in pixels.
    """

    id: int
    name: str
    boxes: np.ndarray
    categories: np.ndarray
    is_person: np.ndarray
    is_crowd: np.ndarray
    action_labels: np.ndarray
    role_boxes: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class VcocoGroundTruth:
    """Ground truth of one part.

    Attributes:
        actions: names and roles, in the order of the file.
        images: images of the part, in the order of the list of ids.
        other_image_ids: COCO's ids of the images outside the part, by file name.
    """

    actions: tuple[VcocoAction, ...]
    images: tuple[VcocoImage, ...]
    other_image_ids: dict[str, int]


def read_vcoco(files: VcocoFiles, context: ParseContext) -> VcocoGroundTruth:
    """Reads the files of one part.

    Raises:
        InputError: a file is missing, an entry is structurally wrong, the files do not belong
            together, or there is an issue and `context.strict` is set.
    """
    table = read_actions(files.actions)
    ids = read_image_ids(files.ids) if files.ids else sorted(table.image_ids)
    for image_id in ids:
        if image_id not in table.image_ids:
            expected = f"images of {files.actions}"
            raise bad_field(files.ids, "file", expected, f"image {image_id}, which is not in it")
    coco = CocoInstances(files.instances, set(ids))
    for image_id in ids:
        if image_id not in coco.images:
            expected = f"image {image_id} of {files.actions}"
            raise bad_field(files.instances, "images", expected, "no such image")
    images = []
    for image_id in ids:
        with context.catch_errors():
            images.append(_build_image(coco.images[image_id], coco, table, context))
    with context.catch_errors():
        context.check_format()
    names = {image.name for image in images}
    others = {
        image["file_name"]: image_id
        for image_id, image in coco.images.items()
        if image["file_name"] not in names
    }
    return VcocoGroundTruth(table.actions, tuple(images), others)


def vcoco_annotations(ground_truth: VcocoGroundTruth, context: ParseContext) -> list[Annotation]:
    """One annotation per image, in a vocabulary that has a verb for every action and role.

    A role without an object gives a label with object -1. Crowds are left out unless they are the
    object of a role.

    Raises:
        InputError: an action, a role or an object is not in the vocabulary.
    """
    verbs = _verbs_by_role(ground_truth.actions, context)
    annotations = []
    for image in ground_truth.images:
        role_boxes = np.unique(image.role_boxes[image.role_boxes >= 0])
        kept = np.flatnonzero(~image.is_crowd | np.isin(np.arange(len(image.boxes)), role_boxes))
        new_index = {int(row): index for index, row in enumerate(kept)}
        reader = EntryReader(context.file, image.name)
        labels = [
            context.read_label(reader, int(image.categories[row]), "category_id") for row in kept
        ]
        hois = []
        for row, action in np.argwhere(image.action_labels == 1).tolist():
            targets = image.role_boxes[
                row, action, : len(ground_truth.actions[action].roles)
            ].tolist() or [-1]
            for verb, target in zip(verbs[action], targets, strict=True):
                hois.append((new_index[row], new_index.get(target, -1), verb))
        raw = RawAnnotation(
            image.name,
            image.boxes[kept].tolist(),
            labels,
            hois,
            image.size,
            box_field=lambda index: f"box {index}",
            hoi_field=lambda index: f"action {index}",
        )
        annotations.append(build_annotation(raw, context))
    return annotations


def _verbs_by_role(actions: tuple[VcocoAction, ...], context: ParseContext) -> list[list[int]]:
    """For every action the verbs of its roles, or its single verb if it has no roles."""
    vocabulary = context.vocabulary
    table = {entry["action"]: entry for entry in vocabulary.roles}
    verbs = []
    for action in actions:
        entry = table.get(action.name)
        if entry is None or set(entry["roles"]) != set(action.roles):
            known = ", ".join(f"{name} {entry['roles']}" for name, entry in table.items())
            expected = (
                f"actions and roles of vocabulary {vocabulary.name} ({known or 'without actions'})"
            )
            found = f"{action.name} {list(action.roles)}"
            raise bad_field(context.file, "action_name", expected, found)
        by_role = dict(zip(entry["roles"] or [AGENT], entry["verbs"], strict=True))
        names = [by_role[role] for role in action.roles or (AGENT,)]
        verbs.append([vocabulary.verbs.index(name) for name in names])
    return verbs


def _build_image(
    image: dict[str, Any], coco: CocoInstances, table: ActionTable, context: ParseContext
) -> VcocoImage:
    reader = EntryReader(coco.reader.file, image["file_name"])
    width, height = reader.read_size([image.get("width"), image.get("height")], "width and height")
    edge = np.array([width, height, width, height]) - 1.0
    boxes, rows, ids, categories = [], [], [], []
    for field, row in coco.rows[image["id"]]:
        if row.get("ignore") == 1:
            continue
        x, y, w, h = reader.read_box(row.get("bbox"), f"{field}.bbox", COCO_BOX_FORMAT)
        context.add_boxes([[x, y, w, h]], (width, height), XYWH)
        box = np.clip([x, y, x + max(0.0, w - 1), y + max(0.0, h - 1)], 0, edge)
        if _segment_area(row, w * h, field, reader) <= 0 or box[2] <= box[0] or box[3] <= box[1]:
            context.add_issue(EMPTY_BOX, reader.image, f"{field}.bbox", "an area", row.get("bbox"))
            continue
        boxes.append(box)
        rows.append(row)
        ids.append(reader.read_int(row.get("id"), f"{field}.id"))
        categories.append(reader.read_int(row.get("category_id"), f"{field}.category_id"))
    count, max_roles = len(rows), max(len(action.roles) for action in table.actions)
    result = VcocoImage(
        id=image["id"],
        name=reader.image,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        categories=np.array(categories, dtype=np.int64),
        is_person=np.isin(categories, coco.people),
        is_crowd=np.array([bool(row.get("iscrowd")) for row in rows], dtype=bool),
        action_labels=np.full((count, len(table.actions)), UNLABELLED, dtype=np.int8),
        role_boxes=np.full((count, len(table.actions), max_roles), -1, dtype=np.int64),
        size=(width, height),
    )
    row_by_id = {annotation_id: row for row, annotation_id in enumerate(ids)}
    _fill_actions(result, row_by_id, table, EntryReader(context.file, reader.image), context)
    return result


def _segment_area(row: dict[str, Any], area: float, field: str, reader: EntryReader) -> float:
    """Area of the segment; that of the box if the file has no areas."""
    value = row.get("area", area)
    if not isinstance(value, (int, float)):
        raise reader.error(f"{field}.area", "a number", value)
    return float(value)


def _fill_actions(
    image: VcocoImage,
    row_by_id: dict[int, int],
    table: ActionTable,
    reader: EntryReader,
    context: ParseContext,
) -> None:
    """Fills `action_labels` and `role_boxes` from the actions file."""
    for person_id in table.people_by_image[image.id]:
        row = row_by_id.get(person_id)
        if row is None or not image.is_person[row]:
            kind, expected = (
                (EMPTY_BOX, "a box of COCO with an area")
                if row is None
                else (SUBJECT_NOT_PERSON, "a person as agent")
            )
            context.add_issue(kind, reader.image, "ann_id", expected, person_id)
            continue
        image.action_labels[row] = 0
        for action, objects in table.actions_of(person_id):
            image.action_labels[row, action] = 1
            for role, target in enumerate(objects):
                if target in row_by_id:
                    image.role_boxes[row, action, role] = row_by_id[target]
                elif target:
                    name = table.actions[action].name
                    where = f"{name}: role_object_id"
                    context.add_issue(
                        UNKNOWN_ROLE_BOX, reader.image, where, "a box of COCO", target
                    )


AGENT = "agent"
PERSON_COLUMNS = ("image_id", "ann_id", "label")


@dataclass(frozen=True)
class VcocoAction:
    """An action and its roles except the agent, in the order of the file."""

    name: str
    roles: tuple[str, ...]


class ActionTable:
    """Labels of an actions file, by person.

    Attributes:
        actions: all actions, in the order of the file.
        image_ids: ids of the images with annotated people.
        people_by_image: ids of COCO's annotations of the annotated people, by image id.
    """

    def __init__(self, actions: list[VcocoAction]) -> None:
        self.actions = tuple(actions)
        self.people_by_image: dict[int, list[int]] = defaultdict(list)
        self._actions_by_person: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)

    @property
    def image_ids(self) -> set[int]:
        return set(self.people_by_image)

    def add(self, action: int, person: int, objects: tuple[int, ...]) -> None:
        """Adds an action of a person, with the ids of its roles' objects (0 for none)."""
        self._actions_by_person[person].append((action, objects))

    def actions_of(self, person: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Indices of a person's actions, each with the objects of its roles."""
        return iter(self._actions_by_person.get(person, ()))


def read_actions(path: Path) -> ActionTable:
    """Reads an actions file.

    Raises:
        InputError: the file is missing or not an actions file, or an entry is structurally wrong.
    """
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise bad_field(path, "file", "V-COCO's list of actions", value)
    actions = [_read_action(path, index, entry) for index, entry in enumerate(value)]
    table = ActionTable(actions)
    first_image_by_person: dict[int, int] = {}
    for index, (action, entry) in enumerate(zip(actions, value, strict=True)):
        images, people, labels = (
            _read_int_column(path, action.name, entry, key) for key in PERSON_COLUMNS
        )
        if len(people) != len(images) or len(labels) != len(images):
            expected = f"{len(images)} entries each, as many as in image_id"
            found = f"{len(people)} and {len(labels)}"
            raise bad_field(path, f"{action.name}: ann_id and label", expected, found)
        if not np.isin(labels, (0, 1)).all():
            wrong = labels[~np.isin(labels, (0, 1))][0]
            raise bad_field(path, f"{action.name}: label", "0 or 1", int(wrong))
        image_by_person = dict(zip(people.tolist(), images.tolist(), strict=True))
        if len(image_by_person) != len(people):
            raise bad_field(path, f"{action.name}: ann_id", "every person once", "one twice")
        if index == 0:
            first_image_by_person = image_by_person
            for person, image in image_by_person.items():
                table.people_by_image[image].append(person)
        elif image_by_person != first_image_by_person:
            expected = f"the people of {actions[0].name}"
            raise bad_field(path, f"{action.name}: ann_id", expected, "other people")
        objects = _read_role_objects(path, action, entry, people)
        for row in np.flatnonzero(labels == 1):
            table.add(index, int(people[row]), tuple(objects[row].tolist()))
    if not first_image_by_person:
        raise bad_field(path, f"{actions[0].name}: ann_id", "annotated people", "none")
    return table


def _read_action(path: Path, index: int, entry: Any) -> VcocoAction:
    row = entry if isinstance(entry, dict) else {}
    name, roles = row.get("action_name"), row.get("role_name")
    if not isinstance(name, str) or not name:
        raise bad_field(path, f"entry {index}: action_name", "the name of an action", name)
    is_valid = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
    if not is_valid or not roles or roles[0] != AGENT or len(set(roles)) != len(roles):
        raise bad_field(path, f"{name}: role_name", f'a list of names, "{AGENT}" first', roles)
    return VcocoAction(name, tuple(roles[1:]))


def _read_int_column(path: Path, name: str, entry: dict[str, Any], key: str) -> np.ndarray:
    """A column of integers; releases differ in having a list, or a list of lists of one number."""
    rows = entry.get(key)
    try:
        column = np.array(rows if isinstance(rows, list) else None)
    except ValueError:
        column = np.array(None)
    if rows == []:
        return np.zeros(0, dtype=np.int64)
    if column.dtype.kind not in "iu":
        raise bad_field(path, f"{name}: {key}", "a list of whole numbers", rows)
    return column.reshape(-1).astype(np.int64)


def _read_role_objects(
    path: Path, action: VcocoAction, entry: dict[str, Any], people: np.ndarray
) -> np.ndarray:
    """(N, R) ids of COCO's annotations of the role objects, 0 for none."""
    flat = _read_int_column(path, action.name, entry, "role_object_id")
    count = 1 + len(action.roles)
    if len(flat) != count * len(people):
        expected = f"{count * len(people)} entries, {count} for each of {len(people)} people"
        raise bad_field(path, f"{action.name}: role_object_id", expected, f"{len(flat)}")
    return flat.reshape(count, -1).T[:, 1:]


INSTANCES_NAME = "instances_vcoco_all_2014.json"
# Folders that are searched for the other files, relative to the folder of the actions file.
SEARCH_FOLDERS = ("", "..", "splits", "../splits", "annotations", "../annotations")


@dataclass(frozen=True)
class VcocoFiles:
    """Paths of the files of one part.

    Attributes:
        actions: V-COCO's actions file.
        instances: COCO's boxes.
        ids: list of the part's image ids, one per line; None for all images of `actions`.
    """

    actions: Path
    instances: Path
    ids: Path | None = None

    def digest(self) -> str:
        """SHA-256 over all files."""
        paths = (self.actions, self.instances, self.ids)
        return sha256_of_json([path and sha256_of_file(path) for path in paths])


def find_vcoco_files(
    actions: Path | str, instances: Path | None = None, ids: Path | None = None
) -> VcocoFiles:
    """The files that belong to an actions file.

    Args:
        actions: path of the actions file.
        instances, ids: paths of the other files; None searches for them near the actions file.

    Raises:
        InputError: COCO's boxes are neither named nor found.
    """
    actions = Path(actions)
    coco = "instances_val2014.json" if "test" in actions.stem else "instances_train2014.json"
    instances = instances or _find_near(actions, (INSTANCES_NAME, coco))
    if instances is None:
        raise InputError(
            f"{actions}: instances: expected COCO's boxes in {INSTANCES_NAME} or {coco} near"
            " this file, found neither; name the file"
        )
    return VcocoFiles(actions, instances, ids or _find_near(actions, (f"{actions.stem}.ids",)))


def _find_near(actions: Path, names: tuple[str, ...]) -> Path | None:
    paths = (actions.parent / folder / name for name in names for folder in SEARCH_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def is_actions_file(path: Path) -> bool:
    """Whether a file is an actions file of V-COCO.

    Raises:
        InputError: a file with the ending `.json` is missing or not JSON.
    """
    if path.suffix.lower() != ".json":
        return False
    value = read_json(path)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "action_name" in first


def read_image_ids(path: Path) -> list[int]:
    """Reads a list of image ids, one per line, in the order of the file.

    Raises:
        InputError: the file is missing or empty, or has a line that is not an integer or repeated.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    ids: dict[int, None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not line.strip().isdecimal():
            raise bad_field(path, f"line {number}", "the id of an image", line)
        if int(line) in ids:
            raise bad_field(path, f"line {number}", "every image once", f"{line} a second time")
        ids[int(line)] = None
    if not ids:
        raise bad_field(path, "file", "image ids, one per line", "none")
    return list(ids)
