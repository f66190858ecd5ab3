"""Which test pictures the report shows, by rules that leave no room for taste."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from evaluation.judged import Part
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

NUM_BEST = 3
# A dozen in all.
NUM_RANDOM, NUM_SEEN = 8, 4
DRAW_SEED = 0


def picture_ap(part: Part, count: int, interactions: Collection[int] | None = None) -> np.ndarray:
    """Average precision within each picture, its interactions ranked together by score: the mean,
    over the labelled interactions, of the precision at the detection that is right about one (0
    where none is).

    Args:
        part: the detections of all pictures.
        count: N, of the pictures.
        interactions: HOI indices that count; None for all.

    Returns:
        (N,) float64, NaN for pictures without such an interaction.
    """
    found, truth, hits = part.found, part.truth, part.hits
    if interactions is not None:
        wanted = np.array(sorted(interactions), dtype=np.int64)
        truth = truth.keep(np.isin(truth.interactions, wanted))
        rows = np.isin(found.interactions, wanted)
        found, hits = found.keep(rows), hits[rows]
    order = np.lexsort((-found.scores, found.images))
    found, hits = found.keep(order), hits[order]
    num_truth = np.bincount(truth.images, minlength=count)
    num_found = np.bincount(found.images, minlength=count)
    first = np.cumsum(num_found) - num_found
    rank = np.arange(len(found)) - first[found.images] + 1
    before = np.cumsum(hits) - hits
    found_so_far = np.cumsum(hits) - np.append(before, 0)[first][found.images]
    gains = np.bincount(found.images, hits * found_so_far / rank, minlength=count)
    return np.where(num_truth > 0, gains / np.maximum(num_truth, 1), np.nan)


def interactions_of(item: Annotation | Detections, vocabulary: Vocabulary) -> list[int]:
    """HOI index of every row, -1 for verbs without object and pairs that form no HOI."""
    table, labels = vocabulary.interaction_ids, item.labels
    return [
        int(table[verb, labels[target]]) if target >= 0 else -1
        for _, target, verb in item.hois.tolist()
    ]


def pick(
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
        title, rule and image numbers for each shelf with pictures.
    """
    held_back = set(unseen)
    actions = [interactions_of(annotation, vocabulary) for annotation in annotations]
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
        dice = np.random.default_rng(DRAW_SEED)
        return sorted(dice.choice(left, min(number, len(left)), replace=False).tolist())

    random = drawn(pool, NUM_RANDOM if with_unseen else NUM_RANDOM + NUM_SEEN, set())
    best = different(best_first, set(random))
    worst = different(worst_first, {*best, *random})
    others = [index for index in able if index not in set(with_unseen)] if with_unseen else []
    seen_only = drawn(others, NUM_SEEN, set())
    which = "unseen action" if with_unseen else "action"
    measured = "average precision of the unseen actions" if with_unseen else "average precision"
    ranking = f"{measured} within the picture, more labelled actions first among equals"
    shelves = [
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
    return [shelf for shelf in shelves if shelf[2]]
