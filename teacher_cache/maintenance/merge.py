"""Joins caches that were made piece by piece into the one that a single build would have made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import open_dataset
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from pipeline.utils.files import differing_parts, replacing
from pipeline.utils.progress import Progress, track
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import annotated_pairs
from teacher_cache.reader.cache import TeacherText, answers_at, open_cache, read_teacher
from teacher_cache.reader.format import (
    ANNOTATED,
    MANIFEST,
    PLAN,
    SHARDS,
    TEACHER,
    ImageAnswers,
    plain_vocabulary,
    shard_name,
)
from teacher_cache.reader.manifest import held_vocabulary
from teacher_cache.reader.shard import ShardLayout, map_shard, read_layout
from teacher_cache.writer.lock import hold
from teacher_cache.writer.manifest import finish, planned_shards
from teacher_cache.writer.plan import (
    MERGED_FROM,
    Plan,
    check_folder,
    claim_folder,
    held_settings,
    read_plan,
)
from teacher_cache.writer.shard import is_finished_shard, write_shard, write_teacher

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


@dataclass(frozen=True, eq=False)
class Source:
    """Where an image's answers come from."""

    holding: Holding
    place: Place

    @property
    def answers(self) -> ImageAnswers:
        return self.holding.answers(self.place)


@dataclass(frozen=True, eq=False)
class Content:
    """A shard to be.

    Attributes:
        images: where the answers come from, by image id.
        failed: reasons by id of images that could not be read.
    """

    images: dict[str, Source]
    failed: dict[str, str]


def find_sources(holdings: Sequence[Holding]) -> dict[str, list[Source]]:
    """Every cache's answers by image id."""
    sources: dict[str, list[Source]] = {}
    for holding in holdings:
        for image, place in holding.places().items():
            sources.setdefault(image, []).append(Source(holding, place))
    return sources


def shards_of_one_plan(holdings: Sequence[Holding], size: int) -> list[list[str]]:
    """Image ids of every shard, where all caches follow one plan: shards of one number hold the
    same images, as far as they are there.

    Args:
        size: images of a shard.

    Raises:
        InputError: a shard, or some of its images, is in none of the caches.
    """
    num_images = holdings[0].num_images
    shards = []
    for number, first in enumerate(range(0, num_images, size)):
        layouts = [each.layouts[number] for each in holdings if number in each.layouts]
        images = dict.fromkeys(
            image for layout in layouts for image in (*layout.images, *layout.failed)
        )
        wanted = min(size, num_images - first)
        if len(images) != wanted:
            raise InputError(
                f"{', '.join(str(each.folder) for each in holdings)}: expected {wanted} images of"
                f" shard {shard_name(number)}, found {len(images)}"
            )
        shards.append(list(images))
    return shards


def shards_of_dataset(
    holdings: Sequence[Holding], whole: AnnotationFile, size: int
) -> list[list[str]]:
    """Image ids of every shard, in the order of the whole dataset.

    Raises:
        InputError: a cache holds an image that the dataset lacks.
    """
    ids = [annotation.image_id for annotation in whole.annotations]
    known = set(ids)
    for holding in holdings:
        for layout in holding.layouts.values():
            for image in (*layout.images, *layout.failed):
                if image not in known:
                    raise InputError(
                        f"{holding.folder}: expected images of {whole.path}, found {image}"
                    )
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def fill_shards(
    shards: Sequence[Sequence[str]],
    sources: Mapping[str, Sequence[Source]],
    holdings: Sequence[Holding],
) -> list[Content]:
    """Where everything comes from; an image that one cache could read has not failed.

    Raises:
        InputError: images that no cache knows.
    """
    reasons = {
        image: reason
        for holding in reversed(holdings)
        for layout in holding.layouts.values()
        for image, reason in layout.failed.items()
    }
    known = sources.keys() | reasons.keys()
    lost = [image for shard in shards for image in shard if image not in known]
    if lost:
        folders = ", ".join(str(holding.folder) for holding in holdings)
        total = sum(map(len, shards))
        raise InputError(f"{folders}: {len(lost)} of {total} images are in none, first {lost[0]}")
    return [
        Content(
            {image: sources[image][0] for image in shard if image in sources},
            {image: reasons[image] for image in shard if image not in sources},
        )
        for shard in shards
    ]


def check_overlap(sources: Mapping[str, Sequence[Source]]) -> None:
    """Compares the answers of images that several caches hold.

    Raises:
        InputError: they differ.
    """
    shared = {image: held for image, held in sources.items() if len(held) > 1}
    for image, (first, *others) in track(
        shared.items(), len(shared), "Comparing", "images", brief=True
    ):
        answers = first.answers
        for other in others:
            if not same_answers(answers, other.answers):
                raise InputError(
                    f"{other.holding.folder}: {image}: expected the answers of"
                    f" {first.holding.folder}, found different ones"
                )


def check_annotated(sources: Mapping[str, Sequence[Source]], whole: AnnotationFile) -> None:
    """Makes sure that the caches' annotated pairs are those of the whole dataset.

    Raises:
        InputError: an image has other annotated pairs there.
    """
    annotations = whole.annotations
    for annotation in track(annotations, len(annotations), "Comparing", "annotations", brief=True):
        for source in sources.get(annotation.image_id, ())[:1]:
            pairs = source.answers.pairs
            wanted = annotated_pairs(annotation)
            own = pairs.sources == ANNOTATED
            held = Pairs(**{each.name: getattr(pairs, each.name)[own] for each in fields(Pairs)})
            if not _equal(held, wanted):
                raise InputError(
                    f"{source.holding.folder}: {annotation.image_id}: expected the annotated pairs"
                    f" of {whole.path}, found others"
                )


def same_answers(first: ImageAnswers, second: ImageAnswers) -> bool:
    """Whether two caches say the same; embeddings count where both hold them."""
    arrays = ("probabilities", "regions", "region_boxes")
    if not _equal(first.pairs, second.pairs):
        return False
    if not all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays):
        return False
    if first.embeddings is None or second.embeddings is None:
        return True
    return np.array_equal(first.embeddings, second.embeddings)


def _equal(first: Pairs, second: Pairs) -> bool:
    return all(
        np.array_equal(getattr(first, each.name), getattr(second, each.name))
        for each in fields(Pairs)
    )


@dataclass(frozen=True)
class Place:
    """Where an image's answers lie: the number of the shard and the row within it."""

    shard: int
    row: int


@dataclass(frozen=True, eq=False)
class Holding:
    """The finished shards of a folder.

    Attributes:
        folder: finished cache or not.
        file: the one that says what the cache is.
        plan: its content: fingerprint, parts, layout and the like.
        num_images: of the whole cache, unreadable ones included.
        layouts: of the shards that are there, by number.
    """

    folder: Path
    file: Path
    plan: dict[str, Any]
    num_images: int
    layouts: dict[int, ShardLayout]
    _mapped: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def text(self) -> TeacherText:
        return read_teacher(self.folder / TEACHER, self.plan["fingerprint"])

    @property
    def vocabulary(self) -> Vocabulary:
        return held_vocabulary(self.file, self.plan)

    @property
    def settings(self) -> dict[str, Any]:
        return held_settings(self.folder, self.plan)

    def places(self) -> dict[str, Place]:
        """Where every image's answers lie, by id."""
        return {
            image: Place(number, row)
            for number, layout in self.layouts.items()
            for row, image in enumerate(layout.images)
        }

    def shard_path(self, number: int) -> Path:
        return self.folder / SHARDS / shard_name(number)

    def answers(self, place: Place) -> ImageAnswers:
        """The answers at a place; quick for one shard after the other."""
        if place.shard not in self._mapped:
            self._mapped.clear()
            path = self.shard_path(place.shard)
            self._mapped[place.shard] = map_shard(path, self.layouts[place.shard])
        return answers_at(self._mapped[place.shard], place.row)


def open_holding(folder: Path) -> Holding:
    """Looks what a folder holds.

    Raises:
        InputError: no cache, or one whose manifest and shards do not fit each other.
    """
    if not (folder / MANIFEST).is_file() and (folder / PLAN).is_file():
        return _unfinished(folder)
    cache = open_cache(folder)
    layouts = {number: cache.layout(number) for number in range(cache.num_shards)}
    for number, entry in enumerate(cache.manifest["shards"]):
        if entry["name"] != shard_name(number):
            raise InputError(
                f"{folder / MANIFEST}: shards[{number}].name: expected {shard_name(number)},"
                f" found {entry['name']}"
            )
    num_images = len(cache) + len(cache.failed)
    return Holding(folder, folder / MANIFEST, cache.manifest, num_images, layouts)


def _unfinished(folder: Path) -> Holding:
    plan = read_plan(folder)
    layouts = {}
    for number, name in enumerate(planned_shards(folder)):
        path = folder / SHARDS / name
        if path.is_file():
            layouts[number] = read_layout(path, plan["fingerprint"])
    return Holding(folder, folder / PLAN, plan, plan["images"], layouts)
