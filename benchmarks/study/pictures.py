"""Makes a dataset of another one's training pictures, which nobody annotated."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.datasets import open_dataset
from pipeline.files import write_text


def write_pictures(source: Path, out: Path) -> None:
    """Writes a dataset folder that names the pictures where they are.

    Args:
        source: a dataset folder of the embedded world.
        out: the new one.

    Raises:
        InputError: no such dataset.
    """
    images = json.dumps(str(open_dataset(source).part("train").images.resolve()))
    lines = ['name = "pictures"', 'vocabulary = "world"', "", "[train]", f"images = {images}", ""]
    write_text(out / "dataset.toml", "\n".join(lines))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_pictures(options.source, options.out)


if __name__ == "__main__":
    main()
