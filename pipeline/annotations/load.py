"""Loads annotation files of every known format, which is recognised by the content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.base import BOX_OUT_OF_BOUNDS, ParseContext, format_issues, is_utf8
from pipeline.annotations.coco import parse_coco
from pipeline.annotations.hico import parse_anno_bbox, parse_hoia, parse_instances
from pipeline.annotations.swig import SwigImage, is_swig, parse_swig
from pipeline.annotations.vcoco import find_vcoco_files, read_vcoco, vcoco_annotations
from pipeline.images import IMAGE_EXTENSIONS, unread_images
from pipeline.types import Annotation
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, sha256_of_file, sha256_of_json
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary

KNOWN_FORMATS = (
    "a list of images (trainval_hico.json, swig_trainval_1000.json) or of actions"
    " (vcoco_trainval.json), an object with filenames and annotation (instances_train2015.json)"
    " or with images, annotations and categories (COCO)"
)


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """Content of an annotation file.

    Attributes:
        path: path of the file, or of the images folder if there is no annotation file.
        annotations: one for each annotated image, in the order of the file.
        issues: number of repaired issues (clipped boxes, dropped labels) by kind.
        digest: SHA-256 of the file, or of all files that belong to it; see also `limited`.
        part: the dataset part it was read for.
        unlabelled: names of images without any labelled pair, in formats that list labelled images;
            they are not in `annotations`.
        entry_errors: number of wrong entries by kind that lenient mode left out.
        examples: error message of the first issue or wrong entry of each kind.
        boxes_only: files of this format contain no interactions.
        limit: number of images to which `annotations` were limited; None for all of them.
        swig_images: of SWIG-HOI's files the labels as they stand in the file, for its scores.
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
    limit: int | None = None
    swig_images: tuple[SwigImage, ...] = ()

    @property
    def num_labels(self) -> int:
        """Number of labelled pairs and verbs in all images."""
        return sum(len(annotation.hois) for annotation in self.annotations)

    def require_labels(self) -> None:
        """Raises:
        InputError: there is no label; names the issues that labels were dropped for.
        """
        if not self.num_labels:
            # Clipped boxes keep their labels.
            dropped = ", ".join(
                count_noun(count, kind)
                for kind, count in self.issues.items()
                if kind != BOX_OUT_OF_BOUNDS
            )
            found = f"none that is valid: {dropped}" if dropped else "none"
            raise bad_field(self.path, "file", "labelled interactions", found)

    def limited(self, limit: int | None) -> AnnotationFile:
        """The annotations of `limit` images only, at equal distances in the file's order.

        Images next to each other are often of one kind, so that the first ones would not represent
        the dataset. The digest gets the prefix `limit N `, because what is made of a few images
        must not pass for the whole. Without a limit, or with fewer images, nothing changes.
        """
        total = len(self.annotations)
        if limit is None or limit >= total:
            return self
        chosen = tuple(self.annotations[row * total // limit] for row in range(limit))
        digest = f"limit {limit} {self.digest}"
        names = {annotation.image_id for annotation in chosen}
        swig_images = tuple(image for image in self.swig_images if image.name in names)
        return replace(
            self, annotations=chosen, digest=digest, limit=limit, swig_images=swig_images
        )

    def format_issues(self) -> str:
        """One line about the issues that were repaired; empty without issues."""
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
    """Reads an annotation file of any known format.

    Args:
        path: HOIA JSON, `instances_*.json` or the official `anno_bbox.mat` of HICO-DET, V-COCO's
            official actions file, SWIG-HOI's JSON, or COCO instances (boxes only).
        vocabulary: defines the object and verb indices of the result.
        part: "train" or "test"; `anno_bbox.mat` contains both.
        strict: raise an error for issues that are otherwise repaired and counted.
        instances, ids: further files of V-COCO, see `find_vcoco_files`.
        lenient: leave wrong entries out and count them, and count issues in spite of `strict`.

    Raises:
        InputError: the file is missing or has no known format, an entry is structurally wrong, or
            there is an issue under `strict`; names file, image and field.
    """
    path = Path(path)
    context = ParseContext(path, vocabulary, strict, lenient)
    digest, boxes_only = None, False
    swig_images: tuple[SwigImage, ...] = ()
    if path.suffix.lower() == ".mat":
        annotations = parse_anno_bbox(part, context)
    elif is_swig(value := read_json(path)):
        annotations, swig_images = parse_swig(value, context)
    else:
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
        swig_images=swig_images,
    )


def _parse_json(
    value: Any, context: ParseContext, instances: Path | None, ids: Path | None
) -> tuple[list[Annotation], str | None]:
    """Annotations of a JSON file, and the digest if several files belong to it."""
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


NON_UTF8_NAME = "images whose names are not UTF-8 (left out)"


def load_image_folder(folder: Path, part: str) -> AnnotationFile:
    """Empty annotations for the images of a folder, sorted by name; the digest is of the names.

    Images are recognised by their endings; hidden files and subfolders are skipped. Images whose
    names are not UTF-8 are left out and counted as issues.

    Raises:
        InputError: there is no such folder, or it contains no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    paths = list(folder.iterdir())
    unread, unread_kind = unread_images(paths)
    found = sorted(
        path.name
        for path in paths
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and path.is_file()
    )
    names = [name for name in found if is_utf8(name)]
    if not names:
        others = f" but {count_noun(len(unread), unread_kind)}" if unread else ""
        raise InputError(f"{folder}: expected at least one image, found none{others}")
    skipped = [ascii(name) for name in found if not is_utf8(name)]
    issues, examples = Counter[str](), {}
    if skipped:
        issues[NON_UTF8_NAME], examples[NON_UTF8_NAME] = len(skipped), f"{folder}: {skipped[0]}"
    if unread:
        issues[unread_kind], examples[unread_kind] = len(unread), str(min(unread))
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    return AnnotationFile(
        path=folder,
        annotations=tuple(Annotation(name, *empty) for name in names),
        issues=issues,
        digest=sha256_of_json(names),
        part=part,
        examples=examples,
        boxes_only=True,
    )
