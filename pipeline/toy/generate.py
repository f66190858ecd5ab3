"""Writes the toy dataset as a dataset folder in HICO-DET's or SWIG-HOI's layout, in several
processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from pipeline.toy.canvas import IMAGE_SIZE
from pipeline.toy.scene import draw_scene
from pipeline.toy.scene_spec import toy_vocabulary
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json, write_text
from pipeline.utils.progress import Progress
from pipeline.utils.signals import defer_interrupts

Result = TypeVar("Result")
PLAN_FILE, DATASET_FILE = "toy.json", "dataset.toml"
# Images folder and annotation file of every part, by layout.
LAYOUTS = {
    "hico": {
        "train": ("images/train2015", "annotations/trainval_hico.json"),
        "test": ("images/test2015", "annotations/test_hico.json"),
    },
    "swig": {
        "train": ("images_512", "annotations/swig_trainval_1000.json"),
        "test": ("images_512", "annotations/swig_test_1000.json"),
    },
}
# To be increased whenever a change of the code changes the images of a seed.
DRAWING_VERSION = 2
CHUNK_SIZE = 50
# Starting worker processes takes longer than drawing fewer images than this.
MIN_IMAGES_FOR_WORKERS = 200


def write_toy(
    root: Path | str,
    train: int,
    test: int,
    seed: int,
    overwrite: bool = False,
    workers: int | None = None,
    layout: str = "hico",
) -> bool:
    """Draws the toy dataset into a folder. `dataset.toml` is written last and marks it as complete.

    The images of an interrupted call are drawn again. The files do not depend on the number of
    workers.

    Args:
        root: a new or empty folder, or one with a toy dataset.
        train, test: numbers of images.
        seed: random seed.
        overwrite: replace another toy dataset.
        workers: number of processes; None for one per usable core.
        layout: of the files, one of `LAYOUTS`.

    Returns:
        Whether the dataset was written; False if the folder already contains the same one.

    Raises:
        InputError: a number is out of range, the folder cannot be created, or it contains other
            files or another toy dataset that must not be overwritten.
    """
    root = Path(root)
    for name, number, least in (("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        if number < least:
            raise InputError(f"{name}: expected a number from {least} on, found {number}")
    plan: dict[str, Any] = {"drawing": DRAWING_VERSION, "seed": seed, "train": train, "test": test}
    if layout != "hico":
        # Plans of earlier versions have no layout.
        plan["layout"] = layout
    parts = LAYOUTS[layout]
    if _is_written(root, plan, overwrite):
        return False
    try:
        for folder in ("annotations", *(folder for folder, _ in parts.values())):
            (root / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root}: cannot be created ({error.strerror})") from None
    (root / DATASET_FILE).unlink(missing_ok=True)
    for folder, file in {path for paths in LAYOUTS.values() for path in paths.values()}:
        for path in (root / folder).glob("toy_*.jpg"):
            path.unlink()
        (root / file).unlink(missing_ok=True)
    write_json(root / PLAN_FILE, plan)
    for part, count in (("train", train), ("test", test)):
        images, annotations = parts[part]
        write = partial(_write_images, root / images, part, seed, layout)
        chunks = map_chunks(write, count, f"toy, {part}", workers)
        write_json(root / annotations, [entry for chunk in chunks for entry in chunk])
    lines = ['name = "toy"', 'vocabulary = "toy"']
    for part, (images, annotations) in parts.items():
        lines += ["", f"[{part}]", f'images = "{images}"', f'annotations = "{annotations}"']
    write_text(root / DATASET_FILE, "\n".join(lines) + "\n")
    return True


def _is_written(root: Path, plan: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder contains the complete toy dataset of this plan.

    Raises:
        InputError: the folder contains another toy dataset that must not be overwritten, or other
            files.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: expected a folder, found a file")
    if not root.exists() or not any(root.iterdir()):
        return False
    if not (root / PLAN_FILE).is_file():
        raise InputError(f"{root}: expected a new folder or a toy dataset, found other files")
    found = read_json(root / PLAN_FILE)
    if found != plan and not overwrite:
        raise InputError(
            f"{root}: expected a toy dataset with {plan}, found one with {found}; give --overwrite"
            " to replace it"
        )
    return found == plan and (root / DATASET_FILE).is_file() and not overwrite


def map_chunks(
    function: Callable[[range], Result], count: int, title: str, workers: int | None = None
) -> Iterator[Result]:
    """Results of a function of `CHUNK_SIZE` image indices, in order, with a progress bar.

    Args:
        function: called with consecutive ranges of `range(count)`, in worker processes if there are
            many images.
        count: number of images.
        title: name of the work.
        workers: number of processes; None for one per usable core.
    """
    chunks = [range(start, min(start + CHUNK_SIZE, count)) for start in range(0, count, CHUNK_SIZE)]
    with Progress(count, title, "images") as progress:
        if workers == 1 or count < MIN_IMAGES_FOR_WORKERS:
            for chunk in chunks:
                yield function(chunk)
                progress.update(len(chunk))
            return
        # Worker processes start faster without torch, which this module imports.
        from pipeline.utils.devices import num_usable_cores

        with ProcessPoolExecutor(workers or num_usable_cores(), get_context("spawn")) as pool:
            try:
                # The worker processes start here, with SIGINT blocked.
                with defer_interrupts():
                    results = pool.map(function, chunks)
                for chunk, result in zip(chunks, results, strict=True):
                    yield result
                    progress.update(len(chunk))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_images(
    folder: Path, part: str, seed: int, layout: str, indices: range
) -> list[dict[str, Any]]:
    """Draws images of a part and returns the entries of its annotation file."""
    entries = []
    for index in indices:
        image, annotation = draw_scene(seed, part, index)
        image.save(folder / annotation.image_id, "JPEG", quality=95, subsampling=0)
        entry = to_hoia_entry(annotation)
        entries.append(entry if layout == "hico" else to_swig_entry(entry, index + 1))
    return entries


def to_hoia_entry(annotation: Annotation) -> dict[str, Any]:
    """An image's entry of a HOIA file: COCO-style category ids, 1-based verbs and interactions."""
    vocabulary = toy_vocabulary()
    interactions = vocabulary.interaction_ids
    return {
        "file_name": annotation.image_id,
        "width": IMAGE_SIZE,
        "height": IMAGE_SIZE,
        "annotations": [
            {
                "bbox": [round(float(number), 2) for number in box],
                "category_id": vocabulary.category_ids[label],
            }
            for box, label in zip(annotation.boxes, annotation.labels, strict=True)
        ],
        "hoi_annotation": [
            {
                "subject_id": int(person),
                "object_id": int(obj),
                "category_id": int(verb) + 1,
                "hoi_category_id": int(interactions[verb, annotation.labels[obj]]) + 1,
            }
            for person, obj, verb in annotation.hois
        ],
    }


def to_swig_entry(entry: dict[str, Any], number: int) -> dict[str, Any]:
    """An image's entry of a file of SWIG-HOI, with 0-based actions, from that of a HOIA file."""
    return {
        "file_name": entry["file_name"],
        "img_id": number,
        "width": entry["width"],
        "height": entry["height"],
        "box_annotations": [{**box, "aux_category_id": []} for box in entry["annotations"]],
        "hoi_annotations": [
            {
                "subject_id": label["subject_id"],
                "object_id": label["object_id"],
                "action_id": label["category_id"] - 1,
            }
            for label in entry["hoi_annotation"]
        ],
    }
