"""Published folder layouts of HICO-DET, V-COCO, SWIG-HOI and COCO; constants of dataset.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.annotations.vcoco import find_vcoco_files
from pipeline.utils.errors import InputError

DATASET_FILE = "dataset.toml"
# Values of `orientation`: boxes are in pixels of the upright image, its EXIF tag applied, or in
# pixels as stored in the file.
UPRIGHT, STORED = "upright", "stored"


@dataclass(frozen=True)
class PartPaths:
    """Paths of one part of a dataset.

    Attributes:
        images: folder of the images.
        annotations: annotation file; None for a part of images without annotations.
        instances, ids: COCO's boxes and the list of image ids that V-COCO's official actions file
            needs; where None, they are searched for near that file.
    """

    images: Path
    annotations: Path | None = None
    instances: Path | None = None
    ids: Path | None = None


@dataclass(frozen=True)
class Layout:
    """Folder layout of a published dataset.

    Attributes:
        name: short name of the dataset.
        title: name and typical files, for messages.
        vocabulary: name of a built-in vocabulary.
        images, annotations: for every part, candidate paths of the images folder and of the
            annotation file, relative to the dataset folder, in order of preference.
    """

    name: str
    title: str
    vocabulary: str
    images: dict[str, tuple[str, ...]]
    annotations: dict[str, tuple[str, ...]]

    def find_parts(self, root: Path) -> dict[str, PartPaths]:
        """Parts whose annotation file exists; their images folder may be missing."""
        parts = {}
        for part, paths in self.annotations.items():
            files = [root / path for path in paths if (root / path).is_file()]
            # V-COCO's actions file cannot be read without COCO's boxes, so another file is better.
            files.sort(key=_lacks_boxes)
            folders = [root / path for path in self.images[part] if (root / path).is_dir()]
            if files:
                images = folders[0] if folders else root / self.images[part][0]
                parts[part] = PartPaths(images, files[0])
        return parts


def _lacks_boxes(path: Path) -> bool:
    """Whether a file is V-COCO's actions file and COCO's boxes are not near it."""
    if not path.name.startswith("vcoco_"):
        return False
    try:
        find_vcoco_files(path)
    except InputError:
        return True
    return False


def _vcoco_paths(part: str) -> tuple[str, ...]:
    """Paths of V-COCO's actions file in its repository and in common copies."""
    name = f"vcoco_{part}.json"
    folders = ("data/vcoco", "data", "vcoco")
    return (*(f"{folder}/{name}" for folder in folders), *_annotation_paths(name))


def _annotation_paths(*names: str) -> tuple[str, ...]:
    """Paths of annotation files: in `annotations`, or beside the images folder."""
    return tuple(path for name in names for path in (f"annotations/{name}", name))


def _coco_layout(year: str) -> Layout:
    folders = {"train": f"train{year}", "test": f"val{year}"}
    return Layout(
        f"coco-{year}",
        f"COCO {year} with annotations/instances_train{year}.json",
        "hico-det",
        {part: (folder, f"images/{folder}") for part, folder in folders.items()},
        {part: _annotation_paths(f"instances_{folder}.json") for part, folder in folders.items()},
    )


# COCO is read with HICO-DET's vocabulary, which has COCO's object classes.
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
    Layout(
        "swig-hoi",
        "SWIG-HOI with annotations/swig_trainval_1000.json",
        "swig-hoi",
        dict.fromkeys(("train", "test"), ("images_512", "images")),
        {
            "train": _annotation_paths("swig_trainval_1000.json", "swig_train_1000.json"),
            "test": _annotation_paths("swig_test_1000.json"),
        },
    ),
    _coco_layout("2017"),
    _coco_layout("2014"),
)


def find_layout(root: Path) -> Layout | None:
    """The first layout with an annotation file in the folder; None if there is no such layout."""
    return next((layout for layout in LAYOUTS if layout.find_parts(root)), None)
