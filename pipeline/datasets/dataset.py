"""Dataset folders: described by a `dataset.toml`, or in one of the published layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from pipeline.annotations.base import ParseContext, annotation_to_upright
from pipeline.annotations.box_format import MAX_WRONG_SHARE, far_outside_mask
from pipeline.annotations.load import AnnotationFile, load_annotations, load_image_folder
from pipeline.annotations.vcoco import (
    VcocoGroundTruth,
    find_vcoco_files,
    is_actions_file,
    read_vcoco,
)
from pipeline.boxes import boxes_to_stored, boxes_to_upright
from pipeline.images import FIRST_SIDEWAYS, IgnoreExifPath, ImageHeader, read_headers
from pipeline.types import Detections, ImageRecord
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_toml
from pipeline.vocabulary import BUILTIN_VOCABULARIES, Vocabulary, load_vocabulary

DATASET_FILE = "dataset.toml"
PARTS = ("train", "test")
DATASET_KEYS = ("name", "vocabulary", "orientation", "detector", "teacher", *PARTS)
# What the boxes of a picture that its EXIF tag turns are measured in: the upright picture, or the
# pixels as they lie in the file.
UPRIGHT, STORED = "upright", "stored"
# So many people, and a mean of so many standard errors, tell how they stand.
MIN_PEOPLE, MIN_STANDARD_ERRORS = 10, 3
# No layout keeps its annotations deeper than this.
MAX_DEPTH = 4
PART_KEYS = ("images", "annotations", "instances", "ids")


@dataclass(frozen=True)
class SidewaysImages:
    """What tells how boxes of a part's pictures are meant that EXIF tags lay on their sides.

    Attributes:
        log_aspect_ratios: (P,) logarithm of height by width of the labelled people, as stored.
        num_images: how many there are.
        fit_upright, fit_stored: those whose declared size, or where none is declared whose
            boxes, fit the upright picture alone, and the stored one alone.
        undeclared: those of `fit_upright` that declare no size.
    """

    log_aspect_ratios: np.ndarray
    num_images: int
    fit_upright: tuple[str, ...]
    fit_stored: tuple[str, ...]
    undeclared: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset folder.

    Attributes:
        root: the folder.
        name: for people.
        vocabulary: the meaning of its verbs and objects.
        parts: images and annotations of "train" and "test", as far as there.
        detector: weights of the default detector, where named.
        teacher: folder of the default teacher, where named.
        orientation: "upright" or "stored": which pixels the boxes of its files count in, be they
            annotations, proposals or predictions. In memory boxes are always upright.
        has_orientation: `dataset.toml` says it, so that nothing is assumed.
        headers: of the pictures read so far, by path and whether they were decoded too.
        stale_exif: why the EXIF tags of a part's pictures are not applied, for people, by part.
        sideways: what tells how boxes in stored pixels are meant, by part, as far as looked at.
    """

    root: Path
    name: str
    vocabulary: Vocabulary
    parts: dict[str, DatasetPart]
    detector: Path | None = None
    teacher: Path | None = None
    orientation: str = UPRIGHT
    has_orientation: bool = False
    headers: dict[tuple[Path, bool], ImageHeader | InputError] = field(default_factory=dict)
    stale_exif: dict[str, str] = field(default_factory=dict)
    sideways: dict[str, SidewaysImages] = field(default_factory=dict)

    def part(self, name: str) -> DatasetPart:
        """One part.

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
        """Annotations of a part; `strict` refuses issues, lenient mode counts all that is wrong.

        A part of images alone has an empty annotation for each picture in its folder. Boxes that
        count stored pixels are turned upright, which needs the pictures' headers; where the people
        in them stand as stored, and would lie on their sides once turned, the EXIF tags were left
        over when the pictures were turned, and neither boxes nor pictures are. All parts together
        tell this, unless declared sizes or boxes fit the upright pictures alone.

        Raises:
            InputError: no such part, its annotation file is missing or wrong, or its boxes fit the
                upright pictures alone where they should fit the stored ones.
        """
        files = self.part(part)
        if files.annotations is None:
            return load_image_folder(files.images, part)
        loaded = load_annotations(
            files.annotations, self.vocabulary, part, strict, files.instances, files.ids, lenient
        )
        if self.orientation == UPRIGHT:
            return loaded
        context = ParseContext(
            loaded.path,
            self.vocabulary,
            strict,
            lenient,
            loaded.issues,
            loaded.entry_errors,
            loaded.examples,
        )
        names = [one.image_id for one in loaded.annotations]
        headers = self.read_headers(part, names)
        if part not in self.stale_exif:
            self._detect_stale_exif(part, loaded, headers)
            headers = self.read_headers(part, names)
        turned = [
            annotation_to_upright(annotation, header, context)
            if _needs_rotation(header)
            else annotation
            for annotation, header in zip(loaded.annotations, headers, strict=True)
        ]
        with context.catch_errors():
            context.check_format()
        # Answers about the one kind of boxes do not fit the other.
        digest = f"{STORED} {loaded.digest}"
        return replace(loaded, annotations=tuple(turned), digest=digest)

    def _detect_stale_exif(
        self,
        part: str,
        loaded: AnnotationFile,
        headers: Sequence[ImageHeader | InputError],
    ) -> None:
        """Decides whether the EXIF tags of a part's pictures are left over; the parts of a dataset
        are read alike.

        Raises:
            InputError: boxes fit the upright pictures alone.
        """
        person = self.vocabulary.person
        self.sideways[part] = own = _find_sideways_images(loaded, headers, person)
        if not own.num_images:
            return
        if len(own.undeclared) > max(len(own.fit_stored), MAX_WRONG_SHARE * own.num_images):
            raise InputError(
                f"{loaded.path}: bbox: expected boxes of pictures as stored (orientation ="
                f' "{STORED}"), found boxes of {len(own.undeclared)} pictures that fit only after'
                f" their EXIF tag turned them, first {own.undeclared[0]}; if boxes are meant so,"
                f' set orientation = "{UPRIGHT}" in {DATASET_FILE}'
            )
        for name, other in self.parts.items():
            if name in self.sideways or other.annotations is None:
                continue
            try:
                file = load_annotations(
                    other.annotations,
                    self.vocabulary,
                    name,
                    False,
                    other.instances,
                    other.ids,
                    True,
                )
            except InputError:
                # Whoever uses that part is told.
                continue
            its_headers = self.read_headers(name, [one.image_id for one in file.annotations])
            self.sideways[name] = _find_sideways_images(file, its_headers, person)
        if line := _stale_exif_message(list(self.sideways.values())):
            self.stale_exif[part] = f"{self.parts[part].images}: {line}"

    def read_headers(
        self, part: str, names: Sequence[str], decode: bool = False
    ) -> list[ImageHeader | InputError]:
        """The headers of a part's pictures, each file read once; what is wrong in place of those
        that cannot be read.

        Args:
            part: "train" or "test".
            names: of the pictures.
            decode: also decode them, see `pipeline.images.read_header`.
        """
        folder = self.parts[part].images
        paths = [folder / name for name in names]
        known = self.headers
        if not decode:
            known = {(path, False): header for (path, _), header in known.items()}
        new = [path for path in dict.fromkeys(paths) if (path, decode) not in known]
        title = f"reading {part} pictures" if decode else f"reading sizes of {part} pictures"
        found = read_headers(new, title, decode)
        read = {(path, decode): header for path, header in zip(new, found, strict=True)}
        self.headers.update(read)
        known = {**known, **read}
        wanted = [known[path, decode] for path in paths]
        if part not in self.stale_exif:
            return wanted
        return [replace(one, orientation=1) if _needs_rotation(one) else one for one in wanted]

    def detections_to_upright(
        self, part: str, detections: Sequence[Detections]
    ) -> list[Detections]:
        """Detections of a part's pictures as they are kept in memory, from those of a file."""
        return self._convert_orientation(part, detections, to_file=False)

    def detections_to_file(self, part: str, detections: Sequence[Detections]) -> list[Detections]:
        """Detections of a part's pictures as they stand in files, from those in memory."""
        return self._convert_orientation(part, detections, to_file=True)

    def _convert_orientation(
        self, part: str, detections: Sequence[Detections], to_file: bool
    ) -> list[Detections]:
        if self.orientation == UPRIGHT:
            return list(detections)
        headers = self.read_headers(part, [one.image_id for one in detections])
        return [
            replace(
                one,
                boxes=boxes_to_stored(one.boxes, header.orientation, header.size)
                if to_file
                else boxes_to_upright(one.boxes, header.orientation, header.stored_size),
            )
            if isinstance(header, ImageHeader)
            else one
            for one, header in zip(detections, headers, strict=True)
        ]

    def vcoco_ground_truth(self, part: str) -> VcocoGroundTruth | None:
        """What V-COCO's own evaluation compares with; None where the part has no official files.

        Raises:
            InputError: no such part, or one of its files is missing or wrong.
        """
        files = self.part(part)
        if files.annotations is None or not self.vocabulary.roles:
            return None
        if not is_actions_file(files.annotations):
            return None
        official = find_vcoco_files(files.annotations, files.instances, files.ids)
        truth = read_vcoco(official, ParseContext(official.actions, self.vocabulary))
        if self.orientation == UPRIGHT:
            return truth
        headers = self.read_headers(part, [image.name for image in truth.images])
        images = [
            replace(
                image, boxes=boxes_to_upright(image.boxes, header.orientation, header.stored_size)
            )
            if isinstance(header, ImageHeader)
            else image
            for image, header in zip(truth.images, headers, strict=True)
        ]
        return replace(truth, images=tuple(images))

    def records(self, annotations: AnnotationFile | str) -> list[ImageRecord]:
        """The annotated images of a part, in the file's order.

        Args:
            annotations: what `load` returned, or the part's name.

        Raises:
            InputError: the folder or an image is missing; names the first and counts them.
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


def _needs_rotation(header: ImageHeader | InputError) -> TypeGuard[ImageHeader]:
    return isinstance(header, ImageHeader) and header.orientation != 1


def _find_sideways_images(
    loaded: AnnotationFile, headers: Sequence[ImageHeader | InputError], person: int
) -> SidewaysImages:
    """Looks at the pictures that EXIF tags lay on their sides; boxes are as they stand in files."""
    people, upright, stored, undeclared, pictures = [np.zeros((0, 4))], [], [], [], 0
    for annotation, header in zip(loaded.annotations, headers, strict=True):
        if isinstance(header, InputError) or header.orientation < FIRST_SIDEWAYS:
            continue
        pictures += 1
        people.append(annotation.boxes[annotation.labels == person])
        name, sizes = annotation.image_id, (header.size, header.stored_size)
        if annotation.size is None:
            fits = [not far_outside_mask(annotation.boxes, size).any() for size in sizes]
        else:
            fits = [annotation.size == size for size in sizes]
        if fits == [True, False]:
            upright.append(name)
            if annotation.size is None:
                undeclared.append(name)
        elif fits == [False, True]:
            stored.append(name)
    sides = np.concatenate(people)
    sides = sides[:, 2:] - sides[:, :2]
    heights = np.log(sides[:, 1] / sides[:, 0])
    return SidewaysImages(heights, pictures, tuple(upright), tuple(stored), tuple(undeclared))


def _stale_exif_message(parts: Sequence[SidewaysImages]) -> str:
    """What tells that EXIF tags were left over from before the pictures were turned: the labelled
    people are higher than wide as stored, where upright pictures would have them the other way
    round. Empty where nothing does, or where more pictures fit their annotations upright."""
    ratios = np.concatenate([part.log_aspect_ratios for part in parts])
    if sum(len(part.fit_upright) for part in parts) > sum(len(part.fit_stored) for part in parts):
        return ""
    # Of HICO-DET's people the mean is 0.4 and the deviation 0.5.
    if (
        len(ratios) < MIN_PEOPLE
        or ratios.mean() < MIN_STANDARD_ERRORS * ratios.std() / len(ratios) ** 0.5
    ):
        return ""
    return (
        f"the {len(ratios)} people labelled in {sum(part.num_images for part in parts)} pictures of"
        f" the dataset that their EXIF tags lay on their sides stand as stored,"
        f" {np.exp(ratios.mean()):.1f} times as high as wide; the tags are taken for left over and"
        " not applied"
    )


def missing_images(folder: Path, annotations: AnnotationFile) -> list[str]:
    """Names of annotated images that are not in the folder.

    Raises:
        InputError: there is no such folder.
    """
    there = list_file_names(folder)
    return [
        annotation.image_id
        for annotation in annotations.annotations
        if annotation.image_id not in there and not (folder / annotation.image_id).is_file()
    ]


def list_file_names(folder: Path) -> set[str]:
    """Names of the files in an images folder; one listing is quicker than asking for each.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    return {path.name for path in folder.iterdir()}


def open_dataset(root: Path | str) -> Dataset:
    """Opens a dataset folder; its files are read when they are asked for.

    Raises:
        InputError: no such folder, neither `dataset.toml` nor a known layout, or a wrong entry.
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
    """The dataset that an annotation file is a part of, None where it lies in none."""
    file = annotations.resolve()
    for folder in list(file.parents)[:MAX_DEPTH]:
        try:
            dataset = open_dataset(folder)
        except InputError:
            continue
        found = dataset.parts.get(part)
        # A folder of annotations alone looks like a dataset too; only the images tell it from one.
        if found is None or found.annotations is None or not found.images.is_dir():
            continue
        if found.annotations.resolve() == file:
            return dataset
    return None


def _dataset_from_toml(root: Path, file: Path) -> Dataset:
    value = read_toml(file)
    _check_keys(file, "", value, DATASET_KEYS)
    parts = {name: _read_part(root, file, name, value[name]) for name in PARTS if name in value}
    if not parts:
        raise bad_field(file, "parts", "a table [train] or [test]", "neither")
    vocabulary = _read_string(file, value, "vocabulary")
    # Version 0.1 wrote this name.
    if vocabulary == "world" and not (root / vocabulary).is_file():
        raise InputError(
            f'{file}: vocabulary: expected "toy", found "world"; write vocabulary = "toy"'
        )
    orientation = value.get("orientation", UPRIGHT)
    if orientation not in (UPRIGHT, STORED):
        raise bad_field(file, "orientation", f'"{UPRIGHT}" or "{STORED}"', orientation)
    detector, teacher = (
        root / _read_string(file, value, key) if key in value else None
        for key in ("detector", "teacher")
    )
    return Dataset(
        root,
        _read_string(file, value, "name") if "name" in value else root.resolve().name,
        load_vocabulary(vocabulary if vocabulary in BUILTIN_VOCABULARIES else root / vocabulary),
        parts,
        detector,
        teacher,
        orientation,
        "orientation" in value,
    )


def _read_part(root: Path, file: Path, name: str, value: Any) -> DatasetPart:
    if not isinstance(value, dict):
        raise bad_field(file, name, "a table with images and annotations", value)
    _check_keys(file, f"{name}.", value, PART_KEYS)
    # Whatever else is named belongs to annotations; pictures may come without any.
    for needed in PART_KEYS[: 2 if len(value) > 1 else 1]:
        _read_string(file, value, needed, f"{name}.")
    paths = {key: root / _read_string(file, value, key, f"{name}.") for key in value}
    return DatasetPart(**paths)


def _check_keys(file: Path, table: str, value: dict[str, Any], fields: tuple[str, ...]) -> None:
    for key in value:
        if key not in fields:
            raise bad_field(file, f"{table}{key}", f"only {', '.join(fields)}", "an unknown field")


def _read_string(file: Path, value: dict[str, Any], key: str, table: str = "") -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        found = "nothing (the key is missing)" if key not in value else text
        raise bad_field(file, f"{table}{key}", "a text", found)
    return text


@dataclass(frozen=True)
class DatasetPart:
    """Where one part of a dataset lies.

    Attributes:
        images: folder of the images.
        annotations: annotation file; None for images that nobody annotated.
        instances, ids: the files that belong to V-COCO's official actions; None looks for them
            around these.
    """

    images: Path
    annotations: Path | None = None
    instances: Path | None = None
    ids: Path | None = None


@dataclass(frozen=True)
class Layout:
    """A way in which a dataset's files are published.

    Attributes:
        name, title: short, and for people.
        vocabulary: a shipped one.
        images, annotations: by part, the places where they may lie, the preferred one first.
    """

    name: str
    title: str
    vocabulary: str
    images: dict[str, tuple[str, ...]]
    annotations: dict[str, tuple[str, ...]]

    def find_parts(self, root: Path) -> dict[str, DatasetPart]:
        """The parts whose annotation file is there; an absent images folder is found out later."""
        parts = {}
        for part, places in self.annotations.items():
            files = [root / place for place in places if (root / place).is_file()]
            # Actions without COCO's boxes are of no use, where there is something else.
            files.sort(key=_lacks_boxes)
            folders = [root / place for place in self.images[part] if (root / place).is_dir()]
            if files:
                images = folders[0] if folders else root / self.images[part][0]
                parts[part] = DatasetPart(images, files[0])
        return parts


def _lacks_boxes(path: Path) -> bool:
    """V-COCO's official actions without the files that belong to them."""
    if not path.name.startswith("vcoco_"):
        return False
    try:
        find_vcoco_files(path)
    except InputError:
        return True
    return False


def _vcoco_paths(part: str) -> tuple[str, ...]:
    """Where V-COCO's actions lie in its repository, and where people copy them."""
    name = f"vcoco_{part}.json"
    folders = ("data/vcoco", "data", "vcoco")
    return (*(f"{folder}/{name}" for folder in folders), *_annotation_paths(name))


def _annotation_paths(*names: str) -> tuple[str, ...]:
    """Files that some keep in `annotations` and others beside the images folder."""
    return tuple(place for name in names for place in (f"annotations/{name}", name))


def _coco_layout(year: str) -> Layout:
    folders = {"train": f"train{year}", "test": f"val{year}"}
    return Layout(
        f"coco-{year}",
        f"COCO {year} with annotations/instances_train{year}.json",
        "hico-det",
        {part: (folder, f"images/{folder}") for part, folder in folders.items()},
        {part: _annotation_paths(f"instances_{folder}.json") for part, folder in folders.items()},
    )


# HICO-DET's object classes are COCO's, so its vocabulary reads COCO's boxes.
LAYOUTS = (
    Layout(
        "hico-det",
        "HICO-DET with annotations/trainval_hico.json, instances_train2015.json or anno_bbox.mat",
        "hico-det",
        {
            part: (f"images/{part}2015", f"hico_20160224_det/images/{part}2015")
            for part in ("train", "test")
        },
        {
            "train": _annotation_paths(
                "trainval_hico.json", "instances_train2015.json", "anno_bbox.mat"
            ),
            "test": _annotation_paths("test_hico.json", "instances_test2015.json", "anno_bbox.mat"),
        },
    ),
    Layout(
        "v-coco",
        "V-COCO with data/vcoco/vcoco_trainval.json or annotations/trainval_vcoco.json",
        "vcoco",
        {
            part: tuple(f"{folder}{name}" for folder in ("images/", "", "coco/images/", "coco/"))
            for part, name in (("train", "train2014"), ("test", "val2014"))
        },
        {
            "train": _vcoco_paths("trainval") + _annotation_paths("trainval_vcoco.json"),
            "test": _vcoco_paths("test") + _annotation_paths("test_vcoco.json"),
        },
    ),
    _coco_layout("2017"),
    _coco_layout("2014"),
)


def find_layout(root: Path) -> Layout | None:
    """The first layout of which the folder holds an annotation file."""
    return next((layout for layout in LAYOUTS if layout.find_parts(root)), None)
