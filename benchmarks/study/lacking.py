"""Makes a dataset of another one's pictures on which nobody does certain actions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.study.folders import write_folder
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json


def choose(hois: Sequence[np.ndarray], verbs: Sequence[int], count: int, seed: int) -> list[int]:
    """Draws pictures on which somebody does something, and nobody what `verbs` say.

    Args:
        hois: of every picture, [n, 3]: human, object, verb.
        verbs: the actions that must not be there.
        count: how many.
        seed: of the draw.

    Raises:
        InputError: there are not enough.
    """
    order = np.random.default_rng(seed).permutation(len(hois)).tolist()
    fitting = [at for at in order if len(hois[at]) and not np.isin(hois[at][:, 2], verbs).any()]
    if len(fitting) < count:
        raise InputError(f"--count: expected at most {len(fitting)} such pictures, found {count}")
    return sorted(fitting[:count])


def write_lacking(source: Path, out: Path, verbs: Sequence[str], count: int, seed: int) -> None:
    """Writes a dataset folder with some of the training pictures, and the whole test part.

    Args:
        source: a dataset folder of the toy dataset.
        out: the new one.
        verbs: names of the actions that nobody does there.
        count: training pictures.
        seed: of their choice.

    Raises:
        InputError: no such dataset, or not enough such pictures.
    """
    dataset = open_dataset(source)
    train, test = (dataset.part(name) for name in ("train", "test"))
    assert train.annotations is not None and test.annotations is not None, (
        "the toy dataset has some"
    )
    vocabulary, annotations = dataset.vocabulary, dataset.load("train").annotations
    numbers = [vocabulary.verbs.index(verb) for verb in verbs]
    chosen = choose([one.hois for one in annotations], numbers, count, seed)
    by_name = {entry["file_name"]: entry for entry in read_json(train.annotations)}
    write_json(out / "train.json", [by_name[annotations[at].image_id] for at in chosen])
    write_folder(
        out,
        f"{dataset.name} lacking {', '.join(verbs)}",
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
        write_lacking(options.source, options.out, verbs, options.count, options.seed)
    except InputError as error:
        parser.exit(2, f"lacking: {error}\n")


if __name__ == "__main__":
    main()
