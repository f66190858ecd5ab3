"""Joins caches of one build.

They are the shards that jobs wrote to separate disks, or caches that could each read only some of
the dataset's images.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.cluster.lock import lock_folder
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, describe_changes
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import track
from pipeline.utils.text import count_noun
from teacher_cache.reader.cache import read_outputs, read_teacher_file
from teacher_cache.reader.format import PLAN, SHARDS, TEACHER, TeacherOutputs, vocabulary_to_dict
from teacher_cache.reader.manifest import read_manifest, stored_vocabulary
from teacher_cache.reader.shard import map_shard, read_layout
from teacher_cache.writer.manifest import planned_shards, write_manifest
from teacher_cache.writer.plan import BuildPlan, check_folder, claim_folder, read_plan
from teacher_cache.writer.settings import MERGED_FROM_KEY
from teacher_cache.writer.shard import is_finished_shard, write_shard, write_teacher_file

logger = get_logger(__name__)


def merge_caches(caches: Sequence[Path], out: Path) -> None:
    """Joins caches and writes the new one.

    Args:
        caches: cache folders, finished or with some of the shards of a build.
        out: the new cache folder, or that of an interrupted merge of the same caches.

    Raises:
        InputError: the input is bad, the caches differ in more than their images, a shard is in
            none of them, or two of them contain different outputs of an image.
    """
    resolved = [(folder / SHARDS).resolve() for folder in caches]
    for row, folder in enumerate(caches):
        if resolved[row] in resolved[:row]:
            raise InputError(f"{folder}: expected every cache once, found this one again")
    first = caches[0]
    plan = _merged_plan(caches)
    text = read_teacher_file(first / TEACHER, plan.fingerprint)
    names = planned_shards(first)
    copies = {name: _distinct_copies(caches, name) for name in names}
    for name, paths in track(copies.items(), len(names), "Comparing", "shards", brief=True):
        if not paths:
            folders = ", ".join(map(str, caches))
            raise InputError(f"{folders}: expected shard {name} in one of them, found it in none")
        join_shards(paths, plan.fingerprint)
    if check_folder(out, plan):
        logger.info(f"{out}: was finished before; nothing to do")
        return
    with lock_folder(out) as lock:
        claim_folder(out, plan)
        lock.remove_temporary_files()
        write_teacher_file(out / TEACHER, plan.fingerprint, text)
        for name, paths in track(copies.items(), len(names), "Joining", "shards"):
            path = out / SHARDS / name
            if is_finished_shard(path, plan.fingerprint):
                continue
            if len(paths) == 1:
                with atomic_write(path) as temporary:
                    shutil.copyfile(paths[0], temporary)
                continue
            outputs, failed = join_shards(paths, plan.fingerprint)
            verbs = len(plan.vocabulary["verbs"])
            write_shard(
                path, plan.fingerprint, list(outputs), list(outputs.values()), failed, verbs
            )
        counts = write_manifest(out).counts
    assert counts is not None
    print(
        f"{out}: {count_noun(counts['images'], 'images')}, {count_noun(counts['pairs'], 'pairs')}"
        f" of {len(caches)} caches in {count_noun(counts['shards'], 'shards')}"
    )


def _merged_plan(caches: Sequence[Path]) -> BuildPlan:
    """The plan of the new cache.

    Raises:
        InputError: a folder is not a cache, or the caches have different fingerprints or layouts.
    """
    for folder in caches:
        if not (folder / PLAN).is_file():
            # Raises the error for a folder that is not a cache.
            read_manifest(folder)
    first, *others = [read_plan(folder) for folder in caches]
    for folder, other in zip(caches[1:], others, strict=True):
        changes = describe_changes(
            {**first["parts"], **first["layout"]}, {**other["parts"], **other["layout"]}
        )
        if changes:
            raise InputError(
                f"{folder}: expected the fingerprint and layout of {caches[0]}, found others"
                f" ({changes})"
            )
    sources = [str(folder.absolute()) for folder in caches]
    return BuildPlan(
        parts=first["parts"],
        layout=first["layout"],
        num_images=first.get("images", 0),
        settings={**first.get("settings", {}), MERGED_FROM_KEY: sources},
        vocabulary=vocabulary_to_dict(stored_vocabulary(caches[0] / PLAN, first)),
    )


def _distinct_copies(caches: Sequence[Path], name: str) -> list[Path]:
    """The files of a shard in all caches, without those that have the same bytes as another."""
    distinct: list[Path] = []
    for path in (folder / SHARDS / name for folder in caches):
        if path.is_file() and not any(filecmp.cmp(path, each, shallow=False) for each in distinct):
            distinct.append(path)
    return distinct


def join_shards(
    paths: Sequence[Path], fingerprint: str
) -> tuple[dict[str, TeacherOutputs], dict[str, str]]:
    """Outputs and failures by image id of a shard of which several files exist.

    An image counts as failed only if no file has outputs of it.

    Raises:
        InputError: a file is damaged, or the outputs of an image differ.
    """
    outputs: dict[str, TeacherOutputs] = {}
    failed: dict[str, str] = {}
    for path in paths:
        layout = read_layout(path, fingerprint)
        arrays = map_shard(path, layout)
        for row, image in enumerate(layout.images):
            found = read_outputs(arrays, row)
            if not _outputs_equal(outputs.setdefault(image, found), found):
                raise InputError(
                    f"{path}: {image}: expected the outputs of {paths[0]}, found different ones"
                )
        failed = {**layout.failed, **failed}
    return outputs, {image: failed[image] for image in failed if image not in outputs}


def _outputs_equal(first: TeacherOutputs, second: TeacherOutputs) -> bool:
    arrays, others = ({**vars(each), **asdict(each.pairs), "pairs": 0} for each in (first, second))
    return all(np.array_equal(arrays[name], others[name]) for name in arrays)
