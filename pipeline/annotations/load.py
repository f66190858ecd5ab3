"""One door for all annotation files: the form is recognised by the content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.base import ParseContext, format_issues, is_utf8
from pipeline.annotations.coco import parse_coco
from pipeline.annotations.hico import parse_anno_bbox, parse_instances
from pipeline.annotations.hoia import parse_hoia
from pipeline.annotations.vcoco import find_vcoco_files, read_vcoco, vcoco_annotations
from pipeline.images import IMAGE_EXTENSIONS
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, sha256_of_file, sha256_of_json
from pipeline.vocabulary import Vocabulary

KNOWN_FORMATS = (
    "a list of images (trainval_hico.json) or of actions (vcoco_trainval.json), an object with"
    " filenames and annotation (instances_train2015.json) or with images, annotations and"
    " categories (COCO)"
)


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """An annotation file, read.

    Attributes:
        path: where it lies.
        annotations: one for each annotated image, in the file's order.
        issues: how often each kind of issue was clipped or dropped.
        digest: SHA-256 of the file, or of all that belong to it.
        part: the dataset part it was read for.
        unlabelled: images that the file names without any labelled pair; not among `annotations`.
        entry_errors: how many wrong entries of each kind lenient mode left out.
        examples: the first issue or wrong entry of each kind, as an error tells it.
        boxes_only: files of its form hold no interactions.
    """

    path: Path
    annotations: tuple[Annotation, ...]
    issues: Counter[str]
    digest: str
    part: str
    unlabelled: frozenset[str] = frozenset()
    entry_errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    boxes_only: bool = False

    @property
    def num_labels(self) -> int:
        """How many verbs are labelled on pairs, in all images."""
        return sum(len(annotation.hois) for annotation in self.annotations)

    def require_labels(self) -> None:
        """Refuses a file in which no pair is left with a label.

        Raises:
            InputError: says what was dropped.
        """
        if not self.num_labels:
            dropped = ", ".join(f"{count} {kind}" for kind, count in self.issues.items())
            found = f"none that can be used: {dropped}" if dropped else "none"
            raise bad_field(self.path, "file", "labelled interactions", found)

    def format_issues(self) -> str:
        """What was clipped or dropped, in one line for people; empty when nothing was."""
        return format_issues(self.path, self.issues)


def load_annotations(
    path: Path | str,
    vocabulary: Vocabulary,
    part: str,
    strict: bool = False,
    instances: Path | None = None,
    ids: Path | None = None,
    lenient: bool = False,
) -> AnnotationFile:
    """Reads an annotation file of any known form.

    Args:
        path: HOIA JSON, `instances_*.json`, the official `anno_bbox.mat`, V-COCO's official
            actions, or COCO instances (boxes only).
        vocabulary: its verbs and objects are the numbers of the result.
        part: "train" or "test"; picks the half of `anno_bbox.mat`, which holds both.
        strict: refuse issues that are otherwise clipped or dropped, and counted.
        instances, ids: the files that belong to V-COCO's actions, looked for where not named.
        lenient: leave wrong entries out and count them, as well as issues under `strict`.

    Raises:
        InputError: no such file, no known form, a structurally wrong entry, or an issue under
            `strict`; names file, image and field.
    """
    path = Path(path)
    context = ParseContext(path, vocabulary, strict, lenient)
    if path.suffix.lower() == ".mat":
        annotations, digest, boxes_only = parse_anno_bbox(part, context), None, False
    else:
        value = read_json(path)
        annotations, digest = _parse_json(value, context, instances, ids)
        boxes_only = isinstance(value, dict) and "images" in value
    with context.catch_errors():
        context.check_format()
    if not annotations and not context.entry_errors:
        raise bad_field(path, "file", "at least one annotated image", "none")
    return AnnotationFile(
        path,
        tuple(annotations),
        context.issues,
        digest or sha256_of_file(path),
        part,
        frozenset(context.unlabelled),
        context.entry_errors,
        context.examples,
        boxes_only,
    )


def _parse_json(
    value: Any, context: ParseContext, instances: Path | None, ids: Path | None
) -> tuple[list[Annotation], str | None]:
    """The annotations, and the digest of the files where there are several."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict) and "action_name" in first:
        files = find_vcoco_files(context.file, instances, ids)
        return vcoco_annotations(read_vcoco(files, context), context), files.digest()
    if isinstance(value, list):
        return parse_hoia(value, context), None
    if isinstance(value, dict) and {"filenames", "annotation"} <= value.keys():
        return parse_instances(value, context), None
    if isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys():
        return parse_coco(value, context), None
    found = f"an object with {', '.join(value) or 'nothing'}" if isinstance(value, dict) else value
    raise bad_field(context.file, "file", KNOWN_FORMATS, found)


NON_UTF8_NAME = "images whose names are no UTF-8 (left out)"


def load_image_folder(folder: Path, part: str) -> AnnotationFile:
    """The images in a folder, by their endings, in the order of their names; hidden files and
    folders in it are left out.

    Args:
        folder: the images folder.
        part: the dataset part that it is.

    Returns:
        An annotation without box or label for each; the digest is that of the names. Images
        whose names are no UTF-8 are left out and counted.

    Raises:
        InputError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and path.is_file()
    )
    names = [name for name in found if is_utf8(name)]
    if not names:
        raise InputError(f"{folder}: expected at least one image, found none")
    odd = [ascii(name) for name in found if not is_utf8(name)]
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    return AnnotationFile(
        path=folder,
        annotations=tuple(Annotation(name, *nothing) for name in names),
        issues=Counter({NON_UTF8_NAME: len(odd)} if odd else ()),
        digest=sha256_of_json(names),
        part=part,
        examples={NON_UTF8_NAME: f"{folder}: {odd[0]}"} if odd else {},
        boxes_only=True,
    )
