"""Makes sure that a cache is whole: every byte as it was written, nothing missing, nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets import open_dataset
from pipeline.errors import InputError
from teacher_cache.finish import finish
from teacher_cache.format import MANIFEST, PLAN, SHARDS
from teacher_cache.integrity import examine
from teacher_cache.lock import hold
from teacher_cache.reader import open_cache
from teacher_cache.repair import remake, repair, undo_stopped_repair
from teacher_cache.seal import is_intact


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


def verify(config: VerifyConfig, say: Callable[[str], None] = print) -> None:
    """Completes the manifest when only that is missing, reads everything, and repairs on demand.

    Raises:
        InputError: something is wrong, after all of it was told; or it cannot be repaired.
    """
    folder = config.cache
    if config.repair and ((folder / MANIFEST).is_file() or (folder / PLAN).is_file()):
        # Refuses while somebody builds; the repair's own builder holds the folder itself.
        with hold(folder, say=say):
            undo_stopped_repair(folder)
    if not (folder / MANIFEST).is_file():
        if not (folder / PLAN).is_file():
            raise InputError(f"{folder}: expected a cache folder with {MANIFEST}, found none")
        _complete(config, say)
    found = examine(folder)
    for problem in found.problems:
        say(str(problem))
    if found.problems and config.repair:
        repair(folder, found, config.dataset, config.device, say)
        found = examine(folder)
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
    say(
        f"{folder}: {len(cache)} images in {cache.num_shards} shards,"
        f" {found.num_bytes / 1e6:.1f} MB as they were written"
    )


def _complete(config: VerifyConfig, say: Callable[[str], None]) -> None:
    """Writes the manifest that jobs on one folder left out.

    Raises:
        InputError: shards are missing, or `build.json` is damaged.
    """
    folder = config.cache
    content = (folder / PLAN).read_bytes()
    if b'"vocabulary"' in content and not is_intact(content):
        raise InputError(f"{folder / PLAN}: is damaged: its own checksum does not fit")
    completion = finish(folder)
    if completion.missing and config.repair:
        remake(folder, config.dataset, config.device, say)
        return
    for name in completion.missing:
        say(f"{SHARDS}/{name}: is missing")
    if completion.missing:
        raise InputError(
            f"{folder}: the cache is unfinished: {SHARDS}/{completion.missing[0]} is missing"
            f" ({len(completion.missing)} shards); the same eoid-cache build command goes on with"
            " it, and so does verify --repair"
        )
    say(f"{folder}: all shards are there; wrote {MANIFEST}")
