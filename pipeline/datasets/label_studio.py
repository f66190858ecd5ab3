"""Converts an export of Label Studio into a dataset folder.

The export is Label Studio's "JSON" form, a list of tasks. A rectangle is a box, its label the
object. A relation from a person's rectangle to another one is an interaction, its label the verb.
Rectangles are stored in percent of the image's size, relations with the ids of their rectangles.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import cos, radians, sin
from os.path import relpath
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from msgspec import Meta, Struct

from pipeline.datasets.layouts import DATASET_FILE
from pipeline.images import IMAGE_EXTENSIONS
from pipeline.utils.config_fields import check_share
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, refuse_existing, write_json, write_text
from pipeline.utils.logging import get_logger
from pipeline.utils.schema import Positive, Text, convert
from pipeline.utils.text import count_noun
from pipeline.vocabulary import (
    BUILTIN_VOCABULARIES,
    NO_INTERACTION,
    Vocabulary,
    find_names,
    find_verbs,
    load_vocabulary,
    normalise_name,
    vocabulary_from_dict,
)

logger = get_logger(__name__)

PERSON = "person"
VERSION_PREFIX = re.compile(r"^[0-9a-f]{8}-")
"""Label Studio puts 8 hexadecimal digits before the name of an uploaded file."""

UNNAMED = "relations without a label (left out)"
NO_PERSON = "relations without a person (left out)"
AGAINST_ARROW = "relations drawn from the object to the person (turned round)"
ROTATED = "rotated rectangles (replaced by the box around them)"
OTHER_ANNOTATORS = "further annotations of a task (left out)"
NOT_ANNOTATED = "tasks without a submitted annotation (left out)"
UNLABELLED = "rectangles without a label (left out)"

Percent = Annotated[float, Meta(description="a number of percent")]


class _Rectangle(Struct):
    x: Percent
    y: Percent
    width: Percent
    height: Percent
    rotation: float = 0.0
    rectanglelabels: list[Text] = []
    labels: list[Text] = []


class _Region(Struct):
    id: Text
    value: _Rectangle
    original_width: Positive
    original_height: Positive
    image_rotation: float = 0.0


class _Relation(Struct):
    from_id: Text
    to_id: Text
    direction: str = "right"
    labels: list[Text] | None = None


class _Annotation(Struct):
    result: list[dict[str, Any]]
    was_cancelled: bool = False
    ground_truth: bool | None = False
    updated_at: str | None = None


class _Task(Struct):
    id: int | str
    data: dict[str, Any]
    annotations: list[_Annotation]


@dataclass
class _Image:
    """Labels of one task, by name.

    Attributes:
        name: path of the file relative to the images folder.
        size: width and height in pixels of the upright image; None without any rectangle.
        boxes: xyxy in pixels.
        objects: object name of every box.
        pairs: (person, object, verb): two box indices and the verb's name.
    """

    name: str
    size: tuple[int, int] | None
    boxes: list[list[float]] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int, str]] = field(default_factory=list)


class _Reader:
    """Reads the tasks of one export and counts what is repaired or left out."""

    def __init__(self, export: Path, images: Path, strict: bool) -> None:
        self.export = export
        self.images = images
        self.strict = strict
        self.issues: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.files: dict[str, list[str]] = {}
        for path in sorted(images.rglob("*")):
            if path.suffix.lower() in IMAGE_EXTENSIONS:
                self.files.setdefault(path.name, []).append(path.relative_to(images).as_posix())

    def error(self, task: int | str, where: str, expected: str, found: object) -> InputError:
        return bad_field(self.export, f"task {task}: {where}", expected, found)

    def add_issue(self, kind: str, error: InputError) -> None:
        if self.strict:
            raise error
        self.issues[kind] += 1
        self.examples.setdefault(kind, str(error))

    def read_tasks(self) -> Iterator[_Image]:
        value = read_json(self.export)
        if not isinstance(value, list) or not value:
            raise bad_field(self.export, "content", "a non-empty list of tasks", value)
        for index, row in enumerate(value):
            if isinstance(row, dict) and "annotations" not in row and "id" in row:
                raise bad_field(
                    self.export,
                    f"task {row['id']}",
                    "annotations, as in Label Studio's export form JSON",
                    "none; JSON-MIN and other forms lack the relations",
                )
            task = convert(row, _Task, self.export, f"[{index}]")
            annotation = self._choose_annotation(task)
            if annotation is not None:
                yield self._read_annotation(task, annotation)

    def _choose_annotation(self, task: _Task) -> _Annotation | None:
        """The annotation marked as ground truth, or else the latest one that was submitted."""
        submitted = [one for one in task.annotations if not one.was_cancelled]
        if not submitted:
            found = "cancelled ones only" if task.annotations else "none"
            self.add_issue(
                NOT_ANNOTATED, self.error(task.id, "annotations", "a submitted one", found)
            )
            return None
        if len(submitted) > 1:
            found = f"{len(submitted)}, of which the ground truth or the latest is taken"
            self.add_issue(OTHER_ANNOTATORS, self.error(task.id, "annotations", "one", found))
        return max(submitted, key=lambda one: (bool(one.ground_truth), one.updated_at or ""))

    def _read_annotation(self, task: _Task, annotation: _Annotation) -> _Image:
        regions: dict[str, _Region] = {}
        labels: dict[str, list[str]] = {}
        relations = []
        for index, row in enumerate(annotation.result):
            kind, where = row.get("type"), f"task {task.id}: result[{index}]"
            if kind in ("rectanglelabels", "rectangle", "labels"):
                region = convert(row, _Region, self.export, where)
                # With separate tags for rectangle and label, a region has one entry for each.
                regions.setdefault(region.id, region)
                names = labels.setdefault(region.id, [])
                names += region.value.rectanglelabels + region.value.labels
            elif kind == "relation":
                relations.append(convert(row, _Relation, self.export, where))
        sizes = {(one.original_width, one.original_height) for one in regions.values()}
        if len(sizes) > 1:
            raise self.error(task.id, "original_width", "one image size", sorted(sizes))
        image = _Image(self._find_image(task), sizes.pop() if sizes else None)
        rows = {}
        for region in regions.values():
            if not labels[region.id]:
                error = self.error(task.id, f"region {region.id}", "a label", "none")
                self.add_issue(UNLABELLED, error)
                continue
            rows[region.id] = len(image.boxes)
            self._add_box(image, task, region, labels[region.id])
        for relation in relations:
            self._add_pairs(image, task, relation, rows)
        return image

    def _add_box(self, image: _Image, task: _Task, region: _Region, labels: list[str]) -> None:
        value, where = region.value, f"region {region.id}"
        if len(set(labels)) > 1:
            raise self.error(task.id, where, "one label", ", ".join(labels))
        if region.image_rotation % 360:
            expected = "an image that was not rotated in the labelling tool"
            raise self.error(task.id, where, expected, f"{region.image_rotation:g} degrees")
        if value.rotation % 360:
            found = f"{value.rotation:g} degrees"
            self.add_issue(ROTATED, self.error(task.id, where, "no rotation", found))
        size = region.original_width, region.original_height
        image.boxes.append(_box_in_pixels(value, *size))
        image.objects.append(labels[0])

    def _add_pairs(
        self, image: _Image, task: _Task, relation: _Relation, rows: dict[str, int]
    ) -> None:
        where = f"relation of regions {relation.from_id} and {relation.to_id}"
        ends = [rows.get(relation.from_id), rows.get(relation.to_id)]
        for region, row in zip((relation.from_id, relation.to_id), ends, strict=True):
            if row is None:
                found = f"{region}, which is not one"
                self.add_issue(
                    NO_PERSON, self.error(task.id, where, "two labelled rectangles", found)
                )
                return
        if not relation.labels:
            self.add_issue(UNNAMED, self.error(task.id, where, "a label, the action", "none"))
            return
        first, second = (row for row in ends if row is not None)
        people = [normalise_name(image.objects[row]) == PERSON for row in (first, second)]
        if not any(people):
            found = f"{image.objects[first]} and {image.objects[second]}"
            self.add_issue(NO_PERSON, self.error(task.id, where, "a person at one end", found))
            return
        directions = {"left": [(second, first)], "bi": [(first, second), (second, first)]}
        pairs = directions.get(relation.direction, [(first, second)])
        if not all(people):
            subject = first if people[0] else second
            if len(pairs) == 1 and pairs[0][0] != subject:
                found = f"an arrow from {image.objects[pairs[0][0]]} to {image.objects[subject]}"
                self.add_issue(
                    AGAINST_ARROW, self.error(task.id, where, "an arrow from the person", found)
                )
            pairs = [(subject, second if people[0] else first)]
        labelled = [(*pair, _verb_name(verb)) for pair in pairs for verb in relation.labels]
        image.pairs += [row for row in dict.fromkeys(labelled) if row not in image.pairs]

    def _find_image(self, task: _Task) -> str:
        """Path of the task's image, relative to the images folder."""
        names = [
            value
            for key, value in sorted(task.data.items(), key=lambda item: item[0] != "image")
            if isinstance(value, str) and _file_path(value).suffix.lower() in IMAGE_EXTENSIONS
        ]
        if not names:
            raise self.error(task.id, "data", "the path of an image", json.dumps(task.data))
        path = _file_path(names[0])
        # An upload has a prefix that the file in the user's folder does not have, and blanks and
        # brackets of its name are replaced.
        for name in (path.name, VERSION_PREFIX.sub("", path.name)):
            files = self.files.get(name) or [
                file
                for other, files in self.files.items()
                if _as_uploaded(other) == _as_uploaded(name)
                for file in files
            ]
            if len(files) > 1:
                ending = [file for file in files if path.as_posix().endswith(f"/{file}")]
                files = ending or files
            if len(files) > 1:
                found = f"{len(files)} files: {', '.join(files[:3])}"
                raise self.error(task.id, f"image {names[0]}", f"one file in {self.images}", found)
            if files:
                return files[0]
        raise self.error(task.id, f"image {names[0]}", f"a file in {self.images}", "none")


def _file_path(value: str) -> PurePosixPath:
    """Path of an image in a task: a path, a URL, or a URL of local storage with `?d=PATH`."""
    parts = urlsplit(value)
    local = parse_qs(parts.query).get("d")
    return PurePosixPath(local[0] if local else unquote(parts.path))


def _as_uploaded(name: str) -> str:
    return re.sub(r"[^\w.-]+", "", name.replace(" ", "_"))


def _box_in_pixels(value: _Rectangle, width: int, height: int) -> list[float]:
    """The axis-aligned box around a rectangle, which is rotated about its top left corner."""
    angle = radians(value.rotation)
    w, h = value.width / 100 * width, value.height / 100 * height
    right = np.array([w * cos(angle), w * sin(angle)])
    down = np.array([-h * sin(angle), h * cos(angle)])
    corners = np.array([right * i + down * j for i in (0, 1) for j in (0, 1)])
    corners += [value.x / 100 * width, value.y / 100 * height]
    corners = np.clip(corners, 0, [width, height])
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    return [round(float(side), 2) for side in box]


def _ing(phrase: str) -> str:
    """The -ing form of a verb for prompts: "ride" becomes "riding", "sit on" "sitting on"."""
    if phrase == NO_INTERACTION:
        return "no interaction"
    verb, *rest = phrase.replace("_", " ").split()
    lower = verb.lower()
    if lower.endswith("ing") and len(lower) > 5:
        form = verb
    elif lower.endswith("ie"):
        form = verb[:-2] + "ying"
    elif lower.endswith("e") and not lower.endswith(("ee", "oe", "ye")) and len(lower) > 2:
        form = verb[:-1] + "ing"
    elif re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", lower):
        form = verb + verb[-1] + "ing"
    else:
        form = verb + "ing"
    return " ".join([form, *rest])


def _new_vocabulary(tasks: list[_Image], file: Path) -> Vocabulary:
    """A vocabulary of all labels, with COCO's ids for the objects that COCO has."""
    coco = load_vocabulary("hico-det")
    ids = {normalise_name(name): i for name, i in zip(coco.objects, coco.category_ids, strict=True)}
    objects = sorted({normalise_name(name) for task in tasks for name in task.objects})
    objects.sort(key=lambda name: name != PERSON)
    further = iter(range(max(ids.values()) + 1, max(ids.values()) + 1 + len(objects)))
    verbs = sorted({verb for task in tasks for *_, verb in task.pairs})
    pairs = {
        (verbs.index(verb), objects.index(normalise_name(task.objects[target])))
        for task in tasks
        for _, target, verb in task.pairs
    }
    value = {
        "name": file.parent.resolve().name if file.stem == "vocabulary" else file.stem,
        "objects": [{"name": name, "id": ids.get(name) or next(further)} for name in objects],
        "verbs": [{"name": verb, "ing": _ing(verb)} for verb in verbs],
        "interactions": sorted(pairs),
    }
    return vocabulary_from_dict(json.loads(json.dumps(value)), file)


def _verb_name(label: str) -> str:
    name = normalise_name(label)
    return NO_INTERACTION if name == normalise_name(NO_INTERACTION) else name


def _hoia_entry(image: _Image, vocabulary: Vocabulary, reader: _Reader) -> dict[str, Any]:
    """An image's entry in the HOIA format; names are compared without case and underscores."""
    verb_names = [verb for *_, verb in image.pairs]
    objects = find_names(image.objects, vocabulary.objects)
    verbs = find_verbs(verb_names, verb_names, vocabulary)
    for kind, indices, labels in (
        ("objects", objects, image.objects),
        ("verbs", verbs, verb_names),
    ):
        if -1 in indices:
            expected = f"one of the {kind} of vocabulary {vocabulary.name}"
            where = f"image {image.name}: label"
            raise bad_field(reader.export, where, expected, labels[indices.index(-1)])
    size = {} if image.size is None else {"width": image.size[0], "height": image.size[1]}
    return {
        "file_name": image.name,
        **size,
        "annotations": [
            {"bbox": box, "category_id": vocabulary.category_ids[label]}
            for box, label in zip(image.boxes, objects, strict=True)
        ],
        "hoi_annotation": [
            {
                "subject_id": person,
                "object_id": target,
                "category_id": verb + vocabulary.first_verb_id,
            }
            for (person, target, _), verb in zip(image.pairs, verbs, strict=True)
        ],
    }


def convert_label_studio(
    export: Path,
    out: Path,
    images: Path,
    vocabulary: Path | None = None,
    test_size: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes a dataset folder with the labels of a Label Studio export.

    The folder receives `dataset.toml` and the annotations of both parts in the HOIA format. Images
    are not copied.

    Args:
        export: file of Label Studio's export form JSON.
        out: folder of the dataset.
        images: folder of the images, searched recursively.
        vocabulary: name or file of a vocabulary. A file that does not exist is written with all
            labels of the export; None is `vocabulary.json` in `out`.
        test_size: images of the test part: a fraction below 1 of those with interactions, or their
            number.
        seed: selects the images of the test part.
        strict: raise an error for what is otherwise repaired or left out, and counted.
        overwrite: replace existing files.

    Returns:
        Numbers of training images, test images, boxes, labelled pairs, objects and verbs.

    Raises:
        InputError: `test_size` is a broken number above 1, the export is not readable, an image is
            missing, a label is not in an existing vocabulary, or files exist.
    """
    check_share("test size", test_size)
    if not images.is_dir():
        raise InputError(f"{images}: expected a folder of images, found none")
    files = {part: out / f"annotations/{part}.json" for part in ("train", "test")}
    for file in (out / DATASET_FILE, *files.values()):
        refuse_existing(file, overwrite)
    reader = _Reader(export, images, strict)
    tasks = list(reader.read_tasks())
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            raise bad_field(export, f"image {name}", "one annotated task", count)
    if not any(task.pairs for task in tasks):
        raise bad_field(export, "tasks", "relations from people to objects", "none")
    vocabulary = vocabulary or out / "vocabulary.json"
    is_builtin = str(vocabulary) in BUILTIN_VOCABULARIES
    is_new = not is_builtin and (overwrite or not vocabulary.is_file())
    words = _new_vocabulary(tasks, vocabulary) if is_new else load_vocabulary(vocabulary)
    entries = [_hoia_entry(task, words, reader) for task in tasks]
    # An image without interactions would not be scored.
    labelled = [index for index, task in enumerate(tasks) if task.pairs]
    num_test = round(test_size * len(labelled)) if test_size < 1 else int(test_size)
    if num_test >= len(labelled):
        expected = f"fewer than the {count_noun(len(labelled), 'images with interactions')}"
        raise InputError(f"test size: expected {expected}, found {num_test}")
    chosen = set(np.random.default_rng(seed).permutation(labelled)[:num_test].tolist())
    if reader.issues:
        kinds = ", ".join(count_noun(count, kind) for kind, count in reader.issues.items())
        first = next(iter(reader.examples.values()))
        logger.warning(f"{export}: {kinds}; the first: {first}")
    if is_new:
        write_json(vocabulary, words.to_dict())
    name = str(vocabulary) if is_builtin else relpath(vocabulary, out)
    lines = [f"name = {json.dumps(out.resolve().name)}", f"vocabulary = {json.dumps(name)}"]
    for part, file in files.items():
        rows = [row for i, row in enumerate(entries) if (i in chosen) == (part == "test")]
        if rows:
            write_json(file, rows)
            paths = {"images": relpath(images, out), "annotations": relpath(file, out)}
            lines += ["", f"[{part}]", *(f"{key} = {json.dumps(v)}" for key, v in paths.items())]
    write_text(out / DATASET_FILE, "\n".join([*lines, ""]))
    return {
        "training images": len(tasks) - num_test,
        "test images": num_test,
        "boxes": sum(len(task.boxes) for task in tasks),
        "labelled pairs": sum(len(task.pairs) for task in tasks),
        "objects": len({normalise_name(name) for task in tasks for name in task.objects}),
        "verbs": len({verb for task in tasks for *_, verb in task.pairs}),
    }
