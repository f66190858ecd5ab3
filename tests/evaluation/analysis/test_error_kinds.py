from dataclasses import replace

import numpy as np
import pytest

from evaluation.analysis.error_kinds import (
    ERROR_KINDS,
    ErrorCounts,
    classify_errors,
    count_errors,
    top_scoring_mask,
)
from evaluation.hico.matching import match_and_sort
from pipeline.types import Detections

KICK, HOLD = ("kick", "ball"), ("hold", "ball")


def kind_names(matched, toy):
    kinds = classify_errors(matched, toy)
    return ["right" if kind < 0 else ERROR_KINDS[kind] for kind in kinds]


# The annotated pairs: a person at the top kicks the ball beside them, one below holds theirs.
@pytest.mark.parametrize(
    ("human", "other", "verb", "label", "expected"),
    [
        ([0, 0, 9, 19], [20, 0, 29, 9], "kick", "ball", "right"),
        ([0, 0, 9, 19], [20, 0, 29, 9], "hold", "ball", "wrong_verb"),
        ([0, 0, 9, 19], [20, 0, 29, 9], "kick", "box", "wrong_object"),
        ([0, 0, 9, 19], [20, 0, 29, 9], "hold", "umbrella", "wrong_object"),
        # Half of the ball; its last column, which only touches; half of it with the wrong verb.
        ([0, 0, 9, 19], [25, 0, 34, 9], "kick", "ball", "localisation"),
        ([0, 0, 9, 19], [29, 0, 38, 9], "kick", "ball", "background"),
        ([0, 0, 9, 19], [25, 0, 34, 9], "hold", "ball", "background"),
        ([0, 0, 9, 19], [20, 100, 29, 109], "kick", "ball", "wrong_pair"),
        ([0, 0, 9, 19], [20, 100, 29, 109], "kick", "box", "background"),
        ([300, 0, 309, 19], [20, 0, 29, 9], "kick", "ball", "background"),
    ],
)
def test_kinds(toy, annotate, human, other, verb, label, expected):
    found = Detections(
        "a.jpg",
        np.array([human, other], dtype=np.float32),
        np.array([toy.person, toy.objects.index(label)]),
        np.array([[0, 1, toy.verbs.index(verb)]]),
        np.array([0.5]),
    )
    matched = match_and_sort([annotate("a.jpg", KICK, HOLD)], [found], toy)
    assert kind_names(matched, toy) == [expected]


def test_a_second_detection_is_a_duplicate_and_other_images_do_not_matter(toy, annotate, detect):
    detections = [
        detect("a.jpg", (*KICK, 0.9), (*KICK, 0.4, 0, 0), (*KICK, 0.3, 1, 0)),
        detect("b.jpg", (*KICK, 0.2)),
    ]
    matched = match_and_sort([annotate("a.jpg", KICK), annotate("b.jpg")], detections, toy)
    assert kind_names(matched, toy) == ["right", "duplicate", "duplicate", "background"]
    nothing = match_and_sort([], [], toy)
    assert classify_errors(nothing, toy).shape == top_scoring_mask(nothing, toy).shape == (0,)


def test_best_scoring_are_as_many_as_are_labelled(toy, annotate, detect):
    annotations = [annotate("a.jpg", KICK, KICK), annotate("b.jpg", HOLD)]
    detections = [
        detect("a.jpg", (*KICK, 0.9, 500), (*KICK, 0.8), (*KICK, 0.7, 900), (*HOLD, 0.1)),
        detect("b.jpg", (*HOLD, 0.3, 500), ("pull", "box", 0.99)),
    ]
    matched = match_and_sort(annotations, detections, toy)
    counted = top_scoring_mask(matched, toy)
    assert matched.detections.scores[counted].tolist() == pytest.approx([0.9, 0.8, 0.3])


def test_counts_and_shares(toy, annotate, detect):
    kick, hold = (
        int(toy.interaction_ids[toy.verbs.index(verb), toy.objects.index(label)])
        for verb, label in (KICK, HOLD)
    )
    found = detect("a.jpg", (*KICK, 0.9), (*KICK, 0.5, 0, 0), (*HOLD, 0.4, 0, 0), (*HOLD, 0.3, 500))
    matched = match_and_sort([annotate("a.jpg", KICK)], [found], toy)
    kinds = classify_errors(matched, toy)
    everything = np.ones(len(kinds), dtype=bool)
    counts = count_errors(matched, kinds, everything, [kick, hold])
    assert (counts.num_correct, counts.num_wrong) == (1, 3)
    shares = dict(zip(ERROR_KINDS, counts.shares, strict=True))
    assert shares["wrong_verb"] == shares["duplicate"] == shares["background"] == 1 / 3
    assert count_errors(matched, kinds, everything, [hold]).num_correct == 0
    assert count_errors(matched, kinds, ~everything, [kick, hold]) == ErrorCounts((0,) * 6, 0)
    assert replace(counts, by_kind=(0,) * 6).shares == (0,) * 6
