"""V-COCO's official files: which belong together, and the list of a part's images.

A part is three files of the v-coco repository: the actions of annotated people
(`data/vcoco/vcoco_test.json`), COCO's boxes (`data/instances_vcoco_all_2014.json`, or COCO's own
`instances_val2014.json`) and the ids of the part's images (`data/splits/vcoco_test.ids`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, bad_field
from pipeline.files import read_json, sha256_of_file, sha256_of_json

INSTANCES = "instances_vcoco_all_2014.json"
# Where people keep the other files, seen from the actions file's folder.
FOLDERS = ("", "..", "splits", "../splits", "annotations", "../annotations")


@dataclass(frozen=True)
class VcocoFiles:
    """The files of one part.

    Attributes:
        actions: who does what, with which objects.
        instances: COCO's boxes.
        ids: ids of the part's images, one a line; None takes all images of `actions`.
    """

    actions: Path
    instances: Path
    ids: Path | None = None

    def digest(self) -> str:
        """SHA-256 of all of them."""
        paths = (self.actions, self.instances, self.ids)
        return sha256_of_json([path and sha256_of_file(path) for path in paths])


def vcoco_files(
    actions: Path | str, instances: Path | None = None, ids: Path | None = None
) -> VcocoFiles:
    """The files that belong to an actions file; those not named are looked for around it.

    Raises:
        InputError: no COCO boxes are named or found.
    """
    actions = Path(actions)
    coco = "instances_val2014.json" if "test" in actions.stem else "instances_train2014.json"
    instances = instances or _around(actions, (INSTANCES, coco))
    if instances is None:
        raise InputError(
            f"{actions}: instances: expected COCO's boxes in {INSTANCES} or {coco} near this file,"
            " found neither; name the file"
        )
    return VcocoFiles(actions, instances, ids or _around(actions, (f"{actions.stem}.ids",)))


def _around(actions: Path, names: tuple[str, ...]) -> Path | None:
    places = (actions.parent / folder / name for name in names for folder in FOLDERS)
    return next((place for place in places if place.is_file()), None)


def is_actions_file(path: Path) -> bool:
    """Whether a file is a list of V-COCO's actions.

    Raises:
        InputError: it is missing or no JSON.
    """
    if path.suffix.lower() != ".json":
        return False
    value = read_json(path)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "action_name" in first


def read_ids(path: Path) -> list[int]:
    """Image ids, one a line, in the file's order.

    Raises:
        InputError: the file is missing, empty, has a line that is no whole number, or one twice.
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
        raise bad_field(path, "file", "the ids of images, one a line", "none")
    return list(ids)
