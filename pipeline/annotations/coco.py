"""COCO's instances files, e.g. `instances_train2017.json`: boxes without interactions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.annotations.base import (
    DuplicateImage,
    EntryReader,
    ParseContext,
    RawAnnotation,
    UniqueImageNames,
    build_annotation,
)
from pipeline.annotations.box_format import XYWH
from pipeline.types import Annotation
from pipeline.utils.files import read_json

COCO_BOX_FORMAT = "four finite numbers [x, y, width, height]"


def parse_coco(value: dict[str, Any], context: ParseContext) -> list[Annotation]:
    """Annotations of all images, in the order of the file, without crowds.

    Raises:
        InputError: an entry is structurally wrong, or has an issue and `context.strict` is set.
    """
    file = EntryReader(context.file, "file")
    images = file.read_objects(value, "images")
    names = UniqueImageNames(context.file)
    image_by_id: dict[int, dict[str, Any]] = {}
    for index, image in enumerate(images):
        field = f"images[{index}]"
        with context.catch_errors():
            image_id = file.read_int(image.get("id"), f"{field}.id")
            if image_id in image_by_id:
                raise DuplicateImage(str(file.error(f"{field}.id", "every id once", image_id)))
            names.add(f"{field}.file_name", image.get("file_name"))
            image_by_id[image_id] = image
    rows_by_id: dict[int, list[tuple[int, dict[str, Any]]]] = {
        image_id: [] for image_id in image_by_id
    }
    for index, row in enumerate(file.read_objects(value, "annotations")):
        with context.catch_errors():
            owner = row.get("image_id")
            if not isinstance(owner, int) or owner not in image_by_id:
                raise file.error(f"annotations[{index}].image_id", "the id of one of images", owner)
            # The box of a crowd contains many objects.
            if not row.get("iscrowd"):
                rows_by_id[owner].append((index, row))
    annotations = []
    for image_id, image in image_by_id.items():
        with context.catch_errors():
            raw = _parse_image(image, rows_by_id[image_id], context)
            annotations.append(build_annotation(raw, context))
    return annotations


def _parse_image(
    image: dict[str, Any], rows: list[tuple[int, dict[str, Any]]], context: ParseContext
) -> RawAnnotation:
    reader = EntryReader(context.file, image["file_name"])
    size = reader.read_size([image.get("width"), image.get("height")], "width and height")
    file_boxes, boxes, labels = [], [], []
    for index, row in rows:
        field = f"annotations[{index}]"
        file_boxes.append(reader.read_box(row.get("bbox"), f"{field}.bbox", COCO_BOX_FORMAT))
        x, y, width, height = file_boxes[-1]
        boxes.append([x, y, x + width, y + height])
        category = row.get("category_id")
        labels.append(context.read_label(reader, category, f"{field}.category_id"))
    context.add_boxes(file_boxes, size, XYWH)
    indices = [index for index, _ in rows]
    return RawAnnotation(
        reader.image,
        boxes,
        labels,
        hois=[],
        size=size,
        box_field=lambda index: f"annotations[{indices[index]}].bbox",
        hoi_field=str,
        coco_image_id=image["id"],
    )


class CocoInstances:
    """COCO's images and the annotations of some of them, for annotations that refer to their ids.

    Args:
        path: COCO's file of instances.
        image_ids: ids of the images whose annotations are kept.

    Attributes:
        reader: names the file in errors.
        images: the file's entries of all images, by id.
        people: category ids of persons.
        rows: field name and entry of every annotation of the images `image_ids`, by image id.

    Raises:
        InputError: the file is missing, or an entry is structurally wrong.
    """

    def __init__(self, path: Path, image_ids: set[int]) -> None:
        value = read_json(path)
        self.reader = EntryReader(path, "file")
        if not isinstance(value, dict):
            raise self.reader.error("file", "an object with images and annotations", value)
        names = UniqueImageNames(path)
        self.images: dict[int, dict[str, Any]] = {}
        for index, image in enumerate(self.reader.read_objects(value, "images")):
            image_id = self.reader.read_int(image.get("id"), f"images[{index}].id")
            names.add(f"images[{index}].file_name", image.get("file_name"))
            self.images[image_id] = image
        self.people = [
            self.reader.read_int(category.get("id"), f"categories[{index}].id")
            for index, category in enumerate(self.reader.read_objects(value, "categories"))
            if category.get("name") == "person"
        ]
        self.rows: dict[int, list[tuple[str, dict[str, Any]]]] = {
            image_id: [] for image_id in image_ids
        }
        for index, row in enumerate(self.reader.read_objects(value, "annotations")):
            owner = row.get("image_id")
            if isinstance(owner, int) and owner in self.rows:
                self.rows[owner].append((f"annotations[{index}]", row))
