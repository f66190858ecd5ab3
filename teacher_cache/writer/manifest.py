"""Writes `manifest.json`, which finishes a cache whose shards are all complete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.utils.errors import bad_field
from pipeline.utils.files import sha256_of_file
from pipeline.utils.logging import get_logger
from pipeline.utils.schema import Positive, convert
from pipeline.utils.text import count_noun
from teacher_cache.reader.cache import read_teacher_file
from teacher_cache.reader.format import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    REGION_EMBEDDING,
    SHARDS,
    TEACHER,
    shard_name,
)
from teacher_cache.writer.checksum import write_checksummed_json
from teacher_cache.writer.plan import read_plan
from teacher_cache.writer.shard import ShardRecord, is_finished_shard, read_shard_record

logger = get_logger(__name__)


@dataclass(frozen=True)
class CacheStatus:
    """Which shards of a cache are missing, and the totals of one without missing shards.

    Attributes:
        missing: names of the shards that are not finished.
        counts: numbers of images, pairs, regions, shards and failed images; None while shards are
            missing.
        failed: image id -> error, for images that could not be read.
    """

    missing: tuple[str, ...]
    counts: dict[str, int] | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def report(self, folder: Path) -> None:
        """Prints the totals of a finished cache; logs missing shards, or what is wrong with it."""
        counts, failed = self.counts, self.failed
        if counts is None:
            logger.info(
                f"{folder}: missing {count_noun(len(self.missing), 'shards')} of other jobs; the"
                f" last job completes the cache, or: eoid-cache verify {folder}"
            )
            return
        print(
            f"{folder}: "
            + ", ".join(
                count_noun(counts[name], name) for name in ("images", "pairs", "regions", "shards")
            )
        )
        if counts["images"] and not counts["pairs"]:
            logger.warning(
                f"{folder}: no image has a human-object pair, so that a student learns nothing from"
                " this cache; expected a detector that finds the dataset's people and objects"
            )
        for image, reason in list(failed.items())[:1]:
            logger.warning(
                f"{folder}: {count_noun(len(failed), 'images')} could not be read, first {image}:"
                f" {reason} (another try: --retry-failed {folder} and a new --out)"
            )


def planned_shards(folder: Path) -> list[str]:
    """File names of all shards of a build, computed from its `build.json`.

    Raises:
        InputError: `build.json` is missing or damaged.
    """
    plan, file = read_plan(folder), folder / PLAN
    size = convert(
        plan["layout"].get("images_per_shard"), Positive, file, "layout.images_per_shard"
    )
    num_images = convert(plan.get("images"), int, file, "images")
    return [shard_name(number) for number in range(-(-num_images // size))]


def write_manifest(folder: Path, made: Iterable[ShardRecord] = ()) -> CacheStatus:
    """Writes the manifest, if all shards are finished.

    Several processes may call it at the same time, and it may be called again later: equal shards
    give an equal manifest.

    Args:
        folder: the cache.
        made: records of shards that the caller has just written; others are read from the files.

    Raises:
        InputError: `build.json` or `teacher.h5` is missing or damaged.
    """
    plan = read_plan(folder)
    fingerprint = plan["fingerprint"]
    known = {record.name: record for record in made}
    paths = [folder / SHARDS / name for name in planned_shards(folder)]
    # Checksums need all bytes of all shards, so missing ones are looked for first.
    missing = [
        path.name
        for path in paths
        if path.name not in known and not is_finished_shard(path, fingerprint)
    ]
    if missing:
        return CacheStatus(tuple(missing))
    read_teacher_file(folder / TEACHER, fingerprint)
    records = [known.get(path.name) or read_shard_record(path, fingerprint) for path in paths]
    _check_widths(folder, records)
    failed = {image: reason for record in records for image, reason in record.failed.items()}
    counts = {
        "images": sum(len(record.images) for record in records),
        "pairs": sum(record.pairs for record in records),
        "regions": sum(record.regions for record in records),
        "shards": len(records),
        "failed": len(failed),
    }
    copied_fields = ("parts", "layout", "vocabulary", "settings")
    write_checksummed_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            **{name: plan[name] for name in copied_fields if name in plan},
            "counts": counts,
            "failed": failed,
            "files": {name: sha256_of_file(folder / name) for name in (PLAN, TEACHER)},
            "shards": [record.to_dict() for record in records],
        },
    )
    return CacheStatus((), counts, failed)


def _check_widths(folder: Path, records: Iterable[ShardRecord]) -> None:
    """Refuses region embeddings of different widths, as a user's teacher may return them."""
    by_width: dict[int, str] = {}
    for record in records:
        if record.embedding_width is not None:
            by_width.setdefault(record.embedding_width, record.name)
    if len(by_width) > 1:
        (first, name), (second, other) = list(by_width.items())[:2]
        raise bad_field(
            folder / SHARDS / other,
            REGION_EMBEDDING,
            f"embeddings of width {first}, as in {name}",
            f"width {second}" if second else "none",
        )
