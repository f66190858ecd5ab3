"""One door for all annotation files: the form is recognised by the content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.annotations.anno_bbox import parse_anno_bbox
from pipeline.annotations.assemble import Reading
from pipeline.annotations.coco import parse_coco
from pipeline.annotations.hoia import parse_hoia
from pipeline.annotations.instances import parse_instances
from pipeline.errors import InputError, bad_field
from pipeline.files import read_json, sha256_of_file
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary

FORMS = (
    "a list of images (trainval_hico.json), an object with filenames and annotation"
    " (instances_train2015.json) or with images, annotations and categories (COCO)"
)


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """An annotation file, read.

    Attributes:
        path: where it lies.
        annotations: one for each annotated image, in the file's order.
        blemishes: how often each kind of blemish was clipped or dropped.
        digest: SHA-256 of the file.
        part: the dataset part it was read for.
    """

    path: Path
    annotations: tuple[Annotation, ...]
    blemishes: Counter[str]
    digest: str
    part: str

    @property
    def num_labels(self) -> int:
        """How many verbs are labelled on pairs, in all images."""
        return sum(len(annotation.hois) for annotation in self.annotations)

    def blemish_line(self) -> str:
        """What was clipped or dropped, in one line for people; empty when nothing was."""
        if not self.blemishes:
            return ""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.blemishes.items())
        return f"{self.path}: {counts}"


def load_annotations(
    path: Path | str, vocabulary: Vocabulary, part: str, strict: bool = False
) -> AnnotationFile:
    """Reads an annotation file of any known form.

    Args:
        path: HOIA JSON, `instances_*.json`, the official `anno_bbox.mat`, or COCO instances
            (boxes only).
        vocabulary: its verbs and objects are the numbers of the result.
        part: "train" or "test"; picks the half of `anno_bbox.mat`, which holds both.
        strict: refuse blemishes that are otherwise clipped or dropped, and counted.

    Raises:
        InputError: no such file, no known form, a structurally wrong entry, or a blemish under
            `strict`; names file, image and field.
    """
    path = Path(path)
    reading = Reading(path, vocabulary, strict)
    if path.suffix.lower() == ".mat":
        annotations = parse_anno_bbox(part, reading)
    else:
        annotations = _parse_json(read_json(path), reading)
    if not annotations:
        raise bad_field(path, "file", "at least one annotated image", "none")
    return AnnotationFile(path, tuple(annotations), reading.blemishes, sha256_of_file(path), part)


def _parse_json(value: Any, reading: Reading) -> list[Annotation]:
    if isinstance(value, list):
        _refuse_vcoco(value, reading)
        return parse_hoia(value, reading)
    if isinstance(value, dict) and {"filenames", "annotation"} <= value.keys():
        return parse_instances(value, reading)
    if isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys():
        return parse_coco(value, reading)
    found = f"an object with {', '.join(value) or 'nothing'}" if isinstance(value, dict) else value
    raise bad_field(reading.file, "file", FORMS, found)


def _refuse_vcoco(value: list[Any], reading: Reading) -> None:
    first = value[0] if value else None
    if isinstance(first, dict) and "action_name" in first:
        raise InputError(
            f"{reading.file}: expected V-COCO in the HOIA form (trainval_vcoco.json),"
            " found its official action list"
        )
