"""COCO detection files, `instances_train2017.json` and the like: boxes only, no interactions."""

from __future__ import annotations

from typing import Any

from pipeline.annotations.base import Names, Place, RawImage, Reading, RepeatedImage, assemble
from pipeline.annotations.box_form import SIDES
from pipeline.types import Annotation

BOX = "four finite numbers [x, y, width, height]"


def parse_coco(value: dict[str, Any], reading: Reading) -> list[Annotation]:
    """All images of the file, in its order; crowds are left out.

    Raises:
        InputError: an entry is structurally wrong, or has a blemish under `reading.strict`.
    """
    file = Place(reading.file, "file")
    images = file.objects(value, "images")
    names = Names(reading.file)
    known: dict[int, dict[str, Any]] = {}
    for index, image in enumerate(images):
        field = f"images[{index}]"
        with reading.entry():
            number = file.whole(image.get("id"), f"{field}.id")
            if number in known:
                raise RepeatedImage(str(file.wrong(f"{field}.id", "every id once", number)))
            names.add(f"{field}.file_name", image.get("file_name"))
            known[number] = image
    rows_of_image: dict[int, list[tuple[int, dict[str, Any]]]] = {number: [] for number in known}
    for index, row in enumerate(file.objects(value, "annotations")):
        with reading.entry():
            owner = row.get("image_id")
            if not isinstance(owner, int) or owner not in known:
                raise file.wrong(f"annotations[{index}].image_id", "the id of one of images", owner)
            if not row.get("iscrowd"):
                rows_of_image[owner].append((index, row))
    annotations = []
    for number, image in known.items():
        with reading.entry():
            annotations.append(assemble(_raw(image, rows_of_image[number], reading), reading))
    return annotations


def _raw(
    image: dict[str, Any], rows: list[tuple[int, dict[str, Any]]], reading: Reading
) -> RawImage:
    place = Place(reading.file, image["file_name"])
    size = place.size([image.get("width"), image.get("height")], "width and height")
    stated, boxes, labels = [], [], []
    for index, row in rows:
        field = f"annotations[{index}]"
        stated.append(place.box(row.get("bbox"), f"{field}.bbox", BOX))
        x, y, width, height = stated[-1]
        boxes.append([x, y, x + width, y + height])
        category = row.get("category_id")
        labels.append(reading.label(place, category, f"{field}.category_id"))
    reading.note_boxes(stated, size, SIDES)
    numbers = [index for index, _ in rows]
    return RawImage(
        place.image,
        boxes,
        labels,
        hois=[],
        size=size,
        box_field=lambda index: f"annotations[{numbers[index]}].bbox",
        hoi_field=str,
        number=image["id"],
    )
