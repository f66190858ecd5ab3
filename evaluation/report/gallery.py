"""The gallery of test images in the report, selected by fixed rules."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.analysis.comparison import Comparison, ComparisonEntry
from evaluation.drawing.interactions import draw_interactions
from evaluation.drawing.samples import true_positive_masks
from evaluation.hico.nms import pairwise_nms
from evaluation.tables import join_names
from pipeline.images import read_image
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
class MatchedImage:
    """Detections of an entry on one image.

    Attributes:
        interactions: (K,) HOI index of each detection.
        tp_mask: (K,) bool, true positives.
    """

    detections: Detections
    interactions: np.ndarray
    tp_mask: np.ndarray


def build_gallery(
    comparison: Comparison,
    annotations: Sequence[Annotation],
    entries: Sequence[tuple[ComparisonEntry, Sequence[Detections]]],
    files: Mapping[str, Path],
) -> list[GalleryRow]:
    """Selects test images, and draws the ground truth and the detections of each entry.

    For every entry, the best-scoring detections after pairwise NMS are drawn, as many of unseen and
    as many of seen interactions as the image has labels. Verbs without object, which the protocol
    does not score, are not drawn. Images that cannot be read are left out.

    Args:
        annotations: of all test images.
        entries: with their detections; those of the first entry decide which images are the best
            and the worst.
        files: path by image id, of the images that exist.
    """
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    ground_truth = [
        replace(item, hois=item.hois[interaction_indices(item, vocabulary) >= 0])
        for item in annotations
        if item.image_id in files
    ]
    labels = [interaction_indices(item, vocabulary) for item in ground_truth]
    drawn = [
        (entry, match_images(detections, ground_truth, vocabulary)) for entry, detections in entries
    ]

    def build_item(index: int) -> GalleryItem | None:
        """The drawings of a test image; None if it cannot be read."""
        image_id = ground_truth[index].image_id
        try:
            image = read_image(files[image_id])
        except InputError:
            return None
        drawing = draw_interactions(
            image, ground_truth[index], vocabulary, unseen, long_side=LONG_SIDE
        )
        alt = f"{image_id}, labelled: {_describe_interactions(labels[index], comparison)}"
        images = [GalleryImage("Ground truth", "", "ground_truth", drawing, alt)]
        for entry, detected in drawn:
            images.append(_draw_entry(entry, detected[index], image, labels[index], comparison))
        return GalleryItem(image_id, tuple(images))

    ap = [
        image_ap(detected, own, unseen) for detected, own in zip(drawn[0][1], labels, strict=True)
    ]
    rows = []
    for title, rule, indices in select_images(labels, ap, vocabulary, unseen):
        items = tuple(item for index in indices if (item := build_item(index)) is not None)
        if items:
            rows.append(GalleryRow(title, rule, items))
    return rows


def match_images(
    detections: Sequence[Detections], ground_truth: Sequence[Annotation], vocabulary: Vocabulary
) -> list[MatchedImage]:
    """Detections after NMS on each image of the ground truth, matched to it."""
    by_id = {item.image_id: item for item in detections}
    kept = []
    for annotation in ground_truth:
        image_id = annotation.image_id
        item = pairwise_nms(by_id.get(image_id, Detections.empty(image_id)))
        rows = interaction_indices(item, vocabulary) >= 0
        kept.append(replace(item, hois=item.hois[rows], scores=item.scores[rows]))
    masks = true_positive_masks(kept, ground_truth, vocabulary)
    return [
        MatchedImage(item, interaction_indices(item, vocabulary), tp_mask)
        for item, tp_mask in zip(kept, masks, strict=True)
    ]


def _draw_entry(
    entry: ComparisonEntry,
    detected: MatchedImage,
    image: Image.Image,
    labels: np.ndarray,
    comparison: Comparison,
) -> GalleryImage:
    """Draws as many detections as there are labels, by falling score.

    Unseen interactions are counted separately: they have lower scores, so second-best detections of
    seen interactions would replace them.
    """
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    labels_unseen, detections_unseen = (
        np.isin(interactions, unseen) for interactions in (labels, detected.interactions)
    )
    groups = [
        np.flatnonzero(detections_unseen == group)[: (labels_unseen == group).sum()]
        for group in (True, False)
    ]
    rows = np.sort(np.concatenate(groups))
    detections = detected.detections
    top = replace(detections, hois=detections.hois[rows], scores=detections.scores[rows])
    # The rows are the best-scoring ones, so matching all detections gives the same true positives
    # among them as matching them alone.
    tp_mask = detected.tp_mask[rows]
    drawing = draw_interactions(image, top, vocabulary, unseen, tp_mask, LONG_SIDE)
    content = _describe_interactions(detected.interactions[rows], comparison, tp_mask)
    ap = 100 * image_ap(detected, labels, unseen)
    note = f"unseen AP {ap:.0f}" if labels_unseen.any() else f"AP {ap:.0f}"
    alt = f"{detections.image_id}, {entry.title}: {content}"
    return GalleryImage(entry.title, note, entry.style, drawing, alt)


def _describe_interactions(
    interactions: np.ndarray, comparison: Comparison, tp_mask: np.ndarray | None = None
) -> str:
    names = []
    for row, index in enumerate(interactions.tolist()):
        marks = ["unseen"] if index in comparison.unseen else []
        if tp_mask is not None:
            marks.append("correct" if tp_mask[row] else "wrong")
        note = f" ({', '.join(marks)})" if marks else ""
        names.append(comparison.vocabulary.interaction_name(index) + note)
    return join_names(names) or "nothing"


def select_images(
    labels: Sequence[np.ndarray],
    ap: Sequence[float],
    vocabulary: Vocabulary,
    unseen: Sequence[int],
) -> list[tuple[str, str, list[int]]]:
    """Selects images: the best, the worst and random ones of those with an unseen action, and
    random ones of the others. No image is selected twice.

    Args:
        labels: HOI indices of each image's labels.
        ap: of each image; see `image_ap`.

    Returns:
        title, rule and image indices of each gallery row that has images.
    """
    labelled = [index for index, own in enumerate(labels) if len(own)]
    with_unseen = [index for index in labelled if np.isin(labels[index], unseen).any()]
    others = sorted({*labelled} - {*with_unseen}) if with_unseen else []
    pool = with_unseen or labelled

    def select_different(sign: int, taken: set[int]) -> list[int]:
        """The first images by rising `sign * ap` that have no (unseen) verb in common. Of equal
        AP, images with more labelled interactions come first: they show more."""
        selected: list[int] = []
        verbs: set[int] = set()
        for index in sorted(pool, key=lambda index: (sign * ap[index], -len(labels[index]))):
            image_verbs = {
                vocabulary.interactions[label][0]
                for label in labels[index]
                if not unseen or label in unseen
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
    best = select_different(-1, set(random))
    worst = select_different(1, {*best, *random})
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


def image_ap(detected: MatchedImage, labels: np.ndarray, unseen: Sequence[int]) -> float:
    """Average precision within an image, with its detections of all interactions in one ranking.

    It is the mean of the precision at each label's true positive, 0 if it has none; NaN without
    labels. Of images with unseen labels, only the unseen interactions are counted.
    """
    tp_mask = detected.tp_mask
    labels_unseen = np.isin(labels, unseen)
    if labels_unseen.any():
        labels = labels[labels_unseen]
        tp_mask = tp_mask[np.isin(detected.interactions, unseen)]
    precision = np.cumsum(tp_mask) / np.arange(1, len(tp_mask) + 1)
    return float(precision[tp_mask].sum() / len(labels)) if len(labels) else np.nan


def interaction_indices(item: Annotation | Detections, vocabulary: Vocabulary) -> np.ndarray:
    """(K,) HOI index of every row; -1 for verbs without object and pairs that form no
    interaction."""
    _, objects, verbs = item.hois.reshape(-1, 3).T
    return np.where(objects >= 0, vocabulary.interaction_ids[verbs, item.labels[objects]], -1)
