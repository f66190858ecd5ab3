"""Writes a dataset of the toy dataset's images whose vocabulary and labels lack a verb."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.dataset_folder import write_dataset_toml
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import Vocabulary

PARTS = {"train": "trainval.json", "test": "test.json"}


def remove_verb(vocabulary: Vocabulary, verb: str) -> dict[str, Any]:
    """Content of a vocabulary file without one of the vocabulary's verbs."""
    removed = vocabulary.verbs.index(verb)
    value = vocabulary.to_dict()
    value["verbs"] = [entry for entry in value["verbs"] if entry["name"] != verb]
    value["interactions"] = [
        [v - (v > removed), o] for v, o in vocabulary.interactions if v != removed
    ]
    return {**value, "name": f"{vocabulary.name} without {verb}", "splits": {}, "rare": []}


def remove_labels(images: Sequence[dict[str, Any]], vocabulary: Vocabulary, verb: str) -> Any:
    """Annotations in the HOIA form without a verb's labels, with ids of the smaller vocabulary."""
    removed = vocabulary.verbs.index(verb) + vocabulary.first_verb_id
    kept = []
    for image in images:
        labels = [
            {
                "subject_id": label["subject_id"],
                "object_id": label["object_id"],
                "category_id": label["category_id"] - (label["category_id"] > removed),
            }
            for label in image["hoi_annotation"]
            if label["category_id"] != removed
        ]
        kept.append({**image, "hoi_annotation": labels})
    return kept


def write_dataset_without_verb(source: Path, verb: str, out: Path) -> None:
    """Writes a dataset folder whose vocabulary and labels lack a verb.

    Args:
        source: folder of a toy dataset.
        verb: name of the verb.
        out: folder to write.

    Raises:
        InputError: no such dataset.
    """
    dataset = open_dataset(source)
    parts = {}
    for part, file in PARTS.items():
        section = dataset.part(part)
        assert section.annotations is not None, "the toy dataset is annotated"
        write_json(
            out / file, remove_labels(read_json(section.annotations), dataset.vocabulary, verb)
        )
        parts[part] = (section.images.resolve(), Path(file))
    write_json(out / "vocabulary.json", remove_verb(dataset.vocabulary, verb))
    write_dataset_toml(out, f"{dataset.name} without {verb}", "vocabulary.json", parts)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verb", required=True)
    options = parser.parse_args()
    write_dataset_without_verb(options.source, options.verb, options.out)


if __name__ == "__main__":
    main()
