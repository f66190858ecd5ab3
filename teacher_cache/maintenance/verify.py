"""Verifies the files of a cache against its checksums, and repairs it.

A repair repeats the command that made the cache, with the settings that the cache contains, for
missing and damaged files only.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, sha256_of_file
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import track
from teacher_cache.reader.cache import open_cache, read_teacher_file
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER
from teacher_cache.reader.manifest import read_manifest
from teacher_cache.reader.shard import read_layout
from teacher_cache.writer.checksum import has_valid_checksum, write_checksummed_json
from teacher_cache.writer.lock import lock_folder
from teacher_cache.writer.manifest import planned_shards, write_manifest
from teacher_cache.writer.plan import PLAN_FIELDS, read_plan
from teacher_cache.writer.settings import COMMAND_KEY, from_settings

if TYPE_CHECKING:
    from teacher_cache.build import BuildConfig

logger = get_logger(__name__)


@dataclass(frozen=True)
class VerifyConfig:
    """Which cache to verify, and how to repair it.

    Attributes:
        cache: the cache folder.
        repair: whether damaged and missing files are made again.
        dataset: the dataset folder, which the cache must match and from which a repair reads
            images; None to check none, and to repair from the folder in the cache's settings.
        device: device of the models in a repair; None for the one in the cache's settings.
    """

    cache: Path
    repair: bool = False
    dataset: Path | None = None
    device: str | None = None


def verify_cache(config: VerifyConfig) -> None:
    """Checks all files of a cache, prints all problems, and repairs them if `config.repair`.

    If all shards are finished and only the manifest is missing, it is written.

    Raises:
        InputError: there are problems that were not repaired, the cache does not match the
            dataset, or a build is running.
    """
    folder = config.cache
    if config.repair and ((folder / MANIFEST).is_file() or (folder / PLAN).is_file()):
        # Fails while a build is running. The lock is not kept: the repair's build locks the folder.
        with lock_folder(folder):
            undo_interrupted_repair(folder)
    if not (folder / MANIFEST).is_file():
        if not (folder / PLAN).is_file():
            raise InputError(f"{folder}: expected a cache folder with {MANIFEST}, found none")
        _complete_manifest(config)
    found = check_files(folder)
    for problem in found.problems:
        print(problem)
    if found.problems and config.repair:
        repair_cache(folder, found, config.dataset, config.device)
        found = check_files(folder)
    if found.problems:
        count = len(found.problems)
        raise InputError(
            f"{folder}: {found.problems[0]}{f' ({count} problems)' if count > 1 else ''};"
            " verify --repair makes damaged files again"
        )
    cache = open_cache(folder)
    if config.dataset is not None:
        dataset = open_dataset(config.dataset)
        part = str(cache.manifest["parts"].get("part"))
        cache.check(dataset.vocabulary, dataset.load(part).digest, part)
    print(
        f"{folder}: {len(cache)} images in {cache.num_shards} shards,"
        f" {found.num_bytes / 1e6:.1f} MB, all checksums match"
    )


def _complete_manifest(config: VerifyConfig) -> None:
    """Writes a missing manifest, after making missing shards if `config.repair`.

    Raises:
        InputError: shards are missing, or `build.json` is damaged.
    """
    folder = config.cache
    content = (folder / PLAN).read_bytes()
    if b'"vocabulary"' in content and not has_valid_checksum(content):
        raise InputError(f"{folder / PLAN}: is damaged: its own checksum does not match")
    status = write_manifest(folder)
    if status.missing and config.repair:
        rebuild_missing_files(folder, config.dataset, config.device)
        return
    for name in status.missing:
        print(f"{SHARDS}/{name}: is missing")
    if status.missing:
        raise InputError(
            f"{folder}: the cache is unfinished: {SHARDS}/{status.missing[0]} is missing"
            f" ({len(status.missing)} shards); run the same eoid-cache build command or verify"
            " --repair to complete it"
        )
    logger.info(f"{folder}: all shards are finished; wrote {MANIFEST}")


# Folder in which a repair keeps the files that it replaces until it has succeeded.
BACKUP_FOLDER = ".repair"
# Run the models again; write again from the folder's other files; remove.
RepairAction = Literal["extract", "write", "remove"]
# A damaged manifest may not be JSON any more; its checksums are then searched for.
SHARD_ENTRY_PATTERN = re.compile(rb'"name":\s*"(\d+\.h5)",\s*"sha256":\s*"([0-9a-f]{64})"')
FILE_ENTRY_PATTERN = re.compile(rb'"(build\.json|teacher\.h5)":\s*"([0-9a-f]{64})"')
HASHING_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Problem:
    """A problem of one file.

    Attributes:
        name: name of the file within the cache folder.
        description: the problem, as the predicate of a sentence about the file.
        action: how a repair solves it.
    """

    name: str
    description: str
    action: RepairAction

    def __str__(self) -> str:
        return f"{self.name}: {self.description}"


@dataclass(frozen=True)
class VerificationResult:
    """Result of `check_files`.

    Attributes:
        problems: problems by file, those of the manifest first.
        checksums: SHA-256 digests in the manifest, by name within the cache folder; incomplete if
            the manifest is damaged.
        num_bytes: total size of the files that were read.
    """

    problems: tuple[Problem, ...]
    checksums: dict[str, str]
    num_bytes: int

    def files_needing(self, action: RepairAction) -> list[str]:
        """Names of the files that a repair treats by this action."""
        return [problem.name for problem in self.problems if problem.action == action]


def check_files(folder: Path) -> VerificationResult:
    """Reads all files of a cache with a manifest, and compares them with their checksums.

    Raises:
        InputError: a file cannot be opened.
    """
    content = (folder / MANIFEST).read_bytes()
    problems = list(_manifest_problems(folder, content))
    manifest = None if problems else read_manifest(folder)
    checksums = _parse_checksums(content)
    names = _expected_shards(folder, manifest, checksums)
    checksums = {name: checksums[name] for name in (PLAN, TEACHER, *names) if name in checksums}
    existing = [name for name in checksums if (folder / name).is_file()]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        digests = pool.map(lambda name: sha256_of_file(folder / name), existing)
        found = dict(
            zip(
                existing, track(digests, len(existing), "Reading", "files", brief=True), strict=True
            )
        )
    names_by_checksum = {checksum: name for name, checksum in checksums.items()}
    for name in (PLAN, TEACHER, *names):
        action: RepairAction = "write" if name == PLAN else "extract"
        if not (folder / name).exists():
            # A finished cache can be read without its plan, which early manifests do not list.
            if name in checksums or name != PLAN:
                problems.append(Problem(name, "is missing", action))
        elif name not in checksums:
            problems += _problems_without_checksum(folder, name, manifest, action)
        elif found.get(name) != checksums[name]:
            damage = _describe_damage(folder / name, found.get(name), manifest, names_by_checksum)
            problems.append(Problem(name, damage, action))
    if manifest is not None:
        problems += _mismatched_shards(folder, manifest, {problem.name for problem in problems})
    problems += _unexpected_files(folder, set(names))
    num_bytes = len(content) + sum((folder / name).stat().st_size for name in existing)
    return VerificationResult(tuple(problems), checksums, num_bytes)


def _manifest_problems(folder: Path, content: bytes) -> Iterator[Problem]:
    path = folder / MANIFEST
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        yield Problem(MANIFEST, str(error).removeprefix(f"{path}: "), "write")
        return
    # Early manifests contain neither a checksum of themselves nor a vocabulary.
    if ("vocabulary" in manifest or "sha256" in manifest) and not has_valid_checksum(content):
        yield Problem(MANIFEST, "is damaged: its own checksum does not match", "write")


def _parse_checksums(content: bytes) -> dict[str, str]:
    """Checksums of files by name, also from a manifest that is no longer valid JSON."""
    shards = {
        f"{SHARDS}/{name.decode()}": sha for name, sha in SHARD_ENTRY_PATTERN.findall(content)
    }
    files = {name.decode(): sha for name, sha in FILE_ENTRY_PATTERN.findall(content)}
    return {name: sha.decode() for name, sha in {**files, **shards}.items()}


def _expected_shards(
    folder: Path, manifest: dict[str, Any] | None, checksums: dict[str, str]
) -> list[str]:
    if manifest is not None:
        return [f"{SHARDS}/{entry['name']}" for entry in manifest["shards"]]
    try:
        return [f"{SHARDS}/{name}" for name in planned_shards(folder)]
    except InputError:
        return [name for name in checksums if name.startswith(SHARDS)]


def _problems_without_checksum(
    folder: Path, name: str, manifest: dict[str, Any] | None, action: RepairAction
) -> Iterator[Problem]:
    """Problems of a file for which the manifest contains no checksum."""
    path = folder / name
    fingerprint = None if manifest is None else manifest["fingerprint"]
    try:
        if name == PLAN:
            plan = read_plan(folder)
            if ("vocabulary" in plan or "sha256" in plan) and not has_valid_checksum(
                path.read_bytes()
            ):
                yield Problem(name, "is damaged: its own checksum does not match", action)
            elif fingerprint is not None and plan["fingerprint"] != fingerprint:
                yield Problem(name, "belongs to another cache", action)
        elif name == TEACHER and fingerprint is not None:
            read_teacher_file(path, fingerprint)
        else:
            yield Problem(name, f"has no checksum in the damaged {MANIFEST}", action)
    except InputError as error:
        yield Problem(name, str(error).removeprefix(f"{path}: "), action)


def _describe_damage(
    path: Path,
    found: str | None,
    manifest: dict[str, Any] | None,
    names_by_checksum: dict[str, str],
) -> str:
    """The problem of a file whose checksum does not match."""
    if found is None:
        return "is not a regular file"
    if found in names_by_checksum:
        return f"contains the data of {names_by_checksum[found]}"
    entries = [] if manifest is None else manifest["shards"]
    expected = next((entry.get("bytes") for entry in entries if entry["name"] == path.name), None)
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    if expected is not None and size != expected:
        damage = "is truncated" if size < expected else "is too long"
        return f"{damage}: expected {expected} bytes, found {size}"
    return f"is damaged: its checksum is not that in {MANIFEST}"


def _mismatched_shards(
    folder: Path, manifest: dict[str, Any], known: set[str]
) -> Iterator[Problem]:
    """Shards with the right checksum that belong to another cache or contain other images."""
    images = []
    for entry in manifest["shards"]:
        name = f"{SHARDS}/{entry['name']}"
        images += entry["images"]
        if name in known:
            continue
        try:
            layout = read_layout(folder / name, manifest["fingerprint"])
        except InputError as error:
            yield Problem(name, str(error).removeprefix(f"{folder / name}: "), "extract")
            continue
        if layout.images != tuple(entry["images"]):
            problem = f"shards: the images of {entry['name']} are not those of the shard"
            yield Problem(MANIFEST, problem, "write")
    if len(set(images)) != len(images):
        yield Problem(MANIFEST, "shards: an image is listed twice", "write")


def _unexpected_files(folder: Path, names: set[str]) -> Iterator[Problem]:
    for path in sorted([*folder.iterdir(), *(folder / SHARDS).glob("*")]):
        name = path.relative_to(folder).as_posix()
        if path.name == BACKUP_FOLDER or (path.name.startswith(".") and path.suffix == ".tmp"):
            yield Problem(name, "is a temporary file of an interrupted command", "remove")
        elif path.parent.name == SHARDS and path.parent != folder and name not in names:
            yield Problem(name, f"is not listed in {MANIFEST}", "remove")


# Settings of where shards are made, which a repair does not take from the original build.
MACHINE_SETTINGS = ("mode", "share", "workers")


def repair_cache(
    folder: Path,
    found: VerificationResult,
    dataset: Path | None,
    device: str | None,
) -> None:
    """Removes unexpected files, and makes missing and damaged ones again.

    If the repair fails, the folder contains the same files as before.

    Args:
        folder: the cache folder.
        found: the problems of the cache.
        dataset: the dataset folder; None for the one in the cache's settings.
        device: device of the models; None for the one in the cache's settings.

    Raises:
        InputError: plan and manifest are both damaged, the cache's inputs are missing or have
            changed, or an image can no longer be read.
    """
    for name in found.files_needing("remove"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        logger.info(f"{name}: removed")
    to_write, to_extract = found.files_needing("write"), found.files_needing("extract")
    if not to_write and not to_extract:
        return
    if PLAN in to_write and MANIFEST in to_write:
        raise InputError(
            f"{folder}: {PLAN} and {MANIFEST} are both damaged, so the cache's settings are lost;"
            " build the cache again"
        )
    if PLAN in to_write:
        _restore_plan(folder)
        logger.info(f"{PLAN}: written again from {MANIFEST}")
    images = {}
    if MANIFEST not in to_write:
        images = {entry["name"]: entry["images"] for entry in read_manifest(folder)["shards"]}
    # Without a manifest, the repeated command treats the cache as unfinished.
    with _backup_files(folder, [*to_extract, MANIFEST], keep=PLAN):
        if to_extract:
            rebuild_missing_files(folder, dataset, device)
        status = write_manifest(folder)
        if status.missing:
            raise InputError(f"{folder}: expected all shards, found no {status.missing[0]}")
        _check_no_lost_images(folder, images)
    for name in to_extract:
        logger.info(
            f"{name}: made again{_compare_checksum(folder / name, found.checksums.get(name))}"
        )
    if MANIFEST in to_write:
        logger.info(f"{MANIFEST}: written again")


def _compare_checksum(path: Path, checksum: str | None) -> str:
    if checksum is None:
        return ""
    if sha256_of_file(path) == checksum:
        return ", with the same bytes as before"
    return ", with other bytes than before (the device, threads or versions differ)"


def rebuild_missing_files(folder: Path, dataset: Path | None, device: str | None) -> None:
    """Repeats the command that made a cache, which makes the missing files.

    Raises:
        InputError: the settings are incomplete, the dataset folder is missing, or the command
            fails.
    """
    from teacher_cache.build import BuildConfig, build_cache
    from teacher_cache.detectors.torchvision import TOY, TOY_IN_CACHES
    from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache

    file = folder / PLAN
    stored = read_plan(folder).get("settings")
    settings = stored if isinstance(stored, dict) else {}
    values = {name: value for name, value in settings.items() if name not in MACHINE_SETTINGS}
    if settings.get(COMMAND_KEY) == "rescore":
        rescore_config = from_settings(values, RescoreConfig, file)
        device = device or rescore_config.device
        rescore_cache(replace(rescore_config, out=folder, device=device))
        return
    config = from_settings(values, BuildConfig, file)
    if config.detector == TOY_IN_CACHES:
        config = replace(config, detector=TOY)
    config = replace(config, out=folder, device=device or config.device)
    if dataset is not None:
        config = _relocate_dataset(config, dataset)
    elif not config.dataset.is_dir():
        raise InputError(f"{config.dataset}: no such dataset folder; give its new path with --data")
    build_cache(config)


def _relocate_dataset(config: BuildConfig, dataset: Path) -> BuildConfig:
    """The configuration for a dataset at another path, including models within its folder."""

    def relocate(value: str | None) -> str | None:
        if value is None or not Path(value).is_relative_to(config.dataset):
            return value
        return str(dataset / Path(value).relative_to(config.dataset))

    return replace(
        config,
        dataset=dataset,
        detector_weights=relocate(config.detector_weights),
        clip_model=relocate(config.clip_model),
        clip_weights=relocate(config.clip_weights),
    )


def _restore_plan(folder: Path) -> None:
    manifest = read_manifest(folder)
    num_images = sum(len(entry["images"]) for entry in manifest["shards"])
    fields = {**manifest, "images": num_images + len(manifest["failed"])}
    write_checksummed_json(
        folder / PLAN, {name: fields[name] for name in PLAN_FIELDS if name in fields}
    )


def _check_no_lost_images(folder: Path, images: dict[str, list[str]]) -> None:
    """Checks that a repair has not replaced outputs of images that can no longer be read.

    Args:
        folder: the cache folder.
        images: ids of the images with outputs before the repair, by name of the shard.

    Raises:
        InputError: an image that had outputs has none now.
    """
    manifest = read_manifest(folder)
    for entry in manifest["shards"]:
        for image in set(images.get(entry["name"], ())) - set(entry["images"]):
            reason = manifest["failed"].get(image, "it is not in the dataset")
            raise InputError(f"{folder}: {image}: cannot be extracted again: {reason}")


def undo_interrupted_repair(folder: Path) -> None:
    """Moves files back that a killed repair had set aside and not made again."""
    backup = folder / BACKUP_FOLDER
    for path in sorted(backup.rglob("*")):
        target = folder / path.relative_to(backup)
        if path.is_file() and not target.exists():
            os.replace(path, target)
    shutil.rmtree(backup, ignore_errors=True)


@contextmanager
def _backup_files(folder: Path, names: list[str], keep: str) -> Iterator[None]:
    """Moves files to a backup folder, which is deleted on success and restored on failure.

    Args:
        folder: the cache folder.
        names: names of the files to move.
        keep: name of a file that stays in place; its content is restored on failure.
    """
    backup = folder / BACKUP_FOLDER
    shutil.rmtree(backup, ignore_errors=True)
    moved = [name for name in names if (folder / name).exists()]
    for name in moved:
        (backup / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, backup / name)
    kept = (folder / keep).read_bytes()
    try:
        yield
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for name in moved:
            os.replace(backup / name, folder / name)
        with atomic_write(folder / keep) as temporary:
            temporary.write_bytes(kept)
        shutil.rmtree(backup, ignore_errors=True)
        raise
    shutil.rmtree(backup, ignore_errors=True)
