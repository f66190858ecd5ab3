"""V-COCO's official annotations: actions of people and the objects of their roles.

The actions file is a list with one entry per action: `action_name`; `role_name` ("agent" first);
and, for the same people in every entry, `image_id`, `ann_id` (id of COCO's annotation), `label`
(0 or 1) and `role_object_id` (all agents, then all objects of the first role, and so on; 0 for
none). As in V-COCO's own code, COCO's boxes x, y, width, height become x2 = x + max(0, width - 1),
y2 = y + max(0, height - 1), clipped to the image, and boxes without area are left out. People
without action labels are kept, because the protocol ignores detections that match them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from pipeline.annotations.base import (
    EMPTY_BOX,
    SUBJECT_NOT_PERSON,
    ParseContext,
    RawAnnotation,
    build_annotation,
)
from pipeline.annotations.box_format import XYWH
from pipeline.annotations.coco import CocoFile, CocoImage, read_coco
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, read_text, sha256_of_file, sha256_of_json
from pipeline.utils.schema import Number, Text, convert

AGENT = "agent"
UNKNOWN_ROLE_BOX = "role objects without a box in the image (removed)"
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
    annotated = set(table.images.tolist())
    ids = read_image_ids(files.ids) if files.ids else sorted(annotated)
    for image_id in ids:
        if image_id not in annotated:
            expected = f"images of {files.actions}"
            raise bad_field(files.ids, "file", expected, f"image {image_id}, which is not in it")
    coco_context = replace(context, file=files.instances)
    coco = read_coco(read_json(files.instances), coco_context, ids)
    images = []
    for image_id in ids:
        with context.catch_errors():
            images.append(_build_image(coco.images[image_id], coco, table, coco_context, context))
    with context.catch_errors():
        context.check_format()
    names = {image.name for image in images}
    others = {
        image.file_name: image_id
        for image_id, image in coco.images.items()
        if image.file_name not in names
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
        labels = [
            context.read_label(image.name, int(image.categories[row]), "category_id")
            for row in kept
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
    image: CocoImage,
    coco: CocoFile,
    table: ActionTable,
    coco_context: ParseContext,
    context: ParseContext,
) -> VcocoImage:
    name, edge = image.file_name, np.array([image.width, image.height] * 2) - 1.0
    boxes, rows = [], []
    for index, row in coco.boxes[image.id]:
        if row.ignore:
            continue
        context.add_boxes([row.bbox], (image.width, image.height), XYWH)
        x, y, w, h = row.bbox
        box = np.clip([x, y, x + max(0.0, w - 1), y + max(0.0, h - 1)], 0, edge)
        area = w * h if row.area is None else row.area
        if area <= 0 or box[2] <= box[0] or box[3] <= box[1]:
            where = f"annotations[{index}].bbox"
            coco_context.add_issue(EMPTY_BOX, name, where, "an area", list(row.bbox))
            continue
        boxes.append(box)
        rows.append(row)
    categories = np.array([row.category_id for row in rows], dtype=np.int64)
    shape = (len(rows), len(table.actions))
    result = VcocoImage(
        id=image.id,
        name=name,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        categories=categories,
        is_person=np.isin(categories, coco.people),
        is_crowd=np.array([bool(row.iscrowd) for row in rows], dtype=bool),
        action_labels=np.full(shape, UNLABELLED, dtype=np.int8),
        role_boxes=np.full((*shape, table.role_objects.shape[2]), -1, dtype=np.int64),
        size=(image.width, image.height),
    )
    _fill_actions(result, {row.id: index for index, row in enumerate(rows)}, table, context)
    return result


def _fill_actions(
    image: VcocoImage, row_by_id: dict[int | None, int], table: ActionTable, context: ParseContext
) -> None:
    """Fills `action_labels` and `role_boxes` from the actions file."""
    for person in np.flatnonzero(table.images == image.id):
        person_id = int(table.people[person])
        row = row_by_id.get(person_id)
        if row is None or not image.is_person[row]:
            kind, expected = (
                (EMPTY_BOX, "a box of COCO with an area")
                if row is None
                else (SUBJECT_NOT_PERSON, "a person as agent")
            )
            context.add_issue(kind, image.name, "ann_id", expected, person_id)
            continue
        image.action_labels[row] = table.labels[:, person]
        for action, role in np.argwhere(table.role_objects[:, person] > 0).tolist():
            target = int(table.role_objects[action, person, role])
            if target in row_by_id:
                image.role_boxes[row, action, role] = row_by_id[target]
            else:
                where = f"{table.actions[action].name}: role_object_id"
                context.add_issue(UNKNOWN_ROLE_BOX, image.name, where, "a box of COCO", target)


@dataclass(frozen=True)
class VcocoAction:
    """An action and its roles except the agent, in the order of the file."""

    name: str
    roles: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ActionTable:
    """Labels of an actions file, of P annotated people.

    Attributes:
        actions: all actions, in the order of the file.
        images, people: (P,) int64, ids of COCO's images and annotations.
        labels: (A, P) int8, 1 if the person does the action.
        role_objects: (A, P, R) int64, ids of COCO's annotations of the roles' objects; 0 for none.
    """

    actions: tuple[VcocoAction, ...]
    images: np.ndarray
    people: np.ndarray
    labels: np.ndarray
    role_objects: np.ndarray


# Releases differ in having a list, or a list of lists of one number.
Column = Annotated[
    list[Number | Annotated[list[Number], Meta(min_length=1, max_length=1)]],
    Meta(description="a list of whole numbers"),
]


class _Entry(Struct):
    action_name: Text
    role_name: list[str]
    image_id: Column
    ann_id: Column
    label: Column
    role_object_id: Column


def read_actions(path: Path) -> ActionTable:
    """Reads an actions file.

    Raises:
        InputError: the file is missing or not an actions file, or an entry is structurally wrong.
    """
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise bad_field(path, "file", "V-COCO's list of actions", value)
    actions: list[VcocoAction] = []
    labels, objects = [], []
    first: np.ndarray | None = None
    for index, fields in enumerate(value):
        name = fields.get("action_name") if isinstance(fields, dict) else None
        where = f"{path}: {name or f'entry {index}'}"
        entry = convert(fields, _Entry, where)
        roles = entry.role_name
        if roles[:1] != [AGENT] or len(set(roles)) != len(roles):
            raise bad_field(where, "role_name", f'a list of names, "{AGENT}" first', roles)
        action = VcocoAction(entry.action_name, tuple(roles[1:]))
        images, people, does = (_flat(one) for one in (entry.image_id, entry.ann_id, entry.label))
        count = len(images)
        for key, column, length in (
            ("ann_id", people, count),
            ("label", does, count),
            ("role_object_id", _flat(entry.role_object_id), count * len(roles)),
        ):
            if len(column) != length:
                raise bad_field(where, key, f"{length} entries for {count} people", len(column))
        if not np.isin(does, (0, 1)).all():
            raise bad_field(where, "label", "0 or 1", int(does[~np.isin(does, (0, 1))][0]))
        if len(np.unique(people)) != count:
            raise bad_field(where, "ann_id", "every person once", "one twice")
        # Entries may list the same people in another order.
        order = np.argsort(people)
        rows = np.stack([images[order], people[order]])
        if first is None:
            first, first_order = rows, np.argsort(order)
        elif not np.array_equal(rows, first):
            raise bad_field(where, "ann_id", f"the people of {actions[0].name}", "other people")
        order = order[first_order]
        actions.append(action)
        labels.append(does[order])
        of_roles = _flat(entry.role_object_id).reshape(len(roles), count)[1:, order].T
        # Objects of people who do not do the action mean nothing.
        objects.append(of_roles * does[order][:, None])
    if first is None or not first.size:
        raise bad_field(path, f"{actions[0].name}: ann_id", "annotated people", "none")
    width = max(len(action.roles) for action in actions)
    return ActionTable(
        tuple(actions),
        first[0, first_order],
        first[1, first_order],
        np.stack(labels).astype(np.int8),
        np.stack([np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in objects]),
    )


def _flat(column: list[Any]) -> np.ndarray:
    values = [number[0] if isinstance(number, list) else number for number in column]
    return np.array(values, dtype=np.int64)


INSTANCES_NAME = "instances_vcoco_all_2014.json"
# Folders that are searched for the other files, relative to the folder of the actions file.
SEARCH_FOLDERS = ("", "..", "splits", "../splits", "annotations", "../annotations")


@dataclass(frozen=True)
class VcocoFiles:
    """Paths of one part's files; `ids` lists its image ids, None for all images of `actions`."""

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
    """The files that belong to an actions file; those that are not given are searched for near it.

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
    """Whether a file is an actions file of V-COCO."""
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
    ids: dict[int, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        if not re.fullmatch(r"\s*\d{1,18}\s*", line):
            raise bad_field(path, f"line {number}", "the id of an image", line)
        if int(line) in ids:
            raise bad_field(path, f"line {number}", "every image once", f"{line} a second time")
        ids[int(line)] = None
    if not ids:
        raise bad_field(path, "file", "image ids, one per line", "none")
    return list(ids)
