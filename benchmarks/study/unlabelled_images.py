"""Writes a dataset of the training images of another one, without annotations."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.study.dataset_folder import write_dataset_toml
from pipeline.datasets.dataset import open_dataset


def write_unlabelled_images(source: Path, out: Path) -> None:
    """Writes a dataset folder that refers to the images of another one.

    Args:
        source: folder of a toy dataset.
        out: folder to write.

    Raises:
        InputError: no such dataset.
    """
    images = open_dataset(source).part("train").images.resolve()
    write_dataset_toml(out, "unlabelled images", "toy", {"train": (images, None)})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_unlabelled_images(options.source, options.out)


if __name__ == "__main__":
    main()
