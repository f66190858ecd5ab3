"""Which answers go where when caches are joined, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline.annotations import AnnotationFile
from pipeline.errors import InputError
from pipeline.progress import track
from pipeline.types import Pairs
from teacher_cache.format import ImageAnswers, shard_name
from teacher_cache.holdings import Holding, Place
from teacher_cache.pairing import ANNOTATED, annotated_pairs


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
