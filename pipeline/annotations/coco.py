"""COCO's instances files, e.g. `instances_train2017.json`: boxes without interactions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from pipeline.annotations.base import (
    DuplicateImage,
    ParseContext,
    RawAnnotation,
    XywhBox,
    build_annotation,
)
from pipeline.annotations.box_format import XYWH
from pipeline.types import Annotation
from pipeline.utils.errors import bad_field
from pipeline.utils.schema import Number, Positive, convert


class CocoImage(Struct):
    """An entry of `images`."""

    id: Number
    file_name: Any
    width: Positive
    height: Positive


class CocoBox(Struct):
    """An entry of `annotations`; `area` is that of the segment."""

    image_id: Number
    category_id: Number
    bbox: XywhBox
    id: Number | None = None
    iscrowd: int | bool = 0
    area: float | None = None
    ignore: int | bool = 0


class _Category(Struct):
    id: Number
    name: str


class _File(Struct):
    images: list[Any]
    annotations: list[Any]
    categories: list[_Category]


@dataclass(frozen=True)
class CocoFile:
    """Content of an instances file.

    Attributes:
        images: by id, in the order of the file.
        boxes: number and entry of every annotation, by image id.
        people: category ids of persons.
    """

    images: dict[int, CocoImage]
    boxes: dict[int, list[tuple[int, CocoBox]]]
    people: list[int]


def read_coco(
    value: Any, context: ParseContext, image_ids: Collection[int] | None = None
) -> CocoFile:
    """Checks the entries of an instances file.

    Args:
        value: parsed JSON of the file.
        context: settings and counts of reading the file.
        image_ids: images that the file has to have, of which the boxes are read; None for all.

    Raises:
        InputError: an entry is structurally wrong, or there is no such image.
    """
    content = convert(value, _File, context.file)
    images: dict[int, CocoImage] = {}
    for index, entry in enumerate(content.images):
        where = f"images[{index}]"
        with context.catch_errors():
            image = convert(entry, CocoImage, context.file, where)
            if image.id in images:
                found = f"{image.id} a second time"
                error = bad_field(context.file, f"{where}.id", "every image once", found)
                raise DuplicateImage(str(error))
            context.add_name(f"{where}.file_name", image.file_name)
            images[image.id] = image
    for image_id in image_ids or ():
        if image_id not in images:
            raise bad_field(context.file, "images", f"image {image_id}", "no such image")
    boxes: dict[int, list[tuple[int, CocoBox]]] = {
        image_id: [] for image_id in (images if image_ids is None else image_ids)
    }
    for index, entry in enumerate(content.annotations):
        where = f"annotations[{index}]"
        owner = entry.get("image_id") if isinstance(entry, dict) else None
        if image_ids is not None and type(owner) is int and owner not in boxes:
            continue
        with context.catch_errors():
            if type(owner) is not int or owner not in boxes:
                expected = "the id of one of images"
                raise bad_field(context.file, f"{where}.image_id", expected, owner)
            box = context.convert(entry, CocoBox, images[owner].file_name, where)
            boxes[owner].append((index, box))
    people = [category.id for category in content.categories if category.name == "person"]
    return CocoFile(images, boxes, people)


def parse_coco(value: dict[str, Any], context: ParseContext) -> list[Annotation]:
    """Annotations of all images, in the order of the file, without crowds.

    Raises:
        InputError: an entry is structurally wrong, or has an issue and `context.strict` is set.
    """
    coco = read_coco(value, context)
    annotations = []
    for image in coco.images.values():
        # The box of a crowd contains many objects.
        rows = [(index, box) for index, box in coco.boxes[image.id] if not box.iscrowd]
        with context.catch_errors():
            annotations.append(build_annotation(_parse_image(image, rows, context), context))
    return annotations


def _parse_image(
    image: CocoImage, rows: list[tuple[int, CocoBox]], context: ParseContext
) -> RawAnnotation:
    size = (image.width, image.height)
    context.add_boxes([box.bbox for _, box in rows], size, XYWH)
    return RawAnnotation(
        image.file_name,
        [(x, y, x + width, y + height) for x, y, width, height in (box.bbox for _, box in rows)],
        [
            context.read_label(
                image.file_name, box.category_id, f"annotations[{index}].category_id"
            )
            for index, box in rows
        ],
        hois=[],
        size=size,
        box_field=lambda row: f"annotations[{rows[row][0]}].bbox",
        hoi_field=str,
        coco_image_id=image.id,
    )
