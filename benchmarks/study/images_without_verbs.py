"""Writes a dataset of the labelled images of another one that show none of the given verbs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.study.dataset_folder import write_dataset_toml
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json


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


def write_images_without_verbs(
    source: Path, out: Path, verbs: Sequence[str], count: int, seed: int
) -> None:
    """Writes a dataset folder with some of the training images, and the whole test part.

    Args:
        source: folder of a toy dataset.
        out: folder to write.
        verbs: names of the excluded verbs.
        count: number of training images.
        seed: seed of their choice.

    Raises:
        InputError: no such dataset, or fewer such images than `count`.
    """
    dataset = open_dataset(source)
    train, test = (dataset.part(name) for name in ("train", "test"))
    assert train.annotations is not None and test.annotations is not None, (
        "the toy dataset is annotated"
    )
    vocabulary, annotations = dataset.vocabulary, dataset.load("train").annotations
    verb_indices = [vocabulary.verbs.index(verb) for verb in verbs]
    chosen = draw_images([one.hois for one in annotations], verb_indices, count, seed)
    by_name = {entry["file_name"]: entry for entry in read_json(train.annotations)}
    write_json(out / "train.json", [by_name[annotations[index].image_id] for index in chosen])
    write_dataset_toml(
        out,
        f"{dataset.name} without {', '.join(verbs)}",
        vocabulary.name,
        {
            "train": (train.images.resolve(), Path("train.json")),
            "test": (test.images.resolve(), test.annotations.resolve()),
        },
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verbs", required=True, help="for example kick,throw")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    verbs = options.verbs.split(",")
    try:
        write_images_without_verbs(options.source, options.out, verbs, options.count, options.seed)
    except InputError as error:
        parser.exit(2, f"images_without_verbs: {error}\n")


if __name__ == "__main__":
    main()
