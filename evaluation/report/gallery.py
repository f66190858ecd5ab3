"""The gallery of test images in the report, selected by fixed rules."""

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
from evaluation.hico.matching import MatchedDetections, collect_triplets, match_triplets
from evaluation.hico.nms import pairwise_nms
from evaluation.tables import join_names
from pipeline.types import Annotation, Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary

# Long side of a drawing in pixels.
LONG_SIDE = 512
JPEG_QUALITY = 80
# Number of best and of worst images, and of random ones with and without an unseen action.
NUM_BEST, NUM_RANDOM, NUM_SEEN = 3, 8, 4
SAMPLE_SEED = 0


@dataclass(frozen=True, eq=False)
class GalleryImage:
    """One drawing of a test image.

    Attributes:
        title: "Ground truth", or title of the entry whose detections it shows.
        note: average precision within the image, "" for the ground truth.
        style: CSS class on the page.
        image: the drawing.
        alt: content of the drawing in words, for screen readers.
    """

    title: str
    note: str
    style: str
    image: Image.Image
    alt: str

    @cached_property
    def data_uri(self) -> str:
        """The drawing as the data URI of a JPEG."""
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class GalleryItem:
    """A test image: drawings of the ground truth, then of every entry."""

    image_id: str
    images: tuple[GalleryImage, ...]


@dataclass(frozen=True)
class GalleryRow:
    """Test images that are selected by one rule."""

    title: str
    rule: str
    items: tuple[GalleryItem, ...]


@dataclass(frozen=True, eq=False)
class _EntryDetections:
    """Detections of an entry on N images.

    Attributes:
        tp_masks: (K,) bool of each image, true positives.
        unseen_ap: (N,) average precision within each image, of its unseen interactions; of all, if
            the split holds out none.
        image_ap: (N,) average precision within each image, of all its interactions.
    """

    entry: ComparisonEntry
    detections: list[Detections]
    tp_masks: list[np.ndarray]
    unseen_ap: np.ndarray
    image_ap: np.ndarray

    def note(self, index: int, has_unseen: bool) -> str:
        """AP within an image, for display."""
        if has_unseen:
            return f"unseen AP {100 * self.unseen_ap[index]:.0f}"
        return f"AP {100 * self.image_ap[index]:.0f}"


def build_gallery(
    comparison: Comparison,
    annotations: Sequence[Annotation],
    entries: Sequence[tuple[ComparisonEntry, Sequence[Detections]]],
    load_image: Callable[[str], Image.Image],
    available: Collection[str] | None = None,
) -> list[GalleryRow]:
    """Selects test images, and draws the ground truth and the detections of each entry.

    For every entry, the best-scoring detections after pairwise NMS are drawn, as many of unseen and
    as many of seen interactions as the image has labels. Verbs without object, which the protocol
    does not score, are not drawn. Images that cannot be read are left out.

    Args:
        annotations: of all test images.
        entries: with their detections; those of the first entry decide which images are the best
            and the worst.
        load_image: returns the image of an image id.
        available: ids of the images that exist; None for all.
    """
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    ground_truth = [
        replace(item, hois=item.hois[_valid_mask(item, vocabulary)])
        for item in annotations
        if available is None or item.image_id in available
    ]
    drawn = [
        _match_entry(entry, detections, ground_truth, comparison) for entry, detections in entries
    ]
    lead = drawn[0]
    gallery_rows = []
    for title, rule, images in select_images(
        ground_truth, lead.unseen_ap, lead.image_ap, vocabulary, unseen
    ):
        items = [
            item
            for index in images
            if (item := _build_item(ground_truth[index], index, drawn, comparison, load_image))
            is not None
        ]
        if items:
            gallery_rows.append(GalleryRow(title, rule, tuple(items)))
    return gallery_rows


def _match_entry(
    entry: ComparisonEntry,
    detections: Sequence[Detections],
    ground_truth: Sequence[Annotation],
    comparison: Comparison,
) -> _EntryDetections:
    """The detections of an entry after NMS, in the order of the ground truth, matched to it."""
    vocabulary, num_images = comparison.vocabulary, len(ground_truth)
    by_id = {item.image_id: item for item in detections}
    kept = [
        pairwise_nms(by_id.get(item.image_id) or _empty_detections(item.image_id))
        for item in ground_truth
    ]
    masks = [_valid_mask(item, vocabulary) for item in kept]
    kept = [
        replace(item, hois=item.hois[mask], scores=item.scores[mask])
        for item, mask in zip(kept, masks, strict=True)
    ]
    triplets, annotated = (
        collect_triplets(items, np.arange(num_images), vocabulary) for items in (kept, ground_truth)
    )
    matched = MatchedDetections(triplets, annotated, match_triplets(triplets, annotated))
    ends = np.cumsum([len(item.hois) for item in kept])
    tp_mask = np.zeros(ends[-1] if len(ends) else 0, dtype=bool)
    tp_mask[triplets.source_rows] = matched.tp_mask
    return _EntryDetections(
        entry,
        kept,
        np.split(tp_mask, ends[:-1]),
        per_image_ap(matched, num_images, comparison.unseen or None),
        per_image_ap(matched, num_images),
    )


def _build_item(
    annotation: Annotation,
    index: int,
    entries: Sequence[_EntryDetections],
    comparison: Comparison,
    load_image: Callable[[str], Image.Image],
) -> GalleryItem | None:
    """The drawings of a test image; None if it cannot be read."""
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    try:
        image = load_image(annotation.image_id)
    except InputError:
        return None
    labelled = interaction_indices(annotation, vocabulary)
    ground_truth = draw_annotation(image, annotation, vocabulary, set(unseen), LONG_SIDE)
    name = annotation.image_id
    alt = f"{name}, labelled: {_describe_interactions(labelled, comparison)}"
    images = [GalleryImage("Ground truth", "", "ground_truth", ground_truth, alt)]
    has_unseen = not set(unseen).isdisjoint(labelled)
    for detected in entries:
        note = detected.note(index, has_unseen)
        images.append(_draw_entry_image(detected, image, annotation, index, note, comparison))
    return GalleryItem(name, tuple(images))


def _draw_entry_image(
    detected: _EntryDetections,
    image: Image.Image,
    annotation: Annotation,
    index: int,
    note: str,
    comparison: Comparison,
) -> GalleryImage:
    vocabulary, detections = comparison.vocabulary, detected.detections[index]
    rows = _select_detections(annotation, detections, comparison)
    top = replace(detections, hois=detections.hois[rows], scores=detections.scores[rows])
    # The rows are the best-scoring ones, so matching all detections gives the same true positives
    # among them as matching them alone.
    tp_mask = detected.tp_masks[index][rows]
    drawn = draw_detections(image, top, vocabulary, set(comparison.unseen), tp_mask, LONG_SIDE)
    content = _describe_interactions(interaction_indices(top, vocabulary), comparison, tp_mask)
    title = detected.entry.title
    alt = f"{annotation.image_id}, {title}: {content}"
    return GalleryImage(title, note, detected.entry.style, drawn, alt)


def _select_detections(
    annotation: Annotation, detections: Detections, comparison: Comparison
) -> np.ndarray:
    """The rows of `detections` to draw: as many as there are labels, by falling score.

    Unseen interactions are counted separately: they have lower scores, so second-best detections of
    seen interactions would replace them.
    """
    labels_unseen, detections_unseen = (
        np.isin(interaction_indices(item, comparison.vocabulary), comparison.unseen)
        for item in (annotation, detections)
    )
    rows = [
        np.flatnonzero(detections_unseen == group)[: (labels_unseen == group).sum()]
        for group in (True, False)
    ]
    return np.sort(np.concatenate(rows))


def _valid_mask(item: Annotation | Detections, vocabulary: Vocabulary) -> np.ndarray:
    """(K,) bool: rows that are interactions of the vocabulary."""
    return np.array(interaction_indices(item, vocabulary), dtype=np.int64) >= 0


def _describe_interactions(
    interactions: Sequence[int], comparison: Comparison, tp_mask: np.ndarray | None = None
) -> str:
    names = []
    for row, index in enumerate(interactions):
        marks = ["unseen"] if index in comparison.unseen else []
        if tp_mask is not None:
            marks.append("correct" if tp_mask[row] else "wrong")
        note = f" ({', '.join(marks)})" if marks else ""
        names.append(comparison.vocabulary.interaction_name(index) + note)
    return join_names(names) if names else "nothing"


def _empty_detections(image_id: str) -> Detections:
    return Detections(
        image_id,
        np.zeros((0, 4), dtype=np.float32),
        np.zeros(0, dtype=np.int64),
        np.zeros((0, 3), dtype=np.int64),
        np.zeros(0),
    )


def select_images(
    annotations: Sequence[Annotation],
    unseen_ap: np.ndarray,
    image_ap: np.ndarray,
    vocabulary: Vocabulary,
    unseen: Sequence[int],
) -> list[tuple[str, str, list[int]]]:
    """Selects images: the best, the worst and random ones of those with an unseen action, and
    random ones of the others. No image is selected twice.

    Args:
        unseen_ap, image_ap: (N,) average precision within each image, of its unseen interactions
            and of all; NaN if it has none.

    Returns:
        title, rule and image indices of each gallery row that has images.
    """
    held_out = set(unseen)
    interactions = [interaction_indices(annotation, vocabulary) for annotation in annotations]
    labelled = [index for index in range(len(annotations)) if not np.isnan(image_ap[index])]
    with_unseen = [index for index in labelled if held_out.intersection(interactions[index])]
    pool = with_unseen or labelled
    ap = unseen_ap if with_unseen else image_ap
    # Of equal AP, images with more labelled interactions come first: they show more.
    best_first = sorted(pool, key=lambda index: (-ap[index], -len(interactions[index]), index))
    worst_first = sorted(pool, key=lambda index: (ap[index], -len(interactions[index]), index))
    counted = held_out or set(range(vocabulary.num_interactions))

    def select_different(ranked: list[int], taken: set[int]) -> list[int]:
        """The first images that have no verb in common."""
        selected: list[int] = []
        verbs: set[int] = set()
        for index in ranked:
            image_verbs = {
                vocabulary.interactions[i][0] for i in interactions[index] if i in counted
            }
            if index not in taken and not image_verbs & verbs and len(selected) < NUM_BEST:
                selected.append(index)
                verbs |= image_verbs
        return selected

    def select_random(candidates: list[int], number: int) -> list[int]:
        rng = np.random.default_rng(SAMPLE_SEED)
        number = min(number, len(candidates))
        return sorted(rng.choice(candidates, number, replace=False).tolist())

    random = select_random(pool, NUM_RANDOM if with_unseen else NUM_RANDOM + NUM_SEEN)
    best = select_different(best_first, set(random))
    worst = select_different(worst_first, {*best, *random})
    others = [index for index in labelled if index not in set(with_unseen)] if with_unseen else []
    seen_only = select_random(others, NUM_SEEN)
    action = "unseen action" if with_unseen else "action"
    metric = "average precision of the unseen actions" if with_unseen else "average precision"
    ranking = f"{metric} within the image; of equal ones, those with more labelled actions"
    gallery_rows = [
        ("Best", f"Highest {ranking}. Each {action} appears once.", best),
        ("Worst", f"Lowest {ranking}. Each {action} appears once.", worst),
        (
            "Drawn at random",
            f"{len(random)} random images with an {action}, drawn before the best and the worst are"
            " selected.",
            random,
        ),
        (
            "Drawn at random, seen actions only",
            f"{len(seen_only)} random images without an {action}.",
            seen_only,
        ),
    ]
    return [gallery_row for gallery_row in gallery_rows if gallery_row[2]]


def per_image_ap(
    matched: MatchedDetections, count: int, interactions: Collection[int] | None = None
) -> np.ndarray:
    """Average precision within each image, with its detections of all interactions in one ranking.

    It is the mean of the precision at each labelled triplet's true positive, 0 if it has none.

    Args:
        matched: detections, in any order, and ground truth of all images.
        count: number of images, N.
        interactions: HOI indices to count; None for all.

    Returns:
        (N,) float64, NaN for images without such an interaction.
    """
    detections, ground_truth, tp_mask = matched.detections, matched.ground_truth, matched.tp_mask
    if interactions is not None:
        counted = np.array(sorted(interactions), dtype=np.int64)
        ground_truth = ground_truth.keep(np.isin(ground_truth.interactions, counted))
        rows = np.isin(detections.interactions, counted)
        detections, tp_mask = detections.keep(rows), tp_mask[rows]
    order = np.lexsort((-detections.scores, detections.images))
    images, tp_mask = detections.images[order], tp_mask[order]
    num_positives = np.bincount(ground_truth.images, minlength=count)
    num_detections = np.bincount(images, minlength=count)
    first = np.cumsum(num_detections) - num_detections
    rank = np.arange(len(images)) - first[images] + 1
    # True positives up to each row of its image: the cumulative sum without that of earlier images.
    before = np.cumsum(tp_mask) - tp_mask
    true_positives = np.cumsum(tp_mask) - np.append(before, 0)[first][images]
    total = np.bincount(images, tp_mask * true_positives / rank, minlength=count)
    return np.where(num_positives > 0, total / np.maximum(num_positives, 1), np.nan)


def interaction_indices(item: Annotation | Detections, vocabulary: Vocabulary) -> list[int]:
    """HOI index of every row; -1 for verbs without object and pairs that form no interaction."""
    table, labels = vocabulary.interaction_ids, item.labels
    return [
        int(table[verb, labels[target]]) if target >= 0 else -1
        for _, target, verb in item.hois.tolist()
    ]
