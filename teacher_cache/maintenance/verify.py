"""Verifies the files of a cache against its checksums, and repairs it.

A repair repeats the command that made the cache, with the settings that the cache contains, for
missing and damaged files only. It works in a temporary folder and replaces a damaged shard only by
one with outputs of the same images.
"""

from __future__ import annotations

import io
import os
import shutil
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.cluster.lock import lock_folder
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from pipeline.utils.logging import get_logger
from pipeline.utils.plugins import confirm_class
from pipeline.utils.progress import track
from pipeline.utils.text import count_noun
from teacher_cache.reader.cache import open_cache, read_teacher_file
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER, vocabulary_to_dict
from teacher_cache.reader.manifest import read_manifest, stored_vocabulary
from teacher_cache.reader.shard import read_layout
from teacher_cache.writer.checksum import has_intact_checksum, write_checksummed_json
from teacher_cache.writer.manifest import planned_shards, write_manifest
from teacher_cache.writer.plan import BuildPlan, read_plan
from teacher_cache.writer.settings import COMMAND_KEY, from_settings

logger = get_logger(__name__)

# Settings of where shards are made, which a repair does not take from the original build.
MACHINE_SETTINGS = ("mode", "share", "workers")


@dataclass(frozen=True)
class _RepairOptions:
    """What a repair takes from its own command; see `verify_cache`."""

    dataset: Path | None
    device: str | None
    teacher: str | None
    detector: str | None


def verify_cache(
    cache: Path,
    repair: bool = False,
    dataset: Path | None = None,
    device: str | None = None,
    teacher: str | None = None,
    detector: str | None = None,
) -> None:
    """Checks all files of a cache, prints all problems, and repairs them if `repair`.

    If all shards are finished and only the manifest is missing, it is written.

    Args:
        cache: the cache folder.
        repair: whether damaged and missing files are made again.
        dataset: the dataset folder, which the cache must match and from which a repair reads
            images; None to check none, and to repair from the folder in the cache's settings.
        device: device of the models in a repair; None for the one in the cache's settings.
        teacher, detector: those of the cache if they are a user's own, whose code a repair runs.

    Raises:
        InputError: there are problems that were not repaired, the cache does not match the
            dataset, or a build is running.
    """
    options = _RepairOptions(dataset, device, teacher, detector)
    if not (cache / MANIFEST).is_file():
        if not (cache / PLAN).is_file():
            raise InputError(f"{cache}: expected a cache folder with {MANIFEST}, found none")
        _complete_manifest(cache, options if repair else None)
    with lock_folder(cache) if repair else nullcontext():
        problems = find_problems(cache)
        for name, description in problems.items():
            print(f"{name}: {description}")
        if problems and repair:
            _repair_cache(cache, problems, options)
            problems = find_problems(cache)
    for name, description in problems.items():
        count = f" ({len(problems)} problems)" if len(problems) > 1 else ""
        raise InputError(
            f"{cache}: {name}: {description}{count}; verify --repair makes damaged files again"
        )
    verified = open_cache(cache)
    if dataset is not None:
        data = open_dataset(dataset)
        part = str(verified.manifest["parts"].get("part"))
        loaded = data.load(part).limited(verified.limit)
        verified.check(data.vocabulary, loaded.digest, part)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    print(
        f"{cache}: {count_noun(len(verified), 'images')} in"
        f" {count_noun(verified.num_shards, 'shards')}, {size / 1e6:.1f} MB,"
        " all checksums match"
    )


def _complete_manifest(folder: Path, repair: _RepairOptions | None) -> None:
    """Writes a missing manifest, with `repair` after making missing shards.

    Raises:
        InputError: shards are missing, or `build.json` is damaged.
    """
    plan = read_plan(folder)
    if not has_intact_checksum(folder / PLAN, plan):
        raise InputError(f"{folder / PLAN}: is damaged: its own checksum does not match")
    missing = write_manifest(folder).missing
    if missing and repair is not None:
        _repeat_command(plan, folder, repair)
        return
    for name in missing:
        print(f"{SHARDS}/{name}: is missing")
    if missing:
        raise InputError(
            f"{folder}: the cache is unfinished: {SHARDS}/{missing[0]} is missing"
            f" ({count_noun(len(missing), 'shards')}); run the same eoid-cache build command or"
            " verify --repair to complete it"
        )
    logger.info(f"{folder}: all shards are finished; wrote {MANIFEST}")


def find_problems(folder: Path) -> dict[str, str]:
    """Reads all files of a cache that has a manifest, and compares them with their checksums.

    Without a manifest that can be read there are no checksums. Then only the structure of the other
    files is checked.

    Returns:
        Descriptions of the problems by the file's name within the folder.
    """
    problems: dict[str, str] = {}
    plan: dict[str, Any] | None = None
    try:
        plan = read_manifest(folder)
        if not has_intact_checksum(folder / MANIFEST, plan):
            problems[MANIFEST] = "is damaged: its own checksum does not match"
    except InputError as error:
        reason = _without_path(error, folder / MANIFEST)
        problems[MANIFEST] = f"{reason}; the checksums in it are lost"
    names = expected_shards(folder, problems)
    plan = plan or read_plan(folder)
    entries = {f"{SHARDS}/{entry['name']}": entry for entry in plan.get("shards", ())}
    checksums = {**plan.get("files", {}), **{name: entries[name]["sha256"] for name in entries}}
    if MANIFEST in problems:
        # The plan has a checksum of its own, and a damaged manifest needs it. The names of images
        # may be what is damaged.
        checksums.pop(PLAN, None)
        entries.clear()
    names_by_checksum = {checksum: name for name, checksum in checksums.items()}
    files = [PLAN, TEACHER, *names]
    for name in track(files, len(files), "Reading", "files", brief=True):
        path, checksum = folder / name, checksums.get(name)
        if not path.is_file():
            # A finished cache can be read without its plan, which early manifests do not list.
            if checksum is not None or name != PLAN:
                problems[name] = "is missing"
            continue
        found = None if checksum is None else sha256_of_file(path)
        if found in names_by_checksum and found != checksum:
            problems[name] = f"contains the data of {names_by_checksum[found]}"
        elif found != checksum:
            problems[name] = _describe_damage(path, entries.get(name, {}).get("bytes"))
        else:
            try:
                _check_content(folder, name, plan["fingerprint"], entries.get(name))
            except InputError as error:
                problems[name] = _without_path(error, path)
    for path in sorted([*folder.iterdir(), *(folder / SHARDS).glob("*")]):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") and path.suffix == ".tmp":
            problems[name] = "is a temporary file of an interrupted command"
        elif path.parent != folder and name not in names:
            problems[name] = f"is not listed in {MANIFEST}"
    return problems


def expected_shards(folder: Path, problems: dict[str, str]) -> list[str]:
    """Names of a cache's shards within its folder, from its plan if the manifest is damaged.

    Raises:
        InputError: both are damaged.
    """
    if MANIFEST not in problems:
        return [f"{SHARDS}/{entry['name']}" for entry in read_manifest(folder)["shards"]]
    try:
        if PLAN not in problems:
            return [f"{SHARDS}/{name}" for name in planned_shards(folder)]
    except InputError:
        pass
    raise InputError(
        f"{folder}: {PLAN} and {MANIFEST} are both damaged, so the cache's settings are lost; build"
        " the cache again"
    )


def _without_path(error: InputError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _describe_damage(path: Path, expected: int | None) -> str:
    """The problem of a file whose checksum does not match, with its size in the manifest."""
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    if expected is not None and size != expected:
        damage = "is truncated" if size < expected else "is too long"
        return f"{damage}: expected {expected} bytes, found {size}"
    return f"is damaged: its checksum is not that in {MANIFEST}"


def _check_content(folder: Path, name: str, fingerprint: str, entry: dict[str, Any] | None) -> None:
    """Raises an InputError if a file cannot be read or belongs to another cache.

    A shard also needs the images in its `entry` of the manifest.
    """
    path = folder / name
    if name == TEACHER:
        read_teacher_file(path, fingerprint)
    elif name != PLAN:
        layout = read_layout(path, fingerprint)
        if entry is not None and layout.images != tuple(entry["images"]):
            raise InputError(f"{path}: expected the images listed in {MANIFEST}, found others")
    else:
        plan = read_plan(folder)
        if not has_intact_checksum(path, plan):
            raise InputError(f"{path}: is damaged: its own checksum does not match")
        if plan["fingerprint"] != fingerprint:
            raise InputError(f"{path}: belongs to another cache")


def _repair_cache(folder: Path, problems: dict[str, str], options: _RepairOptions) -> None:
    """Removes unexpected files, and makes the missing and damaged ones of `problems` again.

    If a file cannot be made again, all files stay as they are.

    Raises:
        InputError: plan and manifest are both damaged, the cache's inputs are missing or have
            changed, or an image can no longer be read.
    """
    files = [TEACHER, *expected_shards(folder, problems)]
    plan = _restored_plan(folder) if PLAN in problems else read_plan(folder)
    for name in problems.keys() - {PLAN, MANIFEST, *files}:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        logger.info(f"{name}: removed")
    damaged = [name for name in files if name in problems]
    if damaged:
        with TemporaryDirectory(prefix=".repair.", suffix=".tmp", dir=folder) as temporary:
            made = Path(temporary)
            (made / SHARDS).mkdir()
            write_checksummed_json(made / PLAN, plan)
            for name in set(files) - set(damaged):
                (made / name).symlink_to((folder / name).absolute())
            try:
                # It prints the numbers of the temporary cache.
                with redirect_stdout(io.StringIO()):
                    _repeat_command(plan, made, options)
            except InputError as error:
                raise InputError(str(error).replace(str(made), str(folder))) from None
            if MANIFEST not in problems:
                _check_no_lost_images(folder, made)
            for name in damaged:
                os.replace(made / name, folder / name)
                logger.info(f"{name}: made again")
    if PLAN in problems:
        write_checksummed_json(folder / PLAN, plan)
        logger.info(f"{PLAN}: written again from {MANIFEST}")
    if damaged or PLAN in problems or MANIFEST in problems:
        write_manifest(folder)
        logger.info(f"{MANIFEST}: written again")


def _restored_plan(folder: Path) -> dict[str, Any]:
    """The content of a damaged or missing `build.json`, from the manifest."""
    manifest = read_manifest(folder)
    num_images = sum(len(entry["images"]) for entry in manifest["shards"])
    return BuildPlan(
        parts=manifest["parts"],
        layout=manifest.get("layout", {}),
        num_images=num_images + len(manifest["failed"]),
        settings=manifest.get("settings", {}),
        vocabulary=vocabulary_to_dict(stored_vocabulary(folder / MANIFEST, manifest)),
    ).to_dict()


def _check_no_lost_images(folder: Path, made: Path) -> None:
    """Checks that a new cache has outputs of all images of an old one.

    Raises:
        InputError: an image that had outputs can no longer be read.
    """
    cache = open_cache(made)
    for entry in read_manifest(folder)["shards"]:
        for image in entry["images"]:
            if image not in cache:
                reason = cache.failed.get(image, "it is not in the dataset")
                raise InputError(f"{folder}: {image}: cannot be extracted again: {reason}")


def _repeat_command(plan: dict[str, Any], out: Path, options: _RepairOptions) -> None:
    """Repeats the command that made a cache in the folder `out`, where it makes the missing files.

    Raises:
        InputError: the settings are incomplete, the dataset folder is missing, or the command
            fails.
    """
    from teacher_cache.build import BuildConfig, build_cache
    from teacher_cache.detectors.base import is_own_class
    from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache

    file = out / PLAN
    settings = {
        name: value
        for name, value in plan.get("settings", {}).items()
        if name not in MACHINE_SETTINGS
    }
    settings["device"] = options.device or settings.get("device", "auto")
    teacher = confirm_class("--teacher", settings.get("teacher"), options.teacher)
    if teacher is not None:
        settings["teacher"] = teacher
    if settings.get(COMMAND_KEY) == "rescore":
        rescore_cache(replace(from_settings(settings, RescoreConfig, file), out=out))
        return
    if options.dataset is not None:
        old, new = settings.get("dataset", ""), options.dataset
        settings = {name: _relocate(value, old, new) for name, value in settings.items()}
    settings["detector"] = confirm_class(
        "--detector", settings.get("detector"), options.detector, is_own_class
    )
    build = from_settings(settings, BuildConfig, file)
    if not build.dataset.is_dir():
        raise InputError(f"{build.dataset}: no such dataset folder; give its new path with --data")
    build_cache(replace(build, out=out))


def _relocate(value: Any, old: str, new: Path) -> Any:
    """A setting after the dataset folder was moved from `old` to `new`."""
    if isinstance(value, str) and old and Path(value).is_relative_to(old):
        return str(new / Path(value).relative_to(old))
    return value
