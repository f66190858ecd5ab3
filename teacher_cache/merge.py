"""Joins caches that were made piece by piece into the one that a single build would have made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.annotations import AnnotationFile
from pipeline.datasets import open_dataset
from pipeline.errors import InputError
from pipeline.files import replacing
from pipeline.progress import Progress
from teacher_cache.finish import finish
from teacher_cache.format import (
    SHARDS,
    TEACHER,
    differing_parts,
    plain_vocabulary,
    shard_name,
)
from teacher_cache.holdings import Holding, open_holding
from teacher_cache.joining import (
    Content,
    check_annotated,
    check_overlap,
    fill_shards,
    find_sources,
    shards_of_dataset,
    shards_of_one_plan,
)
from teacher_cache.lock import hold
from teacher_cache.plan import Plan, check_folder, claim_folder
from teacher_cache.settings import MERGED_FROM
from teacher_cache.writer import is_finished_shard, write_shard, write_teacher

# What caches of pieces of one dataset may differ in; the whole dataset says what they become.
OF_THE_PIECE = ("annotations", "part")


@dataclass(frozen=True)
class MergeConfig:
    """What to join.

    Attributes:
        caches: folders, finished or with the shards of one job.
        out: the new cache folder, or of an interrupted merge of the same caches.
        dataset: the whole dataset, where the caches were made from pieces of it; None when all
            were made from one annotation file.
        part: of the dataset; None takes the caches' own.
    """

    caches: tuple[Path, ...]
    out: Path
    dataset: Path | None = None
    part: str | None = None


def merge(config: MergeConfig, say: Callable[[str], None] = print) -> None:
    """Joins caches.

    Raises:
        InputError: bad input, caches that differ in more than their images, images that no cache
            holds, or for which two caches hold different answers.
    """
    holdings = [open_holding(folder) for folder in config.caches]
    first = holdings[0]
    _same_parts(holdings, () if config.dataset is None else OF_THE_PIECE)
    whole = None if config.dataset is None else _whole(config.dataset, config.part, holdings)
    _same_layout(holdings, whole is not None)
    size = first.plan["layout"].get("images_per_shard") or max(first.num_images, 1)
    if whole is None:
        shards = shards_of_one_plan(holdings, size)
    else:
        shards = shards_of_dataset(holdings, whole, size)
    sources = find_sources(holdings)
    contents = fill_shards(shards, sources, holdings)
    check_overlap(sources)
    if whole is not None:
        check_annotated(sources, whole)
    plan = _plan(config, holdings, whole, sum(map(len, shards)))
    if check_folder(config.out, plan):
        say(f"{config.out}: was finished before; nothing to do")
        return
    if not plan.layout["embeddings"] and any(_embeddings(holding) for holding in holdings):
        say(f"{config.out}: without region embeddings, which some of the caches lack")
    with hold(config.out, say=say) as held:
        claim_folder(config.out, plan)
        held.remove_leftovers()
        write_teacher(config.out / TEACHER, plan.fingerprint, first.text)
        with Progress(plan.num_images, "Joining", "images") as progress:
            for number, content in enumerate(contents):
                path = config.out / SHARDS / shard_name(number)
                if not is_finished_shard(path, plan.fingerprint):
                    _write(path, content, plan, first.vocabulary.num_verbs)
                progress.advance(len(content.images) + len(content.failed))
        completion = finish(config.out)
    assert completion.counts is not None
    counts = completion.counts
    say(
        f"{config.out}: {counts['images']} images, {counts['pairs']} pairs of"
        f" {len(holdings)} caches in {counts['shards']} shards"
    )


def _same_parts(holdings: Sequence[Holding], free: Sequence[str]) -> None:
    """Refuses caches whose answers were made in different ways.

    Raises:
        InputError: names the part of the fingerprint that differs.
    """
    first, *others = holdings
    for other in others:
        parts = [
            {name: value for name, value in holding.plan["parts"].items() if name not in free}
            for holding in (first, other)
        ]
        changes = differing_parts(*parts)
        if changes:
            differ = {name for name in parts[0] if parts[0][name] != parts[1].get(name)}
            hint = "; --data joins pieces of one dataset" if differ <= {*OF_THE_PIECE} else ""
            raise InputError(
                f"{other.folder}: expected the fingerprint of {first.folder}, found another"
                f" ({changes}){hint}"
            )


def _same_layout(holdings: Sequence[Holding], any_size: bool) -> None:
    first, *others = holdings
    for other in others:
        sizes = [each.plan["layout"].get("images_per_shard") for each in (first, other)]
        if sizes[0] != sizes[1] and not any_size:
            raise InputError(
                f"{other.folder}: expected {sizes[0]} images per shard as in {first.folder}, found"
                f" {sizes[1]}; --data joins such caches in the dataset's order"
            )


def _whole(folder: Path, part: str | None, holdings: Sequence[Holding]) -> AnnotationFile:
    """The dataset that the caches together stand for.

    Raises:
        InputError: bad dataset, of another vocabulary, or nobody says which part.
    """
    dataset = open_dataset(folder)
    first = holdings[0]
    wanted = {"vocabulary": dataset.vocabulary.digest()}
    changes = differing_parts({"vocabulary": first.plan["parts"].get("vocabulary")}, wanted)
    if changes:
        raise InputError(f"{first.folder}: the cache does not fit this dataset: {changes}")
    parts = {str(holding.plan["parts"].get("part")) for holding in holdings}
    if part is None and len(parts) > 1:
        raise InputError(
            f"--part: expected the dataset's part that caches of {' and '.join(sorted(parts))}"
            " together are, found none"
        )
    return dataset.load(part or parts.pop())


def _plan(
    config: MergeConfig,
    holdings: Sequence[Holding],
    whole: AnnotationFile | None,
    num_images: int,
) -> Plan:
    first = holdings[0]
    parts, settings = dict(first.plan["parts"]), dict(first.settings)
    if whole is not None:
        parts |= {"annotations": whole.digest, "part": whole.part}
        settings |= {"dataset": str(Path(config.dataset or "").absolute()), "part": whole.part}
    layout = {**first.plan["layout"], "embeddings": all(map(_embeddings, holdings))}
    sources = [str(folder.absolute()) for folder in config.caches]
    return Plan(
        parts=parts,
        layout=layout,
        num_images=num_images,
        settings={**settings, MERGED_FROM: sources},
        vocabulary=plain_vocabulary(first.vocabulary),
    )


def _embeddings(holding: Holding) -> bool:
    return bool(holding.plan["layout"].get("embeddings", True))


def _write(path: Path, content: Content, plan: Plan, num_verbs: int) -> None:
    whole = _whole_shard(content, plan)
    if whole is not None:
        with replacing(path) as temporary:
            shutil.copyfile(whole, temporary)
        return
    answers = [source.answers for source in content.images.values()]
    if not plan.layout["embeddings"]:
        answers = [replace(each, embeddings=None) for each in answers]
    write_shard(path, plan.fingerprint, list(content.images), answers, content.failed, num_verbs)


def _whole_shard(content: Content, plan: Plan) -> Path | None:
    """The file of one cache that is the shard already, where there is one."""
    for source in list(content.images.values())[:1]:
        holding, number = source.holding, source.place.shard
        layout = holding.layouts[number]
        if (
            holding.plan["fingerprint"] == plan.fingerprint
            and layout.images == tuple(content.images)
            and layout.failed == content.failed
            and _embeddings(holding) == plan.layout["embeddings"]
        ):
            return holding.shard_path(number)
    return None
