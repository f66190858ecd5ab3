"""Dataset folders: described by a `dataset.toml`, or in one of the published layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeGuard, TypeVar

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict

from pipeline.annotations.base import ParseContext, annotation_to_upright
from pipeline.annotations.load import AnnotationFile, load_annotations, load_image_folder
from pipeline.annotations.swig import SwigImage
from pipeline.annotations.vcoco import (
    VcocoGroundTruth,
    VcocoImage,
    find_vcoco_files,
    is_actions_file,
    read_vcoco,
)
from pipeline.boxes import boxes_to_stored, boxes_to_upright
from pipeline.datasets.layouts import DATASET_FILE, LAYOUTS, STORED, UPRIGHT, PartPaths, find_layout
from pipeline.datasets.size_check import SidewaysImages, find_sideways_images, stale_exif_message
from pipeline.images import IgnoreExifPath, ImageHeader, read_headers
from pipeline.types import Detections, ImageRecord
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_toml
from pipeline.utils.schema import MISSING, Text, convert
from pipeline.vocabulary import BUILTIN_VOCABULARIES, Vocabulary, load_vocabulary

Item = TypeVar("Item", Detections, VcocoImage, SwigImage)
# Annotation files of all layouts lie at most this many folders below the dataset folder.
MAX_DEPTH = 4


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset folder.

    Attributes:
        root: the folder.
        name: name for messages and reports.
        vocabulary: verbs, objects and interactions of the annotations.
        parts: paths of "train" and "test", as far as the dataset has them.
        detector: weights of the default detector; None if the dataset names none.
        teacher: folder of the default teacher; None if the dataset names none.
        orientation: "upright" or "stored": the pixels that boxes in files refer to, whether
            annotations, proposals or predictions. Boxes in memory are always upright.
        has_orientation: `dataset.toml` sets the orientation; otherwise it is the default.
        headers: cache of image headers by path and whether the image was decoded too.
        stale_exif: message why the EXIF tags of a part's images are not applied, by part.
        sideways: cache of the statistics behind `stale_exif`, by part.
    """

    root: Path
    name: str
    vocabulary: Vocabulary
    parts: dict[str, PartPaths]
    detector: Path | None = None
    teacher: Path | None = None
    orientation: str = UPRIGHT
    has_orientation: bool = False
    headers: dict[tuple[Path, bool], ImageHeader | InputError] = field(default_factory=dict)
    stale_exif: dict[str, str] = field(default_factory=dict)
    sideways: dict[str, SidewaysImages] = field(default_factory=dict)

    def part(self, name: str) -> PartPaths:
        """Paths of one part.

        Raises:
            InputError: the dataset has no such part.
        """
        if name not in self.parts:
            have = " and ".join(self.parts)
            raise InputError(f"{self.root}: expected a part named {name}, found {have}")
        part = self.parts[name]
        if name in self.stale_exif:
            return replace(part, images=IgnoreExifPath(part.images))
        return part

    def load(self, part: str, strict: bool = False, lenient: bool = False) -> AnnotationFile:
        """Annotations of a part, boxes in pixels of the upright images.

        A part without annotation file has an empty annotation for every image of its folder. Boxes
        in stored pixels are rotated as the EXIF tags say, unless the tags are left over from an
        earlier orientation (see `pipeline.datasets.size_check`). `strict` and `lenient` are as in
        `load_annotations`.

        Raises:
            InputError: there is no such part, its annotation file is missing or wrong, or boxes
                that should be in stored pixels fit the upright images only.
        """
        paths = self.part(part)
        if paths.annotations is None:
            return load_image_folder(paths.images, part)
        loaded = load_annotations(
            paths.annotations, self.vocabulary, part, strict, paths.instances, paths.ids, lenient
        )
        if self.orientation == UPRIGHT:
            return loaded
        names = [annotation.image_id for annotation in loaded.annotations]
        if part not in self.stale_exif:
            self._detect_stale_exif(part, loaded, self.read_headers(part, names))
        context = ParseContext(
            loaded.path,
            self.vocabulary,
            strict,
            lenient,
            loaded.issues,
            loaded.entry_errors,
            loaded.examples,
        )
        turned = [
            annotation_to_upright(annotation, header, context)
            if _needs_rotation(header)
            else annotation
            for annotation, header in zip(
                loaded.annotations, self.read_headers(part, names), strict=True
            )
        ]
        with context.catch_errors():
            context.check_format()
        # Teacher outputs for boxes of one orientation are useless for the other, so the digest,
        # which caches store, must differ.
        digest = f"{STORED} {loaded.digest}"
        swig_images = tuple(
            self._convert(
                part, loaded.swig_images, [one.name for one in loaded.swig_images], _to_upright
            )
        )
        return replace(loaded, annotations=tuple(turned), digest=digest, swig_images=swig_images)

    def _detect_stale_exif(
        self, part: str, loaded: AnnotationFile, headers: Sequence[ImageHeader | InputError]
    ) -> None:
        """Decides from all parts together whether the EXIF tags of a part are left over.

        Raises:
            InputError: the part's boxes fit the upright images only.
        """
        person = self.vocabulary.person
        self.sideways[part] = find_sideways_images(loaded.annotations, headers, person)
        if not self.sideways[part].num_images:
            return
        self.sideways[part].check(loaded.path)
        for name, paths in self.parts.items():
            if name in self.sideways or paths.annotations is None:
                continue
            try:
                other = load_annotations(
                    paths.annotations,
                    self.vocabulary,
                    name,
                    instances=paths.instances,
                    ids=paths.ids,
                    lenient=True,
                ).annotations
            except InputError:
                # The error is raised when that part is loaded.
                continue
            other_headers = self.read_headers(name, [item.image_id for item in other])
            self.sideways[name] = find_sideways_images(other, other_headers, person)
        if message := stale_exif_message(self.sideways.values()):
            self.stale_exif[part] = f"{self.parts[part].images}: {message}"

    def read_headers(
        self, part: str, names: Sequence[str], decode: bool = False
    ) -> list[ImageHeader | InputError]:
        """Header of each image of a part, or the error if it cannot be read.

        Every file is read only once. `decode` is that of `pipeline.images.read_header`.
        """
        folder = self.parts[part].images
        paths = [folder / name for name in names]
        known = self.headers
        if not decode:
            # Headers that were read together with the pixels serve as well.
            known = {(path, False): header for (path, _), header in known.items()}
        new = [path for path in dict.fromkeys(paths) if (path, decode) not in known]
        title = f"reading {part} images" if decode else f"reading sizes of {part} images"
        read = {
            (path, decode): header
            for path, header in zip(new, read_headers(new, title, decode), strict=True)
        }
        self.headers.update(read)
        known = {**known, **read}
        headers = [known[path, decode] for path in paths]
        if part not in self.stale_exif:
            return headers
        return [
            replace(header, orientation=1) if _needs_rotation(header) else header
            for header in headers
        ]

    def detections_to_upright(
        self, part: str, detections: Sequence[Detections]
    ) -> list[Detections]:
        """Detections read from a file, with boxes in pixels of the upright images."""
        return self._convert(part, detections, [one.image_id for one in detections], _to_upright)

    def detections_to_file(self, part: str, detections: Sequence[Detections]) -> list[Detections]:
        """Detections for a file, with boxes in the pixels that `orientation` names."""
        return self._convert(part, detections, [one.image_id for one in detections], _to_stored)

    def _convert(
        self,
        part: str,
        items: Sequence[Item],
        names: Sequence[str],
        convert_boxes: Callable[[np.ndarray, ImageHeader], np.ndarray],
    ) -> list[Item]:
        """Items with boxes of images in the other orientation, if boxes in files are as stored."""
        if self.orientation == UPRIGHT:
            return list(items)
        return [
            replace(item, boxes=convert_boxes(item.boxes, header))
            if isinstance(header, ImageHeader)
            else item
            for item, header in zip(items, self.read_headers(part, names), strict=True)
        ]

    def vcoco_ground_truth(self, part: str) -> VcocoGroundTruth | None:
        """Ground truth of V-COCO's protocol; None if the part has no official V-COCO files.

        Raises:
            InputError: there is no such part, or one of its files is missing or wrong.
        """
        files = self.part(part)
        if files.annotations is None or not self.vocabulary.roles:
            return None
        if not is_actions_file(files.annotations):
            return None
        official = find_vcoco_files(files.annotations, files.instances, files.ids)
        truth = read_vcoco(official, ParseContext(official.actions, self.vocabulary))
        names = [image.name for image in truth.images]
        return replace(truth, images=tuple(self._convert(part, truth.images, names, _to_upright)))

    def records(self, annotations: AnnotationFile | str) -> list[ImageRecord]:
        """The annotated images of a part (or of a `load` result), in the order of the file.

        Raises:
            InputError: the folder or an image is missing; names the first missing image and the
                number of all.
        """
        if isinstance(annotations, str):
            annotations = self.load(annotations)
        folder = self.part(annotations.part).images
        missing = missing_images(folder, annotations)
        if missing:
            raise InputError(
                f"{folder / missing[0]}: no such image, named in {annotations.path}"
                f" ({len(missing)} of {len(annotations.annotations)} images are missing)"
            )
        return [
            ImageRecord(annotation.image_id, folder / annotation.image_id)
            for annotation in annotations.annotations
        ]


def _to_upright(boxes: np.ndarray, header: ImageHeader) -> np.ndarray:
    return boxes_to_upright(boxes, header.orientation, header.stored_size)


def _to_stored(boxes: np.ndarray, header: ImageHeader) -> np.ndarray:
    return boxes_to_stored(boxes, header.orientation, header.size)


def _needs_rotation(header: ImageHeader | InputError) -> TypeGuard[ImageHeader]:
    """Whether an image could be read and has an EXIF orientation other than upright."""
    return isinstance(header, ImageHeader) and header.orientation != 1


def missing_images(folder: Path, annotations: AnnotationFile) -> list[str]:
    """File names of annotated images that are not in the folder, which has to exist."""
    names = list_file_names(folder)
    return [
        annotation.image_id
        for annotation in annotations.annotations
        if annotation.image_id not in names and not (folder / annotation.image_id).is_file()
    ]


def list_file_names(folder: Path) -> set[str]:
    """Names of the files in an images folder; on network file systems faster than single queries.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    return {path.name for path in folder.iterdir()}


def open_dataset(root: Path | str) -> Dataset:
    """Opens a dataset folder. Annotations and images are read only when they are used.

    Raises:
        InputError: there is no such folder, it has neither a `dataset.toml` nor a known layout, or
            an entry of `dataset.toml` is wrong.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such dataset folder")
    if (root / DATASET_FILE).is_file():
        return _dataset_from_toml(root, root / DATASET_FILE)
    layout = find_layout(root)
    if layout is None:
        names = ", ".join(layout.title for layout in LAYOUTS)
        raise InputError(
            f"{root}: expected {DATASET_FILE} or a known layout ({names}), found neither"
        )
    return Dataset(root, layout.name, load_vocabulary(layout.vocabulary), layout.find_parts(root))


def find_enclosing_dataset(annotations: Path, part: str) -> Dataset | None:
    """The dataset around a part's annotation file; None if no folder above is its dataset."""
    file = annotations.resolve()
    for folder in list(file.parents)[:MAX_DEPTH]:
        try:
            dataset = open_dataset(folder)
        except InputError:
            continue
        found = dataset.parts.get(part)
        # A folder with annotations alone matches a layout too, but it has no images.
        if found is None or found.annotations is None or not found.images.is_dir():
            continue
        if found.annotations.resolve() == file:
            return dataset
    return None


class _Part(Struct, forbid_unknown_fields=True):
    images: Text
    annotations: Text | None = None
    instances: Text | None = None
    ids: Text | None = None


class _DatasetFile(Struct, forbid_unknown_fields=True):
    """Content of `dataset.toml`; paths are relative to its folder."""

    vocabulary: Text
    name: Text | None = None
    orientation: Literal["upright", "stored"] | None = None
    detector: Text | None = None
    teacher: Text | None = None
    train: _Part | None = None
    test: _Part | None = None


def _dataset_from_toml(root: Path, file: Path) -> Dataset:
    content = convert(read_toml(file), _DatasetFile, file)
    parts = {}
    for name, part in (("train", content.train), ("test", content.test)):
        if part is None:
            continue
        if part.annotations is None and (part.instances or part.ids):
            raise bad_field(file, f"{name}.annotations", "a text", MISSING)
        paths = {key: root / path for key, path in asdict(part).items() if path}
        parts[name] = PartPaths(**paths)
    if not parts:
        raise bad_field(file, "parts", "a table [train] or [test]", "neither")
    # The toy dataset's vocabulary had this name in version 0.1.
    if content.vocabulary == "world" and not (root / "world").is_file():
        raise bad_field(file, "vocabulary", '"toy"', '"world"; write vocabulary = "toy"')
    is_builtin = content.vocabulary in BUILTIN_VOCABULARIES
    return Dataset(
        root,
        content.name or root.resolve().name,
        load_vocabulary(content.vocabulary if is_builtin else root / content.vocabulary),
        parts,
        root / content.detector if content.detector else None,
        root / content.teacher if content.teacher else None,
        content.orientation or UPRIGHT,
        content.orientation is not None,
    )
