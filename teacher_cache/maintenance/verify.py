"""Makes sure that a cache is whole: every byte as it was written, nothing missing, nothing more."""

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
    """What to verify.

    Attributes:
        cache: the cache folder.
        repair: make broken files again.
        dataset: the cache must fit it; a repair asks about its images. None for where it was.
        device: where a repair runs models; None for where they ran.
    """

    cache: Path
    repair: bool = False
    dataset: Path | None = None
    device: str | None = None


def verify_cache(config: VerifyConfig) -> None:
    """Completes the manifest when only that is missing, reads everything, and repairs on demand.

    Raises:
        InputError: something is wrong, after all of it was told; or it cannot be repaired.
    """
    folder = config.cache
    if config.repair and ((folder / MANIFEST).is_file() or (folder / PLAN).is_file()):
        # Refuses while somebody builds; the repair's own builder holds the folder itself.
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
        many = len(found.problems)
        raise InputError(
            f"{folder}: {found.problems[0]}{f' ({many} problems)' if many > 1 else ''};"
            " verify --repair makes broken files again"
        )
    cache = open_cache(folder)
    if config.dataset is not None:
        dataset = open_dataset(config.dataset)
        part = str(cache.manifest["parts"].get("part"))
        cache.check(dataset.vocabulary, dataset.load(part).digest, part)
    print(
        f"{folder}: {len(cache)} images in {cache.num_shards} shards,"
        f" {found.num_bytes / 1e6:.1f} MB as they were written"
    )


def _complete_manifest(config: VerifyConfig) -> None:
    """Writes the manifest that jobs on one folder left out.

    Raises:
        InputError: shards are missing, or `build.json` is damaged.
    """
    folder = config.cache
    content = (folder / PLAN).read_bytes()
    if b'"vocabulary"' in content and not has_valid_checksum(content):
        raise InputError(f"{folder / PLAN}: is damaged: its own checksum does not fit")
    completion = write_manifest(folder)
    if completion.missing and config.repair:
        rebuild_missing_files(folder, config.dataset, config.device)
        return
    for name in completion.missing:
        print(f"{SHARDS}/{name}: is missing")
    if completion.missing:
        raise InputError(
            f"{folder}: the cache is unfinished: {SHARDS}/{completion.missing[0]} is missing"
            f" ({len(completion.missing)} shards); the same eoid-cache build command goes on with"
            " it, and so does verify --repair"
        )
    logger.info(f"{folder}: all shards are there; wrote {MANIFEST}")


# Where a repair keeps what it replaces until it has succeeded.
BACKUP_FOLDER = ".repair"
# Extracted again; written again from what the folder holds; removed.
RepairAction = Literal["extract", "write", "remove"]
SHARD_ENTRY_PATTERN = re.compile(rb'"name":\s*"(\d+\.h5)",\s*"sha256":\s*"([0-9a-f]{64})"')
FILE_ENTRY_PATTERN = re.compile(rb'"(build\.json|teacher\.h5)":\s*"([0-9a-f]{64})"')
HASHING_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file.

    Attributes:
        name: the file within the cache folder.
        description: what is wrong, for people.
        action: what a repair does about it.
    """

    name: str
    description: str
    action: RepairAction

    def __str__(self) -> str:
        return f"{self.name}: {self.description}"


@dataclass(frozen=True)
class VerificationResult:
    """What was found.

    Attributes:
        problems: file by file, the manifest first.
        checksums: of every file that the manifest speaks of, by name within the folder, as far as
            a damaged manifest still tells.
        num_bytes: of all files that were read.
    """

    problems: tuple[Problem, ...]
    checksums: dict[str, str]
    num_bytes: int

    def files_needing(self, action: RepairAction) -> list[str]:
        """Names of the files that need this action."""
        return [problem.name for problem in self.problems if problem.action == action]


def check_files(folder: Path) -> VerificationResult:
    """Reads every byte of a cache that has a manifest.

    Raises:
        InputError: a file that is there may not be read.
    """
    content = (folder / MANIFEST).read_bytes()
    problems = list(_manifest_problems(folder, content))
    manifest = None if problems else read_manifest(folder)
    checksums = _parse_checksums(content)
    names = _expected_shards(folder, manifest, checksums)
    checksums = {name: checksums[name] for name in (PLAN, TEACHER, *names) if name in checksums}
    there = [name for name in checksums if (folder / name).is_file()]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        hashes = pool.map(lambda name: sha256_of_file(folder / name), there)
        found = dict(
            zip(there, track(hashes, len(there), "Reading", "files", brief=True), strict=True)
        )
    places = {checksum: name for name, checksum in checksums.items()}
    for name in (PLAN, TEACHER, *names):
        action: RepairAction = "write" if name == PLAN else "extract"
        if not (folder / name).exists():
            # Caches of an early version may have lost what nobody needs to read them.
            if name in checksums or name != PLAN:
                problems.append(Problem(name, "is missing", action))
        elif name not in checksums:
            problems += _problems_without_checksum(folder, name, manifest, action)
        elif found.get(name) != checksums[name]:
            what = _describe_damage(folder / name, found.get(name), manifest, places)
            problems.append(Problem(name, what, action))
    if manifest is not None:
        problems += _mismatched_shards(folder, manifest, {problem.name for problem in problems})
    problems += _unexpected_files(folder, set(names))
    size = len(content) + sum((folder / name).stat().st_size for name in there)
    return VerificationResult(tuple(problems), checksums, size)


def _manifest_problems(folder: Path, content: bytes) -> Iterator[Problem]:
    path = folder / MANIFEST
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        yield Problem(MANIFEST, str(error).removeprefix(f"{path}: "), "write")
        return
    # An early version wrote no checksum of the manifest itself, and no vocabulary either.
    if ("vocabulary" in manifest or "sha256" in manifest) and not has_valid_checksum(content):
        yield Problem(MANIFEST, "is damaged: its own checksum does not fit", "write")


def _parse_checksums(content: bytes) -> dict[str, str]:
    """What a manifest's bytes say of files, even where they are no JSON any more."""
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
    """Problems of a file that the manifest has no checksum of."""
    path = folder / name
    fingerprint = None if manifest is None else manifest["fingerprint"]
    try:
        if name == PLAN:
            plan = read_plan(folder)
            if ("vocabulary" in plan or "sha256" in plan) and not has_valid_checksum(
                path.read_bytes()
            ):
                yield Problem(name, "is damaged: its own checksum does not fit", action)
            elif fingerprint is not None and plan["fingerprint"] != fingerprint:
                yield Problem(name, "belongs to another cache", action)
        elif name == TEACHER and fingerprint is not None:
            read_teacher_file(path, fingerprint)
        else:
            yield Problem(name, f"the damaged {MANIFEST} does not tell its checksum", action)
    except InputError as error:
        yield Problem(name, str(error).removeprefix(f"{path}: "), action)


def _describe_damage(
    path: Path, found: str | None, manifest: dict[str, Any] | None, places: dict[str, str]
) -> str:
    """What is wrong with a file whose checksum does not fit."""
    if found is None:
        return "is no file"
    if found in places:
        return f"holds what belongs into {places[found]}"
    entries = [] if manifest is None else manifest["shards"]
    wanted = next((entry.get("bytes") for entry in entries if entry["name"] == path.name), None)
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    if wanted is not None and size != wanted:
        kind = "is cut off" if size < wanted else "is too long"
        return f"{kind}: {size} bytes, {wanted} were written"
    return f"is damaged: its checksum is not that in {MANIFEST}"


def _mismatched_shards(
    folder: Path, manifest: dict[str, Any], known: set[str]
) -> Iterator[Problem]:
    """Shards that are as the manifest says and yet not of this cache, or of other images."""
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
            yield Problem(MANIFEST, f"{entry['name']}: images: not those of the shard", "write")
    if len(set(images)) != len(images):
        yield Problem(MANIFEST, "shards: some image stands in it twice", "write")


def _unexpected_files(folder: Path, names: set[str]) -> Iterator[Problem]:
    for path in sorted([*folder.iterdir(), *_list_folder(folder / SHARDS)]):
        name = path.relative_to(folder).as_posix()
        if path.name == BACKUP_FOLDER or (path.name.startswith(".") and path.suffix == ".tmp"):
            yield Problem(name, "was left over by a stopped writer", "remove")
        elif path.parent.name == SHARDS and path.parent != folder and name not in names:
            yield Problem(name, f"is no shard that {MANIFEST} speaks of", "remove")


def _list_folder(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


# Where and by how many shards are made is the repairer's choice, not the first builder's.
MACHINE_SETTINGS = ("mode", "share", "workers")


def repair_cache(
    folder: Path,
    found: VerificationResult,
    dataset: Path | None,
    device: str | None,
) -> None:
    """Makes what is broken again; what was broken goes when all is well, and comes back when not.

    Args:
        folder: the cache.
        found: what is wrong with it.
        dataset: where the dataset is now; None for where it was.
        device: where models run; None for where they ran.

    Raises:
        InputError: nothing tells how the cache was made, what it was made from is not there or has
            changed, or an image can no longer be read.
    """
    for name in found.files_needing("remove"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        logger.info(f"{name}: removed")
    lost, asked = found.files_needing("write"), found.files_needing("extract")
    if not lost and not asked:
        return
    if PLAN in lost and MANIFEST in lost:
        raise InputError(
            f"{folder}: {PLAN} and {MANIFEST} are both damaged, so nothing tells how the cache was"
            " made; build it anew"
        )
    if PLAN in lost:
        _restore_plan(folder)
        logger.info(f"{PLAN}: written again from {MANIFEST}")
    images = {} if MANIFEST in lost else _images_by_shard(folder)
    with _backup_files(folder, [*asked, MANIFEST], keep=PLAN):
        if asked:
            rebuild_missing_files(folder, dataset, device)
        completion = write_manifest(folder)
        if completion.missing:
            raise InputError(f"{folder}: expected all shards, found no {completion.missing[0]}")
        _check_no_lost_images(folder, images)
    for name in asked:
        logger.info(
            f"{name}: made again{_compare_checksum(folder / name, found.checksums.get(name))}"
        )
    if MANIFEST in lost:
        logger.info(f"{MANIFEST}: written again")


def _compare_checksum(path: Path, checksum: str | None) -> str:
    if checksum is None:
        return ""
    if sha256_of_file(path) == checksum:
        return ", the same bytes as before"
    return ", other bytes than before (another kind of device, other threads or versions)"


def rebuild_missing_files(folder: Path, dataset: Path | None, device: str | None) -> None:
    """Runs the command that made a cache once more; it makes what is not there.

    Raises:
        InputError: as that command does.
    """
    from teacher_cache.build import BuildConfig, build_cache
    from teacher_cache.detectors.torchvision import TOY, TOY_IN_CACHES
    from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache

    file = folder / PLAN
    held = read_plan(folder).get("settings")
    settings = held if isinstance(held, dict) else {}
    own = {name: value for name, value in settings.items() if name not in MACHINE_SETTINGS}
    if settings.get(COMMAND_KEY) == "rescore":
        rescoring = from_settings(own, RescoreConfig, file)
        rescore_cache(replace(rescoring, out=folder, device=device or rescoring.device))
        return
    building = from_settings(own, BuildConfig, file)
    if building.detector == TOY_IN_CACHES:
        building = replace(building, detector=TOY)
    building = replace(building, out=folder, device=device or building.device)
    if dataset is not None:
        building = _relocate_dataset(building, dataset)
    elif not building.dataset.is_dir():
        raise InputError(f"{building.dataset}: no such dataset folder; --data says where it is now")
    build_cache(building)


def _relocate_dataset(config: BuildConfig, dataset: Path) -> BuildConfig:
    """The configuration for a dataset that lies elsewhere now, and its own models with it."""

    def moved(value: str | None) -> str | None:
        if value is None or not Path(value).is_relative_to(config.dataset):
            return value
        return str(dataset / Path(value).relative_to(config.dataset))

    return replace(
        config,
        dataset=dataset,
        detector_weights=moved(config.detector_weights),
        clip_model=moved(config.clip_model),
        clip_weights=moved(config.clip_weights),
    )


def _restore_plan(folder: Path) -> None:
    manifest = read_manifest(folder)
    num_images = sum(len(entry["images"]) for entry in manifest["shards"])
    held = {**manifest, "images": num_images + len(manifest["failed"])}
    write_checksummed_json(
        folder / PLAN, {name: held[name] for name in PLAN_FIELDS if name in held}
    )


def _images_by_shard(folder: Path) -> dict[str, list[str]]:
    return {entry["name"]: entry["images"] for entry in read_manifest(folder)["shards"]}


def _check_no_lost_images(folder: Path, images: dict[str, list[str]]) -> None:
    """A repair must not trade outputs that were there for images that have gone since.

    Raises:
        InputError: an image that had outputs has none.
    """
    manifest = read_manifest(folder)
    for entry in manifest["shards"]:
        for image in set(images.get(entry["name"], ())) - set(entry["images"]):
            reason = manifest["failed"].get(image, "the dataset does not name it")
            raise InputError(f"{folder}: {image}: cannot be asked about again: {reason}")


def undo_interrupted_repair(folder: Path) -> None:
    """Puts back what a repair that was killed had set aside and not made again."""
    aside = folder / BACKUP_FOLDER
    for path in sorted(aside.rglob("*")):
        place = folder / path.relative_to(aside)
        if path.is_file() and not place.exists():
            os.replace(path, place)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _backup_files(folder: Path, names: list[str], keep: str) -> Iterator[None]:
    """Moves files out of the way; they come back, in place of what replaced them, on failure.

    Args:
        folder: the cache.
        names: of the files.
        keep: name of a file that stays, and becomes again what it is on failure.
    """
    aside = folder / BACKUP_FOLDER
    shutil.rmtree(aside, ignore_errors=True)
    moved = [name for name in names if (folder / name).exists()]
    for name in moved:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, aside / name)
    kept = (folder / keep).read_bytes()
    try:
        yield
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for name in moved:
            os.replace(aside / name, folder / name)
        with atomic_write(folder / keep) as temporary:
            temporary.write_bytes(kept)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
