"""Makes a dataset of another one's training pictures, which nobody annotated."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.study.folders import write_folder
from pipeline.datasets.dataset import open_dataset


def write_pictures(source: Path, out: Path) -> None:
    """Writes a dataset folder that names the pictures where they are.

    Args:
        source: a dataset folder of the toy dataset.
        out: the new one.

    Raises:
        InputError: no such dataset.
    """
    images = open_dataset(source).part("train").images.resolve()
    write_folder(out, "pictures", "toy", {"train": (images, None)})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_pictures(options.source, options.out)


if __name__ == "__main__":
    main()
