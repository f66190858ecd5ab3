"""What a build is about to write, and whether a folder may take it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.files import read_json, sha256_of_json
from pipeline.vocabulary import Vocabulary
from teacher_cache.format import (
    FORMAT_VERSION,
    LOCK,
    MANIFEST,
    PLAN,
    SHARDS,
    differing_parts,
    fingerprint_of,
    read_manifest,
)
from teacher_cache.seal import unsealed, write_sealed

if TYPE_CHECKING:
    # Whoever only moves answers about needs neither torch nor CLIP.
    from pipeline.annotations import AnnotationFile
    from teacher_cache.answering import AskingConfig
    from teacher_cache.models import Models
    from teacher_cache.prompts import Prompts


PLAN_FIELDS = (
    "format_version",
    "fingerprint",
    "parts",
    "layout",
    "images",
    "vocabulary",
    "settings",
)


@dataclass(frozen=True)
class Plan:
    """A cache to be.

    Attributes:
        parts: what goes into the fingerprint.
        layout: what decides how the answers lie in files, but not the answers.
        num_images: images of the dataset part.
        settings: the resolved configuration; what is lost is made again from it.
        vocabulary: what the answers are about, in its file form.
    """

    parts: dict[str, Any]
    layout: dict[str, Any]
    num_images: int
    settings: dict[str, Any]
    vocabulary: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.parts)


def fingerprint_parts(
    models: Models,
    annotations: AnnotationFile,
    vocabulary: Vocabulary,
    prompts: Prompts,
    asking: AskingConfig,
    proposals_digest: str | None = None,
) -> dict[str, Any]:
    """Everything that decides the answers, by a name that people understand.

    Args:
        models: the models that will answer.
        annotations: of the dataset part.
        vocabulary: of the dataset.
        prompts: the sentences, per interaction and template.
        asking: thresholds and choices; batch sizes stay out, they decide nothing.
        proposals_digest: SHA-256 of the detections file, where one takes the detector's place.
    """
    pairing = asdict(asking.pairing)
    if models.detector is not None:
        boxes = {
            "candidates": "detector",
            "detector.model": models.detector.name,
            "detector.weights": models.detector.weights_digest,
            **pairing,
        }
        if models.detector.classes is not None:
            boxes["detector.classes"] = sha256_of_json(models.detector.classes)
    elif proposals_digest is not None:
        boxes = {"candidates": "proposals", "proposals": proposals_digest, **pairing}
    else:
        boxes = {"candidates": "annotated"}
    return {
        "format_version": FORMAT_VERSION,
        "vocabulary": vocabulary.digest(),
        "annotations": annotations.digest,
        "part": annotations.part,
        **boxes,
        "prompts": sha256_of_json(prompts),
        "clip.model": models.clip.name,
        "clip.weights": models.clip.weights_digest,
        "clip.quick_gelu": models.clip.quick_gelu,
        "clip.image_size": models.clip.image_size,
        "clip.interpolation": models.clip.interpolation,
        "clip.precision": models.clip.precision,
        "clip.mean": list(models.clip.mean),
        "clip.std": list(models.clip.std),
        "level": asking.level,
        "region": asking.region.name,
    }


def claim_folder(folder: Path, plan: Plan, shared: bool = False) -> bool:
    """Takes a new folder for a plan, or one in which the same plan was begun.

    Of several builders that begin at the same instant, one writes its plan and the others follow
    it, or are refused.

    Args:
        folder: the cache, or what is to become one.
        plan: what is to be built.
        shared: others may be building in the folder; their `build.json` stays as it is.

    Returns:
        Whether the folder holds the finished cache already.

    Raises:
        InputError: the folder holds something else, or a cache of other settings.
    """
    if check_folder(folder, plan):
        return True
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    fields = (
        FORMAT_VERSION,
        plan.fingerprint,
        plan.parts,
        plan.layout,
        plan.num_images,
        plan.vocabulary,
        plan.settings,
    )
    value = dict(zip(PLAN_FIELDS, fields, strict=True))
    write_sealed(folder / PLAN, value, once=True)
    held = read_plan(folder)
    _same(folder, held, plan)
    if unsealed(held) != value and not shared:
        write_sealed(folder / PLAN, value)
    return False


def check_folder(folder: Path, plan: Plan) -> bool:
    """Whether a folder holds the planned cache, all of it.

    Raises:
        InputError: it holds something else, or a cache of other settings.
    """
    if (folder / MANIFEST).is_file():
        held = read_manifest(folder)
        _same(folder, held, plan)
        return all((folder / SHARDS / shard["name"]).is_file() for shard in held["shards"])
    if (folder / PLAN).is_file():
        _same(folder, read_plan(folder), plan)
    elif folder.exists() and not _is_fresh(folder):
        raise InputError(f"{folder}: expected a new or empty folder, found something else in it")
    return False


def read_plan(folder: Path) -> dict[str, Any]:
    """What `build.json` says.

    Raises:
        InputError: missing, or not the plan of a build.
    """
    path = folder / PLAN
    plan = read_json(path)
    fields = {"fingerprint": str, "parts": dict, "layout": dict}
    if not isinstance(plan, dict) or not all(
        isinstance(plan.get(name), kind) for name, kind in fields.items()
    ):
        raise InputError(f"{path}: expected the plan of a build, found something else")
    return plan


def _is_fresh(folder: Path) -> bool:
    """Whether a folder holds nothing but what a builder leaves that was stopped at its start."""
    return folder.is_dir() and all(
        path.name == LOCK
        or (path.name == SHARDS and path.is_dir() and not any(path.iterdir()))
        or (path.name.startswith(f".{PLAN}.") and path.suffix == ".tmp")
        for path in folder.iterdir()
    )


def _same(folder: Path, held: dict[str, Any], plan: Plan) -> None:
    changes = [
        differing_parts(held["parts"], plan.parts),
        differing_parts(held.get("layout", {}), plan.layout),
    ]
    for change in filter(None, changes):
        raise InputError(
            f"{folder}: holds a cache of other settings ({change}); give --out a new folder"
        )
