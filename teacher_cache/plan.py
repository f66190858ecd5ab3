"""What a build is about to write, and whether a folder may take it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import read_json, sha256_of_json, write_json
from pipeline.vocabulary import Vocabulary
from teacher_cache.answering import AskingConfig
from teacher_cache.format import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    SHARDS,
    differing_parts,
    fingerprint_of,
    read_manifest,
)
from teacher_cache.prompts import Prompts
from teacher_cache.shards import Models


@dataclass(frozen=True)
class Plan:
    """A cache to be.

    Attributes:
        parts: what goes into the fingerprint.
        layout: what decides how the answers lie in files, but not the answers.
        settings: the resolved configuration, for people.
    """

    parts: dict[str, Any]
    layout: dict[str, Any]
    settings: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.parts)


def fingerprint_parts(
    models: Models,
    vocabulary: Vocabulary,
    prompts: Prompts,
    asking: AskingConfig,
    part: str,
    annotations_digest: str,
) -> dict[str, Any]:
    """Everything that decides the answers, by a name that people understand.

    Args:
        models: the models that will answer.
        vocabulary: of the dataset.
        prompts: the sentences, per interaction and template.
        asking: thresholds and choices; batch sizes stay out, they decide nothing.
        part: "train" or "test".
        annotations_digest: SHA-256 of the part's annotation file.
    """
    pairing = asking.pairing
    return {
        "format_version": FORMAT_VERSION,
        "vocabulary": vocabulary.digest(),
        "annotations": annotations_digest,
        "part": part,
        "candidates": "detector",
        "prompts": sha256_of_json(prompts),
        "clip.model": models.clip.name,
        "clip.weights": models.clip.weights_digest,
        "clip.image_size": models.clip.image_size,
        "clip.mean": list(models.clip.mean),
        "clip.std": list(models.clip.std),
        "detector.model": models.detector.name,
        "detector.weights": models.detector.weights_digest,
        "person_threshold": pairing.person_threshold,
        "object_threshold": pairing.object_threshold,
        "max_people": pairing.max_people,
        "max_objects": pairing.max_objects,
        "region": asking.region.name,
    }


def claim_folder(folder: Path, plan: Plan) -> bool:
    """Takes a new folder for a plan, or one in which the same plan was begun.

    Returns:
        Whether the folder holds the finished cache already.

    Raises:
        InputError: the folder holds something else, or a cache of other settings.
    """
    manifest = folder / MANIFEST
    begun = folder / PLAN
    if manifest.is_file():
        held = read_manifest(folder)
        _same(folder, held["parts"], plan.parts)
        _same(folder, held.get("layout", {}), plan.layout)
        return all((folder / SHARDS / shard["name"]).is_file() for shard in held["shards"])
    if begun.is_file():
        held = read_json(begun)
        if not isinstance(held, dict) or not isinstance(held.get("parts"), dict):
            raise InputError(f"{begun}: expected the plan of a build, found something else")
        _same(folder, held["parts"], plan.parts)
        _same(folder, held.get("layout", {}), plan.layout)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder, found something else in it")
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    write_json(
        begun,
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": plan.fingerprint,
            "parts": plan.parts,
            "layout": plan.layout,
            "settings": plan.settings,
        },
    )
    return False


def _same(folder: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    changes = differing_parts(held, wanted)
    if changes:
        raise InputError(
            f"{folder}: holds a cache of other settings ({changes}); give --out a new folder"
        )
