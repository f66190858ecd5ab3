"""Makes a dataset that shows the toy dataset's pictures and has never heard of a verb."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.folders import write_folder
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import Vocabulary

PARTS = {"train": "trainval.json", "test": "test.json"}


def without_verb(vocabulary: Vocabulary, verb: str) -> dict[str, Any]:
    """The file form of a vocabulary that lacks a verb."""
    lost = vocabulary.verbs.index(verb)
    value = vocabulary.to_dict()
    value["verbs"] = [entry for entry in value["verbs"] if entry["name"] != verb]
    value["interactions"] = [[v - (v > lost), o] for v, o in vocabulary.interactions if v != lost]
    return {**value, "name": f"{vocabulary.name} without {verb}", "splits": {}, "rare": []}


def without_labels(images: Sequence[dict[str, Any]], vocabulary: Vocabulary, verb: str) -> Any:
    """Annotations in the HOIA form without a verb, numbered for the smaller vocabulary."""
    lost = vocabulary.verbs.index(verb) + vocabulary.first_verb_id
    kept = []
    for image in images:
        labels = [
            {
                "subject_id": label["subject_id"],
                "object_id": label["object_id"],
                "category_id": label["category_id"] - (label["category_id"] > lost),
            }
            for label in image["hoi_annotation"]
            if label["category_id"] != lost
        ]
        kept.append({**image, "hoi_annotation": labels})
    return kept


def write_smaller_toy(source: Path, verb: str, out: Path) -> None:
    """Writes a dataset folder whose vocabulary, labels and cached answers know nothing of a verb.

    Args:
        source: a dataset folder of the toy dataset.
        verb: its name.
        out: the new folder.

    Raises:
        InputError: no such dataset.
    """
    dataset = open_dataset(source)
    parts = {}
    for part, file in PARTS.items():
        own = dataset.part(part)
        assert own.annotations is not None, "the toy dataset is annotated"
        write_json(out / file, without_labels(read_json(own.annotations), dataset.vocabulary, verb))
        parts[part] = (own.images.resolve(), Path(file))
    write_json(out / "vocabulary.json", without_verb(dataset.vocabulary, verb))
    write_folder(out, f"{dataset.name} without {verb}", "vocabulary.json", parts)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verb", required=True)
    options = parser.parse_args()
    write_smaller_toy(options.source, options.verb, options.out)


if __name__ == "__main__":
    main()
