"""Reads and checks `manifest.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json
from pipeline.vocabulary import (
    BUILTIN_VOCABULARIES,
    Vocabulary,
    load_vocabulary,
    vocabulary_from_dict,
)
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import MANIFEST, PLAN, check_format_version


def stored_vocabulary(file: Path, value: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a manifest or a plan.

    Args:
        file: named in errors.
        value: its content; early ones hold the digest only, which may be a shipped vocabulary's.

    Raises:
        InputError: none, or one with another digest than the fingerprint's part.
    """
    digest = value["parts"].get("vocabulary")
    if "vocabulary" in value:
        held = vocabulary_from_dict(value["vocabulary"], file)
        if held.digest() != digest:
            raise bad_field(file, "vocabulary", "the one whose digest stands in parts", held.name)
        return held
    for shipped in map(load_vocabulary, BUILTIN_VOCABULARIES):
        if shipped.digest() == digest:
            return shipped
    raise bad_field(file, "vocabulary", "the words that the outputs are about", "none")


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
    check_format_version(path, manifest.get("format_version"))
    for name, kind in (("fingerprint", str), ("parts", dict), ("shards", list), ("failed", dict)):
        if not isinstance(manifest.get(name), kind):
            raise bad_field(path, name, f"a {kind.__name__}", manifest.get(name))
    if not isinstance(manifest.get("vocabulary", {}), dict):
        raise bad_field(path, "vocabulary", "an object", manifest["vocabulary"])
    if compute_fingerprint(manifest["parts"]) != manifest["fingerprint"]:
        raise bad_field(path, "fingerprint", "the digest of parts", manifest["fingerprint"])
    for index, shard in enumerate(manifest["shards"]):
        if not _is_shard_entry(shard):
            raise bad_field(path, f"shards[{index}]", "fields name, sha256 and images", shard)
    return manifest


def _is_shard_entry(shard: Any) -> bool:
    if not isinstance(shard, dict) or not isinstance(shard.get("images"), list):
        return False
    texts = [shard.get("name"), shard.get("sha256"), *shard["images"]]
    return all(isinstance(text, str) for text in texts)
