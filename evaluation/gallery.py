"""Test pictures for the report, picked by rules that leave no room for taste."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from evaluation.comparison import Comparison
from evaluation.contestants import Contestant
from evaluation.draw import draw_annotation, draw_detections
from evaluation.judged import Part
from evaluation.matching import collect
from evaluation.nms import suppress_pairs
from evaluation.shelves import interactions_of, pick, picture_ap
from evaluation.wording import listing
from pipeline.errors import InputError
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

LONG_SIDE = 512
JPEG_QUALITY = 80


@dataclass(frozen=True, eq=False)
class Picture:
    """One drawn picture.

    Attributes:
        title: whose view it shows.
        note: average precision within the picture, "" for the ground truth.
        style: for its colour in the page.
        image: the drawing.
        alt: what it shows.
    """

    title: str
    note: str
    style: str
    image: Image.Image
    alt: str

    @cached_property
    def source(self) -> str:
        """The drawing as a data URI."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Card:
    """One test picture: ground truth, then every contestant."""

    image_id: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Shelf:
    """Pictures picked by one rule."""

    title: str
    rule: str
    cards: tuple[Card, ...]


def build_gallery(
    comparison: Comparison,
    annotations: Sequence[Annotation],
    contestants: Sequence[tuple[Contestant, Sequence[Detections]]],
    open_picture: Callable[[str], Image.Image],
    there: Collection[str] | None = None,
) -> list[Shelf]:
    """Draws ground truth beside each contestant's detections.

    Every contestant shows its best-scoring detections after pairwise NMS, as many of unseen and as
    many of seen interactions as the picture has labels of. Verbs without object, which the
    protocol does not score, stay out of the pictures, and so do pictures that cannot be read.

    Args:
        annotations: of all test pictures.
        contestants: with their detections; the first one's decide which pictures are best and
            worst.
        open_picture: gives the picture of an image id.
        there: ids of the pictures that can be opened; None for all.
    """
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    held = [
        replace(item, hois=item.hois[_scored(item, vocabulary)])
        for item in annotations
        if there is None or item.image_id in there
    ]
    views: list[_View] = []
    for contestant, detections in contestants:
        found = {item.image_id: item for item in detections}
        kept = suppress_pairs(
            [found.get(item.image_id) or _nothing(item.image_id) for item in held]
        )
        masks = [_scored(item, vocabulary) for item in kept]
        aligned = [
            replace(item, hois=item.hois[rows], scores=item.scores[rows])
            for item, rows in zip(kept, masks, strict=True)
        ]
        numbers = np.arange(len(held))
        said, truth = (collect(items, numbers, vocabulary) for items in (aligned, held))
        part = Part.of(said, truth, vocabulary)
        ends = np.cumsum([len(item.hois) for item in aligned])
        hits = np.zeros(ends[-1] if len(ends) else 0, dtype=bool)
        hits[said.sources] = part.hits
        views.append(
            _View(
                contestant,
                aligned,
                np.split(hits, ends[:-1]),
                picture_ap(part, len(held), unseen or None),
                picture_ap(part, len(held)),
            )
        )
    shelves = []
    for title, rule, images in pick(held, *views[0].quality, vocabulary, unseen):
        cards = [
            card
            for index in images
            if (card := _card(held[index], index, views, comparison, open_picture)) is not None
        ]
        if cards:
            shelves.append(Shelf(title, rule, tuple(cards)))
    return shelves


@dataclass(frozen=True, eq=False)
class _View:
    """A contestant's detections of every picture and how good they are.

    Attributes:
        hits: of each picture (K,) bool, which detections are right.
        unseen_ap, whole_ap: (N,) average precision within each picture, of its unseen
            interactions (all, where nothing is unseen) and of all.
    """

    contestant: Contestant
    detections: list[Detections]
    hits: list[np.ndarray]
    unseen_ap: np.ndarray
    whole_ap: np.ndarray

    @property
    def quality(self) -> tuple[np.ndarray, np.ndarray]:
        return self.unseen_ap, self.whole_ap

    def note(self, index: int, has_unseen: bool) -> str:
        if has_unseen:
            return f"unseen AP {100 * self.unseen_ap[index]:.0f}"
        return f"AP {100 * self.whole_ap[index]:.0f}"


def _card(
    annotation: Annotation,
    index: int,
    views: Sequence[_View],
    comparison: Comparison,
    open_picture: Callable[[str], Image.Image],
) -> Card | None:
    """One picture drawn, None where it cannot be read."""
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    try:
        image = open_picture(annotation.image_id)
    except InputError:
        return None
    labelled = interactions_of(annotation, vocabulary)
    truth = draw_annotation(image, annotation, vocabulary, set(unseen), LONG_SIDE)
    name = annotation.image_id
    said = f"{name}, labelled: {_sentence(labelled, comparison)}"
    pictures = [Picture("Ground truth", "", "truth", truth, said)]
    has_unseen = not set(unseen).isdisjoint(labelled)
    for view in views:
        note = view.note(index, has_unseen)
        pictures.append(_drawn(view, image, annotation, index, note, comparison))
    return Card(name, tuple(pictures))


def _drawn(
    view: _View,
    image: Image.Image,
    annotation: Annotation,
    index: int,
    note: str,
    comparison: Comparison,
) -> Picture:
    vocabulary, detections = comparison.vocabulary, view.detections[index]
    rows = _best(annotation, detections, comparison)
    top = replace(detections, hois=detections.hois[rows], scores=detections.scores[rows])
    # The best of an interaction's detections are among those shown, so that what was right about
    # the picture is right about these.
    hits = view.hits[index][rows]
    drawn = draw_detections(image, top, vocabulary, set(comparison.unseen), hits, LONG_SIDE)
    said = _sentence(interactions_of(top, vocabulary), comparison, hits)
    title = view.contestant.title
    alt = f"{annotation.image_id}, {title}: {said}"
    return Picture(title, note, view.contestant.style, drawn, alt)


def _best(annotation: Annotation, detections: Detections, comparison: Comparison) -> np.ndarray:
    """The rows of `detections` to show. Unseen interactions are counted apart: those that nobody
    labelled score lower, and would hide behind the second best guesses about the others."""
    labelled, found = (
        np.isin(interactions_of(item, comparison.vocabulary), comparison.unseen)
        for item in (annotation, detections)
    )
    parts = [np.flatnonzero(found == kind)[: (labelled == kind).sum()] for kind in (True, False)]
    return np.sort(np.concatenate(parts))


def _scored(item: Annotation | Detections, vocabulary: Vocabulary) -> np.ndarray:
    """(K,) bool: rows that are interactions of the vocabulary."""
    return np.array(interactions_of(item, vocabulary), dtype=np.int64) >= 0


def _sentence(
    interactions: Sequence[int], comparison: Comparison, hits: np.ndarray | None = None
) -> str:
    said = []
    for row, index in enumerate(interactions):
        marks = ["unseen"] if index in comparison.unseen else []
        if hits is not None:
            marks.append("right" if hits[row] else "wrong")
        note = f" ({', '.join(marks)})" if marks else ""
        said.append(comparison.vocabulary.interaction_name(index) + note)
    return listing(said) if said else "nothing"


def _nothing(image_id: str) -> Detections:
    return Detections(
        image_id,
        np.zeros((0, 4), dtype=np.float32),
        np.zeros(0, dtype=np.int64),
        np.zeros((0, 3), dtype=np.int64),
        np.zeros(0),
    )
