"""The published layouts of dataset folders that need no `dataset.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.annotations.vcoco_files import vcoco_files
from pipeline.errors import InputError


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

    def find(self, root: Path) -> dict[str, DatasetPart]:
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
        vcoco_files(path)
    except InputError:
        return True
    return False


def _official(part: str) -> tuple[str, ...]:
    """Where V-COCO's actions lie in its repository, and where people copy them."""
    name = f"vcoco_{part}.json"
    folders = ("data/vcoco", "data", "vcoco")
    return (*(f"{folder}/{name}" for folder in folders), *_in_both(name))


def _in_both(*names: str) -> tuple[str, ...]:
    """Files that some keep in `annotations` and others beside the images folder."""
    return tuple(place for name in names for place in (f"annotations/{name}", name))


def _coco(year: str) -> Layout:
    folders = {"train": f"train{year}", "test": f"val{year}"}
    return Layout(
        f"coco-{year}",
        f"COCO {year} with annotations/instances_train{year}.json",
        "hico-det",
        {part: (folder, f"images/{folder}") for part, folder in folders.items()},
        {part: _in_both(f"instances_{folder}.json") for part, folder in folders.items()},
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
            "train": _in_both("trainval_hico.json", "instances_train2015.json", "anno_bbox.mat"),
            "test": _in_both("test_hico.json", "instances_test2015.json", "anno_bbox.mat"),
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
            "train": _official("trainval") + _in_both("trainval_vcoco.json"),
            "test": _official("test") + _in_both("test_vcoco.json"),
        },
    ),
    _coco("2017"),
    _coco("2014"),
)


def find_layout(root: Path) -> Layout | None:
    """The first layout of which the folder holds an annotation file."""
    return next((layout for layout in LAYOUTS if layout.find(root)), None)
