"""Reads and checks `manifest.json`, the description of a finished cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json
from pipeline.utils.schema import convert
from pipeline.vocabulary import (
    BUILTIN_VOCABULARIES,
    Vocabulary,
    load_vocabulary,
    vocabulary_from_dict,
)
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import (
    INDEPENDENT,
    MANIFEST,
    PLAN,
    PROBABILITIES_PART,
    SOFTMAX,
    check_format_version,
)


class _Shard(Struct):
    name: str
    sha256: str
    images: list[str]
    bytes: int | None = None


class _Manifest(Struct):
    """The fields that readers use; early writers did not write the last two."""

    fingerprint: str
    parts: dict[str, Any]
    shards: list[_Shard]
    failed: dict[str, str]
    files: dict[str, str] = {}
    vocabulary: dict[str, Any] = {}


def stored_vocabulary(file: Path, value: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a cache's outputs, from the content of `manifest.json` or `build.json`.

    Early caches contain only its digest; for these it is looked up among the built-in vocabularies.

    Raises:
        InputError: the vocabulary is missing and not a built-in one, or it does not match the
            digest in `parts`.
    """
    digest = value["parts"].get("vocabulary")
    if "vocabulary" in value:
        vocabulary = vocabulary_from_dict(value["vocabulary"], file)
        if vocabulary.digest() != digest:
            expected = "the vocabulary whose digest is in parts"
            raise bad_field(file, "vocabulary", expected, vocabulary.name)
        return vocabulary
    for builtin in map(load_vocabulary, BUILTIN_VOCABULARIES):
        if builtin.digest() == digest:
            return builtin
    raise bad_field(file, "vocabulary", "the vocabulary of the outputs", "none")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a finished cache and checks the fields that readers use.

    Raises:
        InputError: the folder holds no cache, an unfinished one, or one of another format version,
            or the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PLAN).is_file():
            raise InputError(
                f"{folder}: the cache is unfinished (no {MANIFEST}); the same eoid-cache build"
                " command resumes it"
            )
        raise InputError(f"{folder}: expected a cache folder with {MANIFEST}, found none")
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise bad_field(path, "manifest", "an object", manifest)
    check_format_version(path, manifest.get("format_version"))
    convert(manifest, _Manifest, path)
    if compute_fingerprint(manifest["parts"]) != manifest["fingerprint"]:
        raise bad_field(path, "fingerprint", "the digest of parts", manifest["fingerprint"])
    probabilities = manifest["parts"].get(PROBABILITIES_PART, SOFTMAX)
    if probabilities not in (SOFTMAX, INDEPENDENT):
        expected = f"{SOFTMAX} or {INDEPENDENT}"
        raise bad_field(path, f"parts.{PROBABILITIES_PART}", expected, probabilities)
    return manifest
