"""Takes the finished shards of an older cache into a new one, to make the others again.

A finished shard is never written again, so images that could not be read need a new cache. Shards
with all their images have equal bytes in both; they are hard-linked where the file system can.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.utils.errors import InputError
from pipeline.utils.files import link_or_copy, sha256_of_file
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import track
from pipeline.utils.text import count_noun
from teacher_cache.reader.format import SHARDS, TEACHER
from teacher_cache.reader.manifest import read_manifest
from teacher_cache.reader.shard import read_layout
from teacher_cache.writer.plan import BuildPlan, describe_settings

logger = get_logger(__name__)


def check_reusable(old: Path, out: Path, plan: BuildPlan) -> None:
    """Checks that an older cache can become part of a planned one.

    Raises:
        InputError: it is not a finished cache of the same settings in another folder, has no images
            that could not be read, or its text embeddings are missing or damaged.
    """
    manifest = read_manifest(old)
    if out.resolve().is_relative_to(old.resolve()):
        raise InputError(f"--out: expected a folder outside of --retry-failed {old}, found {out}")
    if changes := describe_settings(manifest, plan):
        raise InputError(f"{old}: expected a cache of the same settings, found another ({changes})")
    if not manifest["failed"]:
        raise InputError(f"{old}: expected images that could not be read, found none")
    checksum, teacher = manifest.get("files", {}).get(TEACHER), old / TEACHER
    if not teacher.is_file() or checksum not in (None, sha256_of_file(teacher)):
        raise InputError(
            f"{teacher}: is missing or damaged; eoid-cache verify --repair {old} first"
        )


def reuse_shards(old: Path, out: Path, plan: BuildPlan) -> None:
    """Links `teacher.h5` and the shards without failed images into a new cache, if missing there.

    The older cache is only read. Shards that are damaged are left out, like those with failed
    images, because a new manifest would contain the checksums of their damaged bytes.
    """
    manifest = read_manifest(old)
    link_or_copy(old / TEACHER, out / TEACHER)
    names, again = [], 0
    for entry in manifest["shards"]:
        if not (out / SHARDS / entry["name"]).exists():
            names.append((entry["name"], entry["sha256"]))
    for name, checksum in track(names, len(names), "Reading", "shards", brief=True):
        source = old / SHARDS / name
        try:
            is_whole = sha256_of_file(source) == checksum
            is_whole = is_whole and not read_layout(source, plan.fingerprint).failed
        except (OSError, InputError):
            is_whole = False
        if is_whole:
            link_or_copy(source, out / SHARDS / name)
        again += not is_whole
    logger.info(
        f"{out}: took {count_noun(len(names) - again, 'shards')} of {old}; making"
        f" {count_noun(again, 'shards')} again"
    )
