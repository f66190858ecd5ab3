"""Several teachers as one: the mean of their answers to the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.progress import Progress
from teacher_cache.finish import finish
from teacher_cache.format import (
    ENSEMBLE_OF,
    FORMAT_VERSION,
    PAIR_DATASETS,
    PAIR_OFFSETS,
    REGION_EMBEDDING,
    SHARDS,
    TEACHER,
    differing_parts,
    fingerprint_of,
    plain_vocabulary,
    shard_name,
)
from teacher_cache.lock import hold
from teacher_cache.plan import Plan, check_folder, claim_folder
from teacher_cache.reader import TeacherCache, open_cache
from teacher_cache.settings import to_settings
from teacher_cache.writer import is_finished_shard, write_arrays, write_teacher

PROBABILITIES = "pairs/action_probabilities"
REGION = "pairs/region"
# What teachers of one ensemble have in common: they were asked the same questions.
COMMON = ("vocabulary", "annotations", "part")
QUESTIONS = (PAIR_OFFSETS, *(name for name in PAIR_DATASETS if name not in (PROBABILITIES, REGION)))


@dataclass(frozen=True)
class EnsembleConfig:
    """Whom to join.

    Attributes:
        caches: finished ones of the same pairs, two or more, in any order.
        out: the new cache folder, or of an interrupted ensemble of the same caches.
    """

    caches: tuple[Path, ...]
    out: Path


def ensemble(config: EnsembleConfig, say: Callable[[str], None] = print) -> None:
    """Writes a cache whose answers are the mean over several caches.

    Sentences and regions are those of the cache with the first fingerprint; embeddings of regions
    have no mean that goes with the answers, and are left out.

    Raises:
        InputError: fewer than two teachers, or caches that were not asked the same questions.
    """
    caches = sorted((open_cache(folder) for folder in config.caches), key=_by_fingerprint)
    _refuse_fewer_than_two(caches, config)
    for other in caches[1:]:
        _same_questions(caches[0], other)
    first = caches[0]
    plan = Plan(
        parts=ensemble_parts([cache.manifest["parts"] for cache in caches]),
        layout={**first.manifest.get("layout", {}), "embeddings": False},
        num_images=len(first) + len(first.failed),
        settings=to_settings("ensemble", config),
        vocabulary=plain_vocabulary(first.vocabulary),
    )
    if check_folder(config.out, plan):
        say(f"{config.out}: was finished before; nothing to do")
        return
    _compare(caches)
    with hold(config.out, say=say) as held:
        claim_folder(config.out, plan)
        held.remove_leftovers()
        write_teacher(config.out / TEACHER, plan.fingerprint, first.teacher)
        with Progress(len(first), "Averaging", "images") as progress:
            for shard in range(first.num_shards):
                path = config.out / SHARDS / shard_name(shard)
                if not is_finished_shard(path, plan.fingerprint):
                    _write_mean(caches, shard, path, plan.fingerprint)
                progress.advance(len(first.layout(shard).images))
        completion = finish(config.out)
    assert completion.counts is not None
    say(f"{config.out}: {completion.counts['pairs']} pairs, the mean of {len(caches)} teachers")


def ensemble_parts(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the mean's fingerprint is made of: what all members have in common, and who they are.

    Args:
        members: the parts of the members' fingerprints, in the order of these.
    """
    shared = {
        name: value
        for name, value in members[0].items()
        if all(name in other and other[name] == value for other in members)
    }
    made = [fingerprint_of(parts) for parts in members]
    return {**shared, "format_version": FORMAT_VERSION, ENSEMBLE_OF: made}


def _by_fingerprint(cache: TeacherCache) -> str:
    return cache.fingerprint


def _refuse_fewer_than_two(caches: Sequence[TeacherCache], config: EnsembleConfig) -> None:
    named = ", ".join(map(str, config.caches))
    if len(caches) < 2:
        raise InputError(f"{named}: expected two caches or more, found one")
    for one, other in pairwise(caches):
        if one.fingerprint == other.fingerprint:
            raise InputError(f"{other.path}: expected another teacher than {one.path}'s, found it")


def _same_questions(first: TeacherCache, other: TeacherCache) -> None:
    """Compares what the manifests say.

    Raises:
        InputError: other images, or other labels or words.
    """
    parts = [
        {name: cache.manifest["parts"].get(name) for name in COMMON} for cache in (first, other)
    ]
    if changes := differing_parts(*parts):
        raise InputError(
            f"{other.path}: expected the pairs of {first.path}, found others: {changes}"
        )
    shards = [[entry["images"] for entry in cache.manifest["shards"]] for cache in (first, other)]
    if shards[0] == shards[1]:
        return
    images = [[image for shard in each for image in shard] for each in shards]
    if images[0] == images[1]:
        sizes = [cache.manifest["layout"].get("images_per_shard") for cache in (first, other)]
        raise InputError(
            f"{other.path}: expected {sizes[0]} images per shard as in {first.path}, found"
            f" {sizes[1]}"
        )
    differing = sorted(set(images[0]) ^ set(images[1]))
    raise InputError(
        f"{other.path}: expected the images of {first.path}, found others"
        + (f" ({len(differing)} are in one only, first {differing[0]})" if differing else "")
    )


def _compare(caches: Sequence[TeacherCache]) -> None:
    """Compares the pairs themselves, before anything is written.

    Raises:
        InputError: a pair differs in boxes, scores, object or source.
    """
    first = caches[0]
    for shard in range(first.num_shards):
        wanted = first.arrays(shard)
        for other in caches[1:]:
            held = other.arrays(shard)
            for name in QUESTIONS:
                if not np.array_equal(wanted[name], held[name]):
                    raise InputError(
                        f"{other.path}: {shard_name(shard)}: {name}: expected the pairs of"
                        f" {first.path}, found others"
                    )


def _write_mean(caches: Sequence[TeacherCache], shard: int, path: Path, fingerprint: str) -> None:
    first = caches[0]
    layout, arrays = first.layout(shard), dict(first.arrays(shard))
    answers = [cache.arrays(shard)[PROBABILITIES].astype(np.float64) for cache in caches]
    arrays[PROBABILITIES] = np.mean(answers, axis=0)
    arrays.pop(REGION_EMBEDDING, None)
    write_arrays(path, fingerprint, layout.images, layout.failed, arrays)
