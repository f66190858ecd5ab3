"""Test pictures for the report, picked by rules that leave no room for taste."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.drawing.interactions import draw_annotation, draw_detections
from evaluation.hico.matching import MatchedBatch, collect_triplets
from evaluation.hico.nms import batched_pairwise_nms
from evaluation.tables import join_names
from pipeline.types import Annotation, Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

LONG_SIDE = 512
JPEG_QUALITY = 80


@dataclass(frozen=True, eq=False)
class GalleryImage:
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
    def data_uri(self) -> str:
        """The drawing as a data URI."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class GalleryItem:
    """One test picture: ground truth, then every entry."""

    image_id: str
    images: tuple[GalleryImage, ...]


@dataclass(frozen=True)
class GalleryRow:
    """Pictures picked by one rule."""

    title: str
    rule: str
    items: tuple[GalleryItem, ...]


def build_gallery(
    comparison: Comparison,
    annotations: Sequence[Annotation],
    entries: Sequence[tuple[ComparisonEntry, Sequence[Detections]]],
    load_image: Callable[[str], Image.Image],
    available: Collection[str] | None = None,
) -> list[GalleryRow]:
    """Draws ground truth beside each entry's detections.

    Every entry shows its best-scoring detections after pairwise NMS, as many of unseen and as
    many of seen interactions as the picture has labels of. Verbs without object, which the
    protocol does not score, stay out of the pictures, and so do pictures that cannot be read.

    Args:
        annotations: of all test pictures.
        entries: with their detections; the first one's decide which pictures are best and
            worst.
        load_image: gives the picture of an image id.
        available: ids of the pictures that can be opened; None for all.
    """
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    held = [
        replace(item, hois=item.hois[_valid_mask(item, vocabulary)])
        for item in annotations
        if available is None or item.image_id in available
    ]
    views: list[_EntryDetections] = []
    for entry, detections in entries:
        found = {item.image_id: item for item in detections}
        kept = batched_pairwise_nms(
            [found.get(item.image_id) or _empty_detections(item.image_id) for item in held]
        )
        masks = [_valid_mask(item, vocabulary) for item in kept]
        aligned = [
            replace(item, hois=item.hois[rows], scores=item.scores[rows])
            for item, rows in zip(kept, masks, strict=True)
        ]
        numbers = np.arange(len(held))
        said, ground_truth = (
            collect_triplets(items, numbers, vocabulary) for items in (aligned, held)
        )
        batch = MatchedBatch.from_triplets(said, ground_truth, vocabulary)
        ends = np.cumsum([len(item.hois) for item in aligned])
        tp_mask = np.zeros(ends[-1] if len(ends) else 0, dtype=bool)
        tp_mask[said.source_rows] = batch.tp_mask
        views.append(
            _EntryDetections(
                entry,
                aligned,
                np.split(tp_mask, ends[:-1]),
                per_image_ap(batch, len(held), unseen or None),
                per_image_ap(batch, len(held)),
            )
        )
    gallery_rows = []
    for title, rule, images in select_images(held, *views[0].quality, vocabulary, unseen):
        cards = [
            card
            for index in images
            if (card := _build_item(held[index], index, views, comparison, load_image)) is not None
        ]
        if cards:
            gallery_rows.append(GalleryRow(title, rule, tuple(cards)))
    return gallery_rows


@dataclass(frozen=True, eq=False)
class _EntryDetections:
    """An entry's detections of every picture and how good they are.

    Attributes:
        tp_mask: of each picture (K,) bool, which detections are right.
        unseen_ap, whole_ap: (N,) average precision within each picture, of its unseen
            interactions (all, where nothing is unseen) and of all.
    """

    entry: ComparisonEntry
    detections: list[Detections]
    tp_mask: list[np.ndarray]
    unseen_ap: np.ndarray
    whole_ap: np.ndarray

    @property
    def quality(self) -> tuple[np.ndarray, np.ndarray]:
        return self.unseen_ap, self.whole_ap

    def note(self, index: int, has_unseen: bool) -> str:
        if has_unseen:
            return f"unseen AP {100 * self.unseen_ap[index]:.0f}"
        return f"AP {100 * self.whole_ap[index]:.0f}"


def _build_item(
    annotation: Annotation,
    index: int,
    views: Sequence[_EntryDetections],
    comparison: Comparison,
    load_image: Callable[[str], Image.Image],
) -> GalleryItem | None:
    """One picture drawn, None where it cannot be read."""
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    try:
        image = load_image(annotation.image_id)
    except InputError:
        return None
    labelled = interaction_indices(annotation, vocabulary)
    ground_truth = draw_annotation(image, annotation, vocabulary, set(unseen), LONG_SIDE)
    name = annotation.image_id
    said = f"{name}, labelled: {_describe_interactions(labelled, comparison)}"
    pictures = [GalleryImage("Ground truth", "", "ground_truth", ground_truth, said)]
    has_unseen = not set(unseen).isdisjoint(labelled)
    for view in views:
        note = view.note(index, has_unseen)
        pictures.append(_draw_entry_image(view, image, annotation, index, note, comparison))
    return GalleryItem(name, tuple(pictures))


def _draw_entry_image(
    view: _EntryDetections,
    image: Image.Image,
    annotation: Annotation,
    index: int,
    note: str,
    comparison: Comparison,
) -> GalleryImage:
    vocabulary, detections = comparison.vocabulary, view.detections[index]
    rows = _select_detections(annotation, detections, comparison)
    top = replace(detections, hois=detections.hois[rows], scores=detections.scores[rows])
    # The best of an interaction's detections are among those shown, so that what was right about
    # the picture is right about these.
    tp_mask = view.tp_mask[index][rows]
    drawn = draw_detections(image, top, vocabulary, set(comparison.unseen), tp_mask, LONG_SIDE)
    said = _describe_interactions(interaction_indices(top, vocabulary), comparison, tp_mask)
    title = view.entry.title
    alt = f"{annotation.image_id}, {title}: {said}"
    return GalleryImage(title, note, view.entry.style, drawn, alt)


def _select_detections(
    annotation: Annotation, detections: Detections, comparison: Comparison
) -> np.ndarray:
    """The rows of `detections` to show. Unseen interactions are counted apart: those that nobody
    labelled score lower, and would hide behind the second best guesses about the others."""
    labelled, found = (
        np.isin(interaction_indices(item, comparison.vocabulary), comparison.unseen)
        for item in (annotation, detections)
    )
    parts = [np.flatnonzero(found == kind)[: (labelled == kind).sum()] for kind in (True, False)]
    return np.sort(np.concatenate(parts))


def _valid_mask(item: Annotation | Detections, vocabulary: Vocabulary) -> np.ndarray:
    """(K,) bool: rows that are interactions of the vocabulary."""
    return np.array(interaction_indices(item, vocabulary), dtype=np.int64) >= 0


def _describe_interactions(
    interactions: Sequence[int], comparison: Comparison, tp_mask: np.ndarray | None = None
) -> str:
    said = []
    for row, index in enumerate(interactions):
        marks = ["unseen"] if index in comparison.unseen else []
        if tp_mask is not None:
            marks.append("right" if tp_mask[row] else "wrong")
        note = f" ({', '.join(marks)})" if marks else ""
        said.append(comparison.vocabulary.interaction_name(index) + note)
    return join_names(said) if said else "nothing"


def _empty_detections(image_id: str) -> Detections:
    return Detections(
        image_id,
        np.zeros((0, 4), dtype=np.float32),
        np.zeros(0, dtype=np.int64),
        np.zeros((0, 3), dtype=np.int64),
        np.zeros(0),
    )


NUM_BEST = 3
# A dozen in all.
NUM_RANDOM, NUM_SEEN = 8, 4
SAMPLE_SEED = 0


def per_image_ap(
    batch: MatchedBatch, count: int, interactions: Collection[int] | None = None
) -> np.ndarray:
    """Average precision within each picture, its interactions ranked together by score: the mean,
    over the labelled interactions, of the precision at the detection that is right about one (0
    where none is).

    Args:
        batch: the detections of all pictures.
        count: N, of the pictures.
        interactions: HOI indices that count; None for all.

    Returns:
        (N,) float64, NaN for pictures without such an interaction.
    """
    found, ground_truth, tp_mask = batch.detections, batch.ground_truth, batch.tp_mask
    if interactions is not None:
        wanted = np.array(sorted(interactions), dtype=np.int64)
        ground_truth = ground_truth.keep(np.isin(ground_truth.interactions, wanted))
        rows = np.isin(found.interactions, wanted)
        found, tp_mask = found.keep(rows), tp_mask[rows]
    order = np.lexsort((-found.scores, found.images))
    found, tp_mask = found.keep(order), tp_mask[order]
    num_truth = np.bincount(ground_truth.images, minlength=count)
    num_found = np.bincount(found.images, minlength=count)
    first = np.cumsum(num_found) - num_found
    rank = np.arange(len(found)) - first[found.images] + 1
    before = np.cumsum(tp_mask) - tp_mask
    found_so_far = np.cumsum(tp_mask) - np.append(before, 0)[first][found.images]
    gains = np.bincount(found.images, tp_mask * found_so_far / rank, minlength=count)
    return np.where(num_truth > 0, gains / np.maximum(num_truth, 1), np.nan)


def interaction_indices(item: Annotation | Detections, vocabulary: Vocabulary) -> list[int]:
    """HOI index of every row, -1 for verbs without object and pairs that form no HOI."""
    table, labels = vocabulary.interaction_ids, item.labels
    return [
        int(table[verb, labels[target]]) if target >= 0 else -1
        for _, target, verb in item.hois.tolist()
    ]


def select_images(
    annotations: Sequence[Annotation],
    unseen_ap: np.ndarray,
    whole_ap: np.ndarray,
    vocabulary: Vocabulary,
    unseen: Sequence[int],
) -> list[tuple[str, str, list[int]]]:
    """Picks pictures: the best, the worst and some at random of those with an unseen action, then
    some at random of the others. No picture is picked twice.

    Args:
        unseen_ap, whole_ap: (N,) average precision within each picture, of its unseen
            interactions and of all; NaN where it has none.

    Returns:
        title, rule and image numbers for each gallery row with pictures.
    """
    held_back = set(unseen)
    actions = [interaction_indices(annotation, vocabulary) for annotation in annotations]
    able = [index for index in range(len(annotations)) if not np.isnan(whole_ap[index])]
    with_unseen = [index for index in able if held_back.intersection(actions[index])]
    pool = with_unseen or able
    quality = unseen_ap if with_unseen else whole_ap
    # More labelled interactions are harder to get all right, and easier to get some right.
    best_first = sorted(pool, key=lambda index: (-quality[index], -len(actions[index]), index))
    worst_first = sorted(pool, key=lambda index: (quality[index], -len(actions[index]), index))
    wanted = held_back or set(range(vocabulary.num_interactions))

    def different(ranked: list[int], taken: set[int]) -> list[int]:
        chosen: list[int] = []
        verbs: set[int] = set()
        for index in ranked:
            own = {vocabulary.interactions[one][0] for one in actions[index] if one in wanted}
            if index not in taken and not own & verbs and len(chosen) < NUM_BEST:
                chosen.append(index)
                verbs |= own
        return chosen

    def drawn(candidates: list[int], number: int, taken: set[int]) -> list[int]:
        left = [index for index in candidates if index not in taken]
        rng = np.random.default_rng(SAMPLE_SEED)
        return sorted(rng.choice(left, min(number, len(left)), replace=False).tolist())

    random = drawn(pool, NUM_RANDOM if with_unseen else NUM_RANDOM + NUM_SEEN, set())
    best = different(best_first, set(random))
    worst = different(worst_first, {*best, *random})
    others = [index for index in able if index not in set(with_unseen)] if with_unseen else []
    seen_only = drawn(others, NUM_SEEN, set())
    which = "unseen action" if with_unseen else "action"
    measured = "average precision of the unseen actions" if with_unseen else "average precision"
    ranking = f"{measured} within the picture, more labelled actions first among equals"
    gallery_rows = [
        ("Best", f"Highest {ranking}; no {which} twice.", best),
        ("Worst", f"Lowest {ranking}; no {which} twice.", worst),
        (
            "Drawn at random",
            f"{len(random)} pictures with an {which}, blindly drawn, before looking for the best"
            " and the worst.",
            random,
        ),
        (
            "Drawn at random, seen actions only",
            f"{len(seen_only)} of the pictures without an {which}, blindly drawn.",
            seen_only,
        ),
    ]
    return [gallery_row for gallery_row in gallery_rows if gallery_row[2]]
