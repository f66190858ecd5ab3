import numpy as np
import pytest

from evaluation.analysis import matched as module
from evaluation.analysis.matched import count_interactions, join, match_and_sort
from evaluation.hico.average_precision import eleven_point_ap, evaluate
from pipeline.utils.errors import InputError

KICK, HOLD, PULL = ("kick", "ball"), ("hold", "ball"), ("pull", "box")


def test_nothing(toy):
    matched = match_and_sort([], [], toy)
    assert len(matched.detections) == len(matched.ground_truth) == len(matched.tp_mask) == 0
    assert count_interactions([], toy).tolist() == [0] * toy.num_interactions


def test_best_first_with_ties_in_the_order_of_images(toy, annotate, detect):
    annotations = [annotate("a.jpg", KICK), annotate("b.jpg", KICK, HOLD)]
    detections = [
        detect("b.jpg", (*KICK, 0.5), (*HOLD, 0.9, 500)),
        detect("a.jpg", (*KICK, 0.5), (*PULL, 0.7)),
    ]
    matched = match_and_sort(annotations, detections, toy)
    assert matched.detections.images.tolist() == [1, 0, 0, 1]
    assert matched.tp_mask.tolist() == [False, False, True, True]
    kick, hold = (
        int(toy.interaction_ids[toy.verbs.index(verb), toy.objects.index(label)])
        for verb, label in (KICK, HOLD)
    )
    positives = matched.num_positives(toy.num_interactions)
    assert {kick: 2, hold: 1} == {int(i): int(positives[i]) for i in np.flatnonzero(positives)}


@pytest.mark.parametrize("setting", ["default", "known_object"])
def test_judges_as_the_evaluation_does(toy, annotate, detect, setting):
    rng = np.random.default_rng(3)
    kinds = [KICK, HOLD, PULL]
    annotations = [
        annotate(f"{i}.jpg", *[kinds[k] for k in rng.integers(3, size=i % 3)]) for i in range(12)
    ]
    detections = [
        detect(
            f"{i}.jpg", *[(*kinds[rng.integers(3)], round(rng.random(), 1)) for _ in range(i % 4)]
        )
        for i in range(12)
    ]
    scores = evaluate(annotations, detections, toy, setting)
    matched = match_and_sort(annotations, detections, toy, setting)
    for interaction in np.flatnonzero(scores.num_positives):
        hits = matched.tp_mask[matched.detections.interactions == interaction]
        own, _ = eleven_point_ap(hits, int(scores.num_positives[interaction]))
        assert own == scores.average_precision[interaction]


def test_unknown_image(toy, annotate, detect):
    with pytest.raises(InputError, match=r"found 1 others, the first being b\.jpg"):
        match_and_sort([annotate("a.jpg", KICK)], [detect("b.jpg", (*KICK, 0.5))], toy)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("sizes", [(0, 0), (5, 0), (0, 4), (40, 30)])
def test_join(monkeypatch, sizes, chunk):
    monkeypatch.setattr(module, "ROWS_PER_CHUNK", chunk)
    rng = np.random.default_rng(0)
    keys, others = (rng.integers(6, size=size) for size in sizes)
    found = [
        pair for rows, targets in join(keys, others) for pair in zip(rows, targets, strict=True)
    ]
    assert len(set(found)) == len(found)
    assert set(found) == {
        (i, j) for i in range(sizes[0]) for j in range(sizes[1]) if keys[i] == others[j]
    }
