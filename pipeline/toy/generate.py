"""Writes the toy dataset as a dataset folder in HICO-DET's layout, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.toy.canvas import IMAGE_SIZE
from pipeline.toy.scene import draw_scene
from pipeline.toy.scene_spec import toy_vocabulary
from pipeline.types import Annotation
from pipeline.utils.devices import num_usable_cores
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json, write_text
from pipeline.utils.progress import Progress
from pipeline.utils.signals import ignore_interrupts

# Images folder and annotation file of every part, as in HICO-DET.
PART_PATHS = {
    "train": ("images/train2015", "annotations/trainval_hico.json"),
    "test": ("images/test2015", "annotations/test_hico.json"),
}
PLAN_FILE, DATASET_FILE = "toy.json", "dataset.toml"
# To be increased whenever a change of the code changes the images of a seed.
DRAWING_VERSION = 1
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

    Returns:
        Whether the dataset was written; False if the folder already contains the same one.

    Raises:
        InputError: a number is out of range, or the folder contains other files or another toy
            dataset that must not be overwritten.
    """
    root = Path(root)
    for name, number, least in (("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        if number < least:
            raise InputError(f"{name}: expected a number from {least} on, found {number}")
    plan = {"drawing": DRAWING_VERSION, "seed": seed, "train": train, "test": test}
    if _is_written(root, plan, overwrite):
        return False
    _prepare_folders(root)
    write_json(root / PLAN_FILE, plan)
    for part, count in (("train", train), ("test", test)):
        folder, file = PART_PATHS[part]
        write_json(root / file, _write_part(root / folder, part, count, seed, workers))
    write_text(root / DATASET_FILE, _dataset_toml())
    return True


def _prepare_folders(root: Path) -> None:
    """Creates the folders and removes the images of an earlier toy dataset.

    Raises:
        InputError: a folder cannot be created.
    """
    try:
        for folder in ("annotations", *(folder for folder, _ in PART_PATHS.values())):
            (root / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root}: cannot be created ({error.strerror})") from None
    (root / DATASET_FILE).unlink(missing_ok=True)
    for folder, _ in PART_PATHS.values():
        for path in (root / folder).glob("toy_*.jpg"):
            path.unlink()


def _is_written(root: Path, plan: dict[str, int], overwrite: bool) -> bool:
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
    if found == plan:
        return (root / DATASET_FILE).is_file() and not overwrite
    if not overwrite:
        raise InputError(
            f"{root}: expected a toy dataset with {_format_plan(plan)}, found one with"
            f" {_format_plan(found)}; give --overwrite to replace it"
        )
    return False


def _format_plan(plan: Any) -> str:
    if not isinstance(plan, dict):
        return "an unreadable plan"
    return ", ".join(f"{key} {value}" for key, value in plan.items())


def _dataset_toml() -> str:
    lines = ['name = "toy"', 'vocabulary = "toy"']
    for part, (folder, file) in PART_PATHS.items():
        lines += ["", f"[{part}]", f'images = "{folder}"', f'annotations = "{file}"']
    return "\n".join(lines) + "\n"


def _write_part(
    folder: Path, part: str, count: int, seed: int, workers: int | None
) -> list[dict[str, Any]]:
    """Draws the images of a part and returns the entries of its annotation file."""
    chunks = [range(start, min(start + CHUNK_SIZE, count)) for start in range(0, count, CHUNK_SIZE)]
    entries: list[dict[str, Any]] = []
    with Progress(count, f"toy, {part}", "images") as progress:
        for chunk in _map_chunks(partial(_write_chunk, folder, part, seed), chunks, count, workers):
            entries += chunk
            progress.update(len(chunk))
    return entries


def _map_chunks(
    write_chunk: Callable[[range], list[dict[str, Any]]],
    chunks: list[range],
    count: int,
    workers: int | None,
) -> Iterator[list[dict[str, Any]]]:
    """Results of all chunks in order, computed in worker processes for large parts."""
    workers = workers or num_usable_cores()
    if workers == 1 or count < MIN_IMAGES_FOR_WORKERS:
        yield from map(write_chunk, chunks)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            with ignore_interrupts():
                results = pool.map(write_chunk, chunks)
            yield from results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_chunk(folder: Path, part: str, seed: int, indices: range) -> list[dict[str, Any]]:
    entries = []
    for index in indices:
        image, annotation = draw_scene(seed, part, index)
        image.save(folder / annotation.image_id, "JPEG", quality=95, subsampling=0)
        entries.append(to_hoia_entry(annotation))
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
