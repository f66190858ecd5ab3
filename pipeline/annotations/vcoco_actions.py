"""The actions file of V-COCO: one entry for each action, the same people in all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import bad_field
from pipeline.files import read_json

AGENT = "agent"
COLUMNS = ("image_id", "ann_id", "label")


@dataclass(frozen=True)
class VcocoAction:
    """An action and its roles beside the agent, in the file's order."""

    name: str
    roles: tuple[str, ...]


class ActionTable:
    """Who does what.

    Attributes:
        actions: in the file's order.
        image_ids: images with annotated people.
        people_of: ids of COCO's annotations of the annotated people by image.
    """

    def __init__(self, actions: list[VcocoAction]) -> None:
        self.actions = tuple(actions)
        self.people_of: dict[int, list[int]] = defaultdict(list)
        self._done: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)

    @property
    def image_ids(self) -> set[int]:
        return set(self.people_of)

    def add(self, action: int, person: int, objects: tuple[int, ...]) -> None:
        """Notes that a person does an action with the objects of its roles, 0 for none."""
        self._done[person].append((action, objects))

    def done_by(self, person: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Actions of a person, each with the objects of its roles."""
        return iter(self._done.get(person, ()))


def read_actions(path: Path) -> ActionTable:
    """Reads an actions file.

    Raises:
        InputError: the file is missing or no actions file, or an entry is structurally wrong.
    """
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise bad_field(path, "file", "V-COCO's list of actions", value)
    actions = [_action(path, index, entry) for index, entry in enumerate(value)]
    table = ActionTable(actions)
    first: dict[int, int] = {}
    for index, (action, entry) in enumerate(zip(actions, value, strict=True)):
        images, people, labels = (_numbers(path, action.name, entry, key) for key in COLUMNS)
        if len(people) != len(images) or len(labels) != len(images):
            expected = f"{len(images)} entries each, as many as in image_id"
            found = f"{len(people)} and {len(labels)}"
            raise bad_field(path, f"{action.name}: ann_id and label", expected, found)
        if not np.isin(labels, (0, 1)).all():
            odd = labels[~np.isin(labels, (0, 1))][0]
            raise bad_field(path, f"{action.name}: label", "0 or 1", int(odd))
        owner = dict(zip(people.tolist(), images.tolist(), strict=True))
        if len(owner) != len(people):
            raise bad_field(path, f"{action.name}: ann_id", "every person once", "one twice")
        if index == 0:
            first = owner
            for person, image in owner.items():
                table.people_of[image].append(person)
        elif owner != first:
            expected = f"the people of {actions[0].name}"
            raise bad_field(path, f"{action.name}: ann_id", expected, "others")
        objects = _objects(path, action, entry, people)
        for row in np.flatnonzero(labels == 1):
            table.add(index, int(people[row]), tuple(objects[row].tolist()))
    if not first:
        raise bad_field(path, f"{actions[0].name}: ann_id", "annotated people", "nobody")
    return table


def _action(path: Path, index: int, entry: Any) -> VcocoAction:
    row = entry if isinstance(entry, dict) else {}
    name, roles = row.get("action_name"), row.get("role_name")
    if not isinstance(name, str) or not name:
        raise bad_field(path, f"entry {index}: action_name", "the name of an action", name)
    good = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
    if not good or not roles or roles[0] != AGENT or len(set(roles)) != len(roles):
        raise bad_field(path, f"{name}: role_name", f'a list of names, "{AGENT}" first', roles)
    return VcocoAction(name, tuple(roles[1:]))


def _numbers(path: Path, name: str, entry: dict[str, Any], key: str) -> np.ndarray:
    """A column of whole numbers; the files have them as a list or as a list of lists of one."""
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


def _objects(
    path: Path, action: VcocoAction, entry: dict[str, Any], people: np.ndarray
) -> np.ndarray:
    """(N, R) COCO's annotations of the role objects, 0 for none."""
    flat = _numbers(path, action.name, entry, "role_object_id")
    count = 1 + len(action.roles)
    if len(flat) != count * len(people):
        expected = f"{count * len(people)} entries, {count} for each of {len(people)} people"
        raise bad_field(path, f"{action.name}: role_object_id", expected, f"{len(flat)}")
    return flat.reshape(count, -1).T[:, 1:]
