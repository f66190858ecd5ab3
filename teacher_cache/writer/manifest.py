"""Completes a cache: the manifest is written when the last shard is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.utils.errors import bad_field
from pipeline.utils.files import sha256_of_file
from teacher_cache.reader.cache import read_teacher_file
from teacher_cache.reader.format import FORMAT_VERSION, MANIFEST, PLAN, SHARDS, TEACHER, shard_name
from teacher_cache.writer.checksum import write_checksummed_json
from teacher_cache.writer.plan import read_plan
from teacher_cache.writer.shard import ShardRecord, is_finished_shard, read_shard_record


@dataclass(frozen=True)
class CacheStatus:
    """How far a cache is.

    Attributes:
        missing: names of the shards that are not finished.
        counts: of the manifest; None while shards are missing.
        failed: reasons by id of images that could not be read; empty while shards are missing.
    """

    missing: tuple[str, ...]
    counts: dict[str, int] | None
    failed: dict[str, str]


def planned_shards(folder: Path) -> list[str]:
    """Names of all shards that a build is to make, by its `build.json`.

    Raises:
        InputError: `build.json` is missing or damaged.
    """
    plan = read_plan(folder)
    size, num_images = plan["layout"].get("images_per_shard"), plan.get("images")
    if not isinstance(size, int) or size < 1:
        raise bad_field(folder / PLAN, "layout.images_per_shard", "a number from 1 on", size)
    if not isinstance(num_images, int):
        raise bad_field(folder / PLAN, "images", "the number of images", num_images)
    return [shard_name(number) for number in range(-(-num_images // size))]


def write_manifest(folder: Path, made: Iterable[ShardRecord] = ()) -> CacheStatus:
    """Writes the manifest of a cache whose shards are all there.

    It may be called by several processes at once and again later: the same shards make the same
    manifest.

    Args:
        folder: a cache that was begun.
        made: records of shards that the caller has just made; others are read.

    Raises:
        InputError: `build.json` or `teacher.h5` is missing or damaged.
    """
    plan = read_plan(folder)
    fingerprint = plan["fingerprint"]
    known = {record.name: record for record in made}
    names = planned_shards(folder)
    paths = {name: folder / SHARDS / name for name in names}
    # Checksums take reading everything; nobody should wait for them in vain.
    missing = [
        name
        for name in names
        if name not in known and not is_finished_shard(paths[name], fingerprint)
    ]
    if missing:
        return CacheStatus(tuple(missing), None, {})
    read_teacher_file(folder / TEACHER, fingerprint)
    shards = {
        name: known.get(name) or read_shard_record(paths[name], fingerprint) for name in names
    }
    records = [record for record in shards.values() if record is not None]
    if len(records) < len(names):
        return CacheStatus(tuple(name for name in names if shards[name] is None), None, {})
    failed = {image: reason for record in records for image, reason in record.failed.items()}
    counts = {
        "images": sum(len(record.images) for record in records),
        "pairs": sum(record.pairs for record in records),
        "regions": sum(record.regions for record in records),
        "shards": len(records),
        "failed": len(failed),
    }
    carried = ("parts", "layout", "vocabulary", "settings")
    write_checksummed_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            **{name: plan[name] for name in carried if name in plan},
            "counts": counts,
            "failed": failed,
            "files": {name: sha256_of_file(folder / name) for name in (PLAN, TEACHER)},
            "shards": [record.to_dict() for record in records],
        },
    )
    return CacheStatus((), counts, failed)
