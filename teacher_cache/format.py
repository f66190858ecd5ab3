"""Format 1 of a cache folder: names, types, the fingerprint, and one image's answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError, bad_field
from pipeline.files import read_json, sha256_of_json
from pipeline.types import Pairs
from pipeline.vocabulary import SHIPPED, Vocabulary, from_dict, load_vocabulary

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PLAN = "build.json"
TEACHER = "teacher.h5"
SHARDS = "shards"
LOCK = ".lock"
# Values of `pairs/source`.
ANNOTATED, PROPOSED = 0, 1

# Pixels and scores are float32; what a model answered is float16, half the bytes of a folder.
PAIR_DATASETS: dict[str, np.dtype] = {
    "pairs/human_box": np.dtype("<f4"),
    "pairs/object_box": np.dtype("<f4"),
    "pairs/human_score": np.dtype("<f4"),
    "pairs/object_score": np.dtype("<f4"),
    "pairs/object_label": np.dtype("<i2"),
    "pairs/source": np.dtype("u1"),
    "pairs/region": np.dtype("<i4"),
    "pairs/action_probabilities": np.dtype("<f2"),
}
REGION_BOX = "regions/box"
REGION_EMBEDDING = "regions/embedding"
IMAGE_ID = "images/id"
PAIR_OFFSETS = "images/pair_offsets"
FAILED_ID = "failed/id"
FAILED_REASON = "failed/reason"
# Parts of the fingerprint that decide what CLIP makes of a sentence.
TEXT_PARTS = ("clip.model", "clip.weights", "clip.quick_gelu")


@dataclass(frozen=True, eq=False)
class ImageAnswers:
    """What the teacher says about one image.

    Attributes:
        pairs: the P human-object pairs that were asked about.
        probabilities: (P, V) float32, the teacher's action probabilities; 0 for verbs that do
            not go with the object. They were stored as float16.
        regions: (P,) int64, every pair's row of `region_boxes`.
        region_boxes: (R, 4) float32, xyxy, pixels of the original image: the distinct union boxes.
        embeddings: (R, D) normalised image embeddings of the regions, as stored: float16 and
            read-only when they come from a cache; None in a cache without them.
    """

    pairs: Pairs
    probabilities: np.ndarray
    regions: np.ndarray
    region_boxes: np.ndarray
    embeddings: np.ndarray | None


def shard_name(index: int) -> str:
    """File name of a shard: five digits, so that names sort as numbers."""
    return f"{index:05d}.h5"


def fingerprint_of(parts: dict[str, Any]) -> str:
    """One hex digest over everything that decides the answers."""
    return sha256_of_json(parts)


def differing_parts(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What changed between two sets of fingerprint parts, for people: "clip.model: A, now B"."""
    changes = [
        f"{name}: {shown(old.get(name))}, now {shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return "; ".join(changes)


def shown(value: Any) -> str:
    """A fingerprint part for people: digests and long values shortened."""
    text = "nothing" if value is None else str(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:12] if is_digest else text if len(text) <= 60 else text[:57] + "..."


def text_model_of(parts: dict[str, Any]) -> str | None:
    """One digest of the CLIP whose text embeddings a cache holds: embeddings of equal digests may
    be compared. None where the parts do not tell.

    Args:
        parts: of the fingerprint.
    """
    if "clip.weights" not in parts:
        return None
    return sha256_of_json({name: parts.get(name) for name in TEXT_PARTS})


def plain_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """The words that answers are about, as a manifest holds them."""
    value = vocabulary.to_dict()
    return {key: value[key] for key in ("name", "objects", "verbs", "interactions")}


def held_vocabulary(file: Path, value: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a manifest or a plan.

    Args:
        file: named in errors.
        value: its content; early ones hold the digest only, which may be a shipped vocabulary's.

    Raises:
        InputError: none, or one with another digest than the fingerprint's part.
    """
    digest = value["parts"].get("vocabulary")
    if "vocabulary" in value:
        held = from_dict(value["vocabulary"], file)
        if held.digest() != digest:
            raise bad_field(file, "vocabulary", "the one whose digest stands in parts", held.name)
        return held
    for shipped in map(load_vocabulary, SHIPPED):
        if shipped.digest() == digest:
            return shipped
    raise bad_field(file, "vocabulary", "the words that the answers are about", "none")


def check_version(file: Path, version: Any) -> None:
    """Refuses what a later version of this project wrote.

    Raises:
        InputError: not the format version that this code knows.
    """
    if version != FORMAT_VERSION:
        raise bad_field(file, "format_version", str(FORMAT_VERSION), version)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        InputError: no cache, an unfinished one, or one of another format version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PLAN).is_file():
            raise InputError(
                f"{folder}: the cache is unfinished (no {MANIFEST}); the same eoid-cache build"
                " command goes on with it"
            )
        raise InputError(f"{folder}: expected a cache folder with {MANIFEST}, found none")
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise bad_field(path, "manifest", "an object", manifest)
    check_version(path, manifest.get("format_version"))
    for name, kind in (("fingerprint", str), ("parts", dict), ("shards", list), ("failed", dict)):
        if not isinstance(manifest.get(name), kind):
            raise bad_field(path, name, f"a {kind.__name__}", manifest.get(name))
    if not isinstance(manifest.get("vocabulary", {}), dict):
        raise bad_field(path, "vocabulary", "an object", manifest["vocabulary"])
    if fingerprint_of(manifest["parts"]) != manifest["fingerprint"]:
        raise bad_field(path, "fingerprint", "the digest of parts", manifest["fingerprint"])
    for index, shard in enumerate(manifest["shards"]):
        if not _is_entry(shard):
            raise bad_field(path, f"shards[{index}]", "fields name, sha256 and images", shard)
    return manifest


def _is_entry(shard: Any) -> bool:
    if not isinstance(shard, dict) or not isinstance(shard.get("images"), list):
        return False
    texts = [shard.get("name"), shard.get("sha256"), *shard["images"]]
    return all(isinstance(text, str) for text in texts)
