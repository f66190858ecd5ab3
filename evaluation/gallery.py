"""Test pictures for the report, picked by rules that leave no room for taste."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from evaluation.comparison import Comparison, Contestant
from evaluation.draw import draw_annotation, draw_detections
from evaluation.matching import collect, find_hits
from evaluation.nms import pairwise_nms
from evaluation.wording import listing
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

NUM_BEST, NUM_RANDOM, NUM_SEEN = 3, 6, 2
DRAW_SEED = 0
LONG_SIDE = 512
JPEG_QUALITY = 86


@dataclass(frozen=True)
class Picture:
    """One drawn picture.

    Attributes:
        title: whose view it shows.
        note: average precision within the picture, "" for the ground truth.
        role: for its colour in the page.
        source: a data URI.
        alt: what it shows.
        width, height: pixels.
    """

    title: str
    note: str
    role: str
    source: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Shelf:
    """Pictures picked by one rule: for each image the ground truth, then every contestant."""

    title: str
    rule: str
    cards: tuple[tuple[str, tuple[Picture, ...]], ...]


def picture_ap(
    annotations: Sequence[Annotation], detections: Sequence[Detections], vocabulary: Vocabulary
) -> np.ndarray:
    """Average precision within each picture, all its interactions ranked together by score.

    Args:
        annotations, detections: of the same images in the same order.

    Returns:
        (N,) float64, NaN for pictures without an annotated interaction.
    """
    images = np.arange(len(annotations))
    truth = collect(annotations, images, vocabulary)
    found = collect(detections, images, vocabulary)
    found = found.keep(np.lexsort((-found.scores, found.images)))
    hits = find_hits(found, truth)
    num_truth = np.bincount(truth.images, minlength=len(images))
    num_found = np.bincount(found.images, minlength=len(images))
    first = np.cumsum(num_found) - num_found
    rank = np.arange(len(found)) - first[found.images] + 1
    before = np.cumsum(hits) - hits
    found_so_far = np.cumsum(hits) - np.append(before, 0)[first][found.images]
    gains = np.bincount(found.images, hits * found_so_far / rank, minlength=len(images))
    return np.where(num_truth > 0, gains / np.maximum(num_truth, 1), np.nan)


def pick(
    annotations: Sequence[Annotation],
    quality: np.ndarray,
    vocabulary: Vocabulary,
    unseen: Sequence[int],
) -> list[tuple[str, str, list[int]]]:
    """Picks pictures: the best, some at random and the worst of those with an unseen action, then
    some at random of the others. No picture is picked twice.

    Args:
        quality: (N,) average precision within each picture, NaN to leave a picture out.

    Returns:
        title, rule and image numbers for each shelf with pictures.
    """
    held_back = set(unseen)
    actions = [_interactions(annotation, vocabulary) for annotation in annotations]
    able = [index for index in range(len(annotations)) if not np.isnan(quality[index])]
    with_unseen = [index for index in able if held_back.intersection(actions[index])]
    pool = with_unseen or able
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
        dice = np.random.default_rng(DRAW_SEED)
        return sorted(dice.choice(left, min(number, len(left)), replace=False).tolist())

    best = different(best_first, set())
    random = drawn(pool, NUM_RANDOM, set(best))
    worst = different(worst_first, {*best, *random})
    others = [index for index in able if index not in set(with_unseen)] if with_unseen else []
    which = "unseen action" if with_unseen else "action"
    ranking = "average precision within the picture, more labelled interactions first among equals"
    shelves = [
        ("Best", f"Highest {ranking}; no {which} twice.", best),
        ("Drawn at random", f"{len(random)} pictures with an {which}, blindly drawn.", random),
        ("Worst", f"Lowest {ranking}; no {which} twice.", worst),
        ("Seen actions only", "Blindly drawn.", drawn(others, NUM_SEEN, set())),
    ]
    return [shelf for shelf in shelves if shelf[2]]


def build_gallery(
    comparison: Comparison,
    annotations: Sequence[Annotation],
    contestants: Sequence[tuple[Contestant, Sequence[Detections]]],
    open_picture: Callable[[str], Image.Image],
) -> list[Shelf]:
    """Draws ground truth beside each contestant's detections.

    Every contestant shows as many detections as the picture has labelled interactions, its
    best-scoring ones after pairwise NMS.

    Args:
        annotations: of all test pictures.
        contestants: with their detections; the first one's decide which pictures are best and
            worst.
        open_picture: gives the picture of an image id.
    """
    vocabulary, unseen = comparison.vocabulary, comparison.unseen
    views: list[tuple[Contestant, list[Detections], np.ndarray]] = []
    for contestant, detections in contestants:
        found = {item.image_id: item for item in detections}
        aligned = [
            pairwise_nms(found.get(item.image_id) or _nothing(item.image_id))
            for item in annotations
        ]
        views.append((contestant, aligned, picture_ap(annotations, aligned, vocabulary)))
    shelves = []
    for title, rule, images in pick(annotations, views[0][2], vocabulary, unseen):
        cards = []
        for index in images:
            annotation = annotations[index]
            image = open_picture(annotation.image_id)
            truth = draw_annotation(image, annotation, vocabulary, set(unseen), LONG_SIDE)
            said = _sentence(_interactions(annotation, vocabulary), comparison)
            name = annotation.image_id
            pictures = [_picture("Ground truth", "", "truth", truth, f"{name}, labelled: {said}")]
            for contestant, aligned, quality in views:
                pictures.append(
                    _view(contestant, image, annotation, aligned[index], quality[index], comparison)
                )
            cards.append((name, tuple(pictures)))
        shelves.append(Shelf(title, rule, tuple(cards)))
    return shelves


def _view(
    contestant: Contestant,
    image: Image.Image,
    annotation: Annotation,
    detections: Detections,
    quality: float,
    comparison: Comparison,
) -> Picture:
    vocabulary = comparison.vocabulary
    number = len(annotation.hois)
    top = replace(detections, hois=detections.hois[:number], scores=detections.scores[:number])
    zero = np.zeros(1, dtype=np.int64)
    found = collect([top], zero, vocabulary)
    hits = np.zeros(len(top.hois), dtype=bool)
    hits[found.sources] = find_hits(found, collect([annotation], zero, vocabulary))
    drawn = draw_detections(image, top, vocabulary, set(comparison.unseen), hits, LONG_SIDE)
    said = _sentence(_interactions(top, vocabulary), comparison, hits)
    return _picture(
        contestant.title,
        f"AP in this picture {100 * quality:.0f}",
        contestant.role,
        drawn,
        f"{annotation.image_id}, {contestant.title}: {said}",
    )


def _picture(title: str, note: str, role: str, image: Image.Image, alt: str) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(title, note, role, source, alt, image.width, image.height)


def _interactions(item: Annotation | Detections, vocabulary: Vocabulary) -> list[int]:
    """HOI index of every row, -1 for verbs without object and pairs that form no HOI."""
    table, labels = vocabulary.interaction_ids, item.labels
    return [
        int(table[verb, labels[target]]) if target >= 0 else -1
        for _, target, verb in item.hois.tolist()
    ]


def _sentence(
    interactions: Sequence[int], comparison: Comparison, hits: np.ndarray | None = None
) -> str:
    said = []
    for row, index in enumerate(interactions):
        if index < 0:
            continue
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
