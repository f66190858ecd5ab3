"""Datasets of the study, made of the images of a toy dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.cli import run_command
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json, write_text
from pipeline.vocabulary import Vocabulary

Part = tuple[Path, Path | None]


@click.group(help=__doc__)
def main() -> None:
    """Entry point."""


@main.command()
@click.argument("toy", type=Path)
@click.option("--out", type=Path, required=True)
def unlabelled(toy: Path, out: Path) -> None:
    """The training images, without annotations."""
    images = open_dataset(toy).part("train").images.resolve()
    _write_dataset_toml(out, "unlabelled images", "toy", {"train": (images, None)})


@main.command()
@click.argument("verbs")
@click.argument("toy", type=Path)
@click.option("--out", type=Path, required=True)
@click.option("--count", type=int, required=True)
@click.option("--seed", type=int, default=0)
def images_without(verbs: str, toy: Path, out: Path, count: int, seed: int) -> None:
    """Labelled training images without some verbs, such as kick,throw, and all test images."""
    dataset = open_dataset(toy)
    train, test = (dataset.part(name) for name in ("train", "test"))
    assert train.annotations is not None and test.annotations is not None
    excluded = [dataset.vocabulary.verbs.index(verb) for verb in verbs.split(",")]
    annotations = dataset.load("train").annotations
    chosen = draw_images([one.hois for one in annotations], excluded, count, seed)
    by_name = {entry["file_name"]: entry for entry in read_json(train.annotations)}
    write_json(out / "train.json", [by_name[annotations[index].image_id] for index in chosen])
    parts: dict[str, Part] = {
        "train": (train.images.resolve(), Path("train.json")),
        "test": (test.images.resolve(), test.annotations.resolve()),
    }
    _write_dataset_toml(out, f"toy without {verbs}", dataset.vocabulary.name, parts)


def draw_images(
    hois: Sequence[np.ndarray], verbs: Sequence[int], count: int, seed: int
) -> list[int]:
    """Draws indices of images with labels, but without those of the given verbs.

    Args:
        hois: for every image, (N, 3) human, object and verb.
        verbs: indices of the excluded verbs.
        count: number of images.
        seed: seed of the draw.

    Returns:
        Indices in ascending order.

    Raises:
        InputError: there are fewer such images than `count`.
    """
    order = np.random.default_rng(seed).permutation(len(hois)).tolist()
    eligible = [i for i in order if len(hois[i]) and not np.isin(hois[i][:, 2], verbs).any()]
    if len(eligible) < count:
        raise InputError(f"--count: expected at most {len(eligible)} such images, found {count}")
    return sorted(eligible[:count])


@main.command()
@click.argument("verb")
@click.argument("toy", type=Path)
@click.option("--out", type=Path, required=True)
def without_verb(verb: str, toy: Path, out: Path) -> None:
    """All images; vocabulary and labels lack a verb."""
    vocabulary = open_dataset(toy).vocabulary
    _write_smaller(
        toy,
        out,
        remove_verb(vocabulary, verb),
        lambda entry: {**entry, "hoi_annotation": _remove_labels(entry, vocabulary, verb)},
    )


@main.command()
@click.argument("objects")
@click.argument("toy", type=Path)
@click.option("--out", type=Path, required=True)
def without_objects(objects: str, toy: Path, out: Path) -> None:
    """All images; vocabulary, boxes and labels lack some objects, such as bike,umbrella."""
    vocabulary, names = open_dataset(toy).vocabulary, objects.split(",")
    removed = {vocabulary.category_ids[vocabulary.objects.index(name)] for name in names}
    _write_smaller(
        toy, out, remove_objects(vocabulary, names), lambda entry: _remove_boxes(entry, removed)
    )


def _write_smaller(
    toy: Path,
    out: Path,
    vocabulary: dict[str, Any],
    reduce: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Writes a dataset of all images with a smaller vocabulary and reduced annotations."""
    dataset = open_dataset(toy)
    parts: dict[str, Part] = {}
    for part in ("train", "test"):
        section = dataset.part(part)
        assert section.annotations is not None
        write_json(out / f"{part}.json", list(map(reduce, read_json(section.annotations))))
        parts[part] = (section.images.resolve(), Path(f"{part}.json"))
    write_json(out / "vocabulary.json", vocabulary)
    _write_dataset_toml(out, vocabulary["name"], "vocabulary.json", parts)


def remove_verb(vocabulary: Vocabulary, verb: str) -> dict[str, Any]:
    """Content of a vocabulary file without one of the vocabulary's verbs."""
    removed = vocabulary.verbs.index(verb)
    value = vocabulary.to_dict()
    value["verbs"] = [entry for entry in value["verbs"] if entry["name"] != verb]
    value["interactions"] = [
        [v - (v > removed), o] for v, o in vocabulary.interactions if v != removed
    ]
    return {**value, "name": f"{vocabulary.name} without {verb}", "splits": {}, "rare": []}


def remove_objects(vocabulary: Vocabulary, names: Sequence[str]) -> dict[str, Any]:
    """Content of a vocabulary file without some of the vocabulary's objects."""
    kept = [label for label, name in enumerate(vocabulary.objects) if name not in names]
    value = vocabulary.to_dict()
    value["objects"] = [value["objects"][label] for label in kept]
    value["interactions"] = [[v, kept.index(o)] for v, o in vocabulary.interactions if o in kept]
    title = f"{vocabulary.name} without {' and '.join(names)}"
    return {**value, "name": title, "splits": {}, "rare": []}


def _remove_boxes(entry: dict[str, Any], category_ids: set[int]) -> dict[str, Any]:
    """An image's entry without the boxes of some categories and without their labels."""
    boxes = entry["annotations"]
    kept = [row for row, box in enumerate(boxes) if box["category_id"] not in category_ids]
    return {
        **entry,
        "annotations": [boxes[row] for row in kept],
        "hoi_annotation": [
            {
                "subject_id": kept.index(label["subject_id"]),
                "object_id": kept.index(label["object_id"]),
                "category_id": label["category_id"],
            }
            for label in entry["hoi_annotation"]
            if label["object_id"] in kept
        ],
    }


def _remove_labels(
    entry: dict[str, Any], vocabulary: Vocabulary, verb: str
) -> list[dict[str, int]]:
    """An image's labels in the HOIA form without a verb's, with ids of the smaller vocabulary."""
    removed = vocabulary.verbs.index(verb) + vocabulary.first_verb_id
    return [
        {
            "subject_id": label["subject_id"],
            "object_id": label["object_id"],
            "category_id": label["category_id"] - (label["category_id"] > removed),
        }
        for label in entry["hoi_annotation"]
        if label["category_id"] != removed
    ]


def _write_dataset_toml(out: Path, name: str, vocabulary: str, parts: Mapping[str, Part]) -> None:
    """Writes `dataset.toml`; `parts` has the images and annotations of each part."""
    lines = [f"name = {json.dumps(name)}", f"vocabulary = {json.dumps(vocabulary)}"]
    for part, (images, labels) in parts.items():
        lines += ["", f"[{part}]", f"images = {json.dumps(str(images))}"]
        lines += [f"annotations = {json.dumps(str(labels))}"] if labels else []
    write_text(out / "dataset.toml", "\n".join([*lines, ""]))


if __name__ == "__main__":
    run_command(main)
