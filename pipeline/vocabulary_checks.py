"""Checks of the parts of a vocabulary's JSON; every error names the file and the field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import bad_field

ASKED = ("unseen_verbs", "all_verbs")


def entries(value: dict[str, Any], key: str, fields: tuple[str, str], file: object) -> list[Any]:
    """A non-empty list of objects that all have the fields."""
    rows = value.get(key)
    if not isinstance(rows, list) or not rows:
        raise bad_field(file, key, "a non-empty list", rows)
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or any(name not in row for name in fields):
            raise bad_field(file, f"{key}[{index}]", f"fields {' and '.join(fields)}", row)
    return rows


def texts(rows: list[Any], key: str, field: str, file: object) -> tuple[str, ...]:
    """The text in a field of every row; none may be empty."""
    for index, row in enumerate(rows):
        if not isinstance(row[field], str) or not row[field].strip():
            raise bad_field(file, f"{key}[{index}].{field}", "a text", row[field])
    return tuple(row[field] for row in rows)


def whole_numbers(rows: list[Any], key: str, field: str, file: object) -> tuple[int, ...]:
    """The whole number in a field of every row."""
    for index, row in enumerate(rows):
        if type(row[field]) is not int:
            raise bad_field(file, f"{key}[{index}].{field}", "a whole number", row[field])
    return tuple(row[field] for row in rows)


def different(values: Sequence[Any], key: str, file: object) -> None:
    """No value may come twice."""
    for value in values:
        if values.count(value) > 1:
            raise bad_field(file, key, "every value once", f"{value} {values.count(value)} times")


def indices(value: Any, size: int, key: str, file: object) -> tuple[int, ...]:
    """Interaction numbers, none twice."""
    if not isinstance(value, list):
        raise bad_field(file, key, "a list of interaction numbers", value)
    for index in value:
        if type(index) is not int or not 0 <= index < size:
            raise bad_field(file, key, f"interaction numbers from 0 to {size - 1}", index)
    different(value, key, file)
    return tuple(value)


def interactions(
    value: Any, num_verbs: int, num_objects: int, file: object
) -> tuple[tuple[int, int], ...]:
    """(verb, object) pairs, none twice."""
    if not isinstance(value, list) or not value:
        raise bad_field(file, "interactions", "a non-empty list of [verb, object]", value)
    for index, pair in enumerate(value):
        fits = (
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(number) is int for number in pair)
            and 0 <= pair[0] < num_verbs
            and 0 <= pair[1] < num_objects
        )
        if not fits:
            expected = f"[verb below {num_verbs}, object below {num_objects}]"
            raise bad_field(file, f"interactions[{index}]", expected, pair)
    different(value, "interactions", file)
    return tuple((verb, label) for verb, label in value)


def splits(value: Any, num_interactions: int, file: object) -> dict[str, dict[str, Any]]:
    """Zero-shot splits by name."""
    if not isinstance(value, dict):
        raise bad_field(file, "splits", "an object of splits by name", value)
    for name, split in value.items():
        if name == "full":
            raise bad_field(file, "splits", "names other than full, where all is seen", name)
        if not isinstance(split, dict) or split.get("asked") not in ASKED:
            expected = f'{{"unseen": [...], "asked": {" or ".join(ASKED)}}}'
            raise bad_field(file, f"splits.{name}", expected, split)
        indices(split.get("unseen"), num_interactions, f"splits.{name}.unseen", file)
    return value


def roles(value: Any, verbs: tuple[str, ...], file: object) -> tuple[dict[str, Any], ...]:
    """V-COCO's table of actions and their roles."""
    expected = '{"action": name, "roles": names, "verbs": one for each role, at least one}'
    if not isinstance(value, list):
        raise bad_field(file, "roles", f"a list of {expected}", value)
    for index, entry in enumerate(value):
        row = entry if isinstance(entry, dict) else {}
        names, named = row.get("roles"), row.get("verbs")
        fits = (
            isinstance(row.get("action"), str)
            and isinstance(names, list)
            and isinstance(named, list)
            and len(named) == max(len(names), 1)
        )
        if not fits:
            raise bad_field(file, f"roles[{index}]", expected, entry)
        for name in row["verbs"]:
            if name not in verbs:
                raise bad_field(file, f"roles[{index}].verbs", "names of verbs", name)
    return tuple(value)
