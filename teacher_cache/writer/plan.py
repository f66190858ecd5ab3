"""What a build is about to write, and whether a folder may take it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes, read_json, sha256_of_json
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import FORMAT_VERSION, LOCK, MANIFEST, PLAN, SHARDS
from teacher_cache.reader.manifest import read_manifest
from teacher_cache.writer.checksum import without_checksum, write_checksummed_json

if TYPE_CHECKING:
    from pipeline.annotations.load import AnnotationFile
    from teacher_cache.extraction.extract import ExtractionConfig
    from teacher_cache.extraction.inputs import LoadedModels
    from teacher_cache.teachers.prompts import Prompts


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
class BuildPlan:
    """A cache to be.

    Attributes:
        parts: what goes into the fingerprint.
        layout: what decides how the outputs lie in files, but not the outputs.
        num_images: images of the dataset part.
        settings: the resolved configuration; what is lost is made again from it.
        vocabulary: vocabulary of the outputs, in its file form.
    """

    parts: dict[str, Any]
    layout: dict[str, Any]
    num_images: int
    settings: dict[str, Any]
    vocabulary: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        return compute_fingerprint(self.parts)


def fingerprint_parts(
    models: LoadedModels,
    annotations: AnnotationFile,
    vocabulary: Vocabulary,
    prompts: Prompts,
    extraction: ExtractionConfig,
    proposals_digest: str | None = None,
) -> dict[str, Any]:
    """Everything that decides the outputs, by a name that people understand.

    Args:
        models: the models of the build.
        annotations: of the dataset part.
        vocabulary: of the dataset.
        prompts: the sentences, per interaction and template.
        extraction: thresholds and choices; batch sizes stay out, they decide nothing.
        proposals_digest: SHA-256 of the detections file, where one takes the detector's place.
    """
    pairing = asdict(extraction.pairing)
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
        "level": extraction.level,
        "region": extraction.region.name,
    }


def claim_folder(folder: Path, plan: BuildPlan, shared: bool = False) -> bool:
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
    write_checksummed_json(folder / PLAN, value, keep_existing=True)
    held = read_plan(folder)
    _check_same_settings(folder, held, plan)
    if without_checksum(held) != value and not shared:
        write_checksummed_json(folder / PLAN, value)
    return False


def check_folder(folder: Path, plan: BuildPlan) -> bool:
    """Whether a folder holds the planned cache, all of it.

    Raises:
        InputError: it holds something else, or a cache of other settings.
    """
    if (folder / MANIFEST).is_file():
        held = read_manifest(folder)
        _check_same_settings(folder, held, plan)
        return all((folder / SHARDS / shard["name"]).is_file() for shard in held["shards"])
    if (folder / PLAN).is_file():
        _check_same_settings(folder, read_plan(folder), plan)
    elif folder.exists() and not _is_new_folder(folder):
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


def _is_new_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but what a builder leaves that was stopped at its start."""
    return folder.is_dir() and all(
        path.name == LOCK
        or (path.name == SHARDS and path.is_dir() and not any(path.iterdir()))
        or (path.name.startswith(f".{PLAN}.") and path.suffix == ".tmp")
        for path in folder.iterdir()
    )


def _check_same_settings(folder: Path, held: dict[str, Any], plan: BuildPlan) -> None:
    changes = [
        describe_changes(held["parts"], plan.parts),
        describe_changes(held.get("layout", {}), plan.layout),
    ]
    for change in filter(None, changes):
        raise InputError(
            f"{folder}: holds a cache of other settings ({change}); give --out a new folder"
        )


COMMAND_KEY, MERGED_FROM_KEY = "command", "merged_from"
# These may name a model or a file; a file must be found from other folders too.
NAME_OR_PATH_FIELDS = ("clip_model", "clip_weights", "detector_weights", "vocabulary")
# A field of older caches that were rescored, with the value that means what is done today.
REMOVED_FIELD = ("fitted_to", None)
# Fields of the configuration that have other names in the settings of cache format 1.
STORED_NAMES = {"extraction": "asking"}
FIELD_NAMES = {stored: name for name, stored in STORED_NAMES.items()}
Config = TypeVar("Config")


def to_settings(command: str, config: Any) -> dict[str, Any]:
    """The JSON form of a command's configuration, its files named absolutely.

    Args:
        command: of `eoid-cache`.
        config: a dataclass of plain values, paths, tuples and further such dataclasses.
    """
    values = {STORED_NAMES.get(name, name): value for name, value in asdict(config).items()}
    return {COMMAND_KEY: command, **_to_json(values)}


def from_settings(settings: dict[str, Any], kind: type[Config], file: Path) -> Config:
    """The configuration again.

    Args:
        settings: what `to_settings` made.
        kind: the configuration's class.
        file: named in errors.

    Raises:
        InputError: these are the settings of another version of the command.
    """
    known = {
        FIELD_NAMES.get(name, name): value
        for name, value in settings.items()
        if name not in (COMMAND_KEY, MERGED_FROM_KEY) and (name, value) != REMOVED_FIELD
    }
    try:
        return _from_json(known, kind)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{file}: settings: expected those of {kind.__name__}, found others ({error})"
        ) from None


def read_settings(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings in a finished cache; empty where nobody kept them."""
    if "settings" not in manifest and (folder / PLAN).is_file():
        manifest = read_json(folder / PLAN)
    settings = manifest.get("settings") if isinstance(manifest, dict) else None
    return settings if isinstance(settings, dict) else {}


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _to_json(_absolute_path(entry) if key in NAME_OR_PATH_FIELDS else entry)
            for key, entry in value.items()
        }
    if isinstance(value, tuple):
        return [_to_json(entry) for entry in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _absolute_path(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _from_json(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        unknown = value.keys() - {each.name for each in fields(kind)}
        if unknown:
            raise KeyError(", ".join(sorted(unknown)))
        return kind(**{name: _from_json(entry, hints[name]) for name, entry in value.items()})
    if get_origin(kind) is tuple:
        return tuple(_from_json(entry, get_args(kind)[0]) for entry in value)
    return Path(value) if kind is Path else value
