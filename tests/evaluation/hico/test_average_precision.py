import json

import numpy as np
import pytest

from evaluation.hico.average_precision import eleven_point_ap, evaluate, harmonic_mean, summarize
from evaluation.hico.nms import pairwise_nms
from evaluation.predictions import read_predictions
from pipeline.annotations.load import load_annotations
from pipeline.splits import load_split
from pipeline.vocabulary import load_vocabulary


@pytest.mark.parametrize(
    ("hits", "positives", "expected", "recall"),
    [
        ([], 3, 0.0, 0.0),
        ([0, 0], 3, 0.0, 0.0),
        ([1], 1, 1.0, 1.0),
        ([0, 1], 1, 0.5, 1.0),
        # Recall 1/2: thresholds 0 to 0.5 are reached.
        ([1], 2, 6 / 11, 0.5),
        # The threshold is 0.30000000000000004, so recall 3/10 reaches 0, 0.1 and 0.2 only.
        ([1, 1, 1], 10, 3 / 11, 0.3),
        # Precision 1 up to recall 1/2, then 2/3.
        ([1, 0, 1], 2, (6 + 5 * 2 / 3) / 11, 1.0),
    ],
)
def test_eleven_point_ap(hits, positives, expected, recall):
    found = eleven_point_ap(np.array(hits, dtype=bool), positives)
    assert found == pytest.approx((expected, recall), abs=1e-12)


def test_images_without_detections_or_labels(toy, annotate, detect):
    assert set(summarize(evaluate([], [], toy), toy, [0]).values()) == {None}
    kick = toy.interaction_ids[toy.verbs.index("kick"), toy.objects.index("ball")]
    annotations = [annotate("a.jpg", ("kick", "ball")), annotate("b.jpg"), annotate("c.jpg")]
    none = evaluate(annotations, [], toy)
    assert none.average_precision[kick] == 0 == none.max_recall[kick]
    found = [detect("c.jpg"), detect("b.jpg", ("kick", "ball", 0.9))]
    scores = evaluate(annotations, [*found, detect("a.jpg", ("kick", "ball", 0.8))], toy)
    assert scores.average_precision[kick] == 0.5
    assert scores.num_positives.sum() == 1
    assert np.isnan(np.delete(scores.average_precision, kick)).all()


def test_groups_and_verbs(toy, annotate, detect):
    annotations = [annotate("a.jpg", ("kick", "ball"), ("kick", "box"), ("hold", "ball"))]
    found = [detect("a.jpg", ("kick", "ball", 0.9), ("hold", "ball", 0.8, 0.0, 2))]
    scores = evaluate(annotations, found, toy)
    numbers = summarize(scores, toy, load_split(toy, "ua").unseen)
    assert numbers["full"] == pytest.approx(2 / 3)
    assert (numbers["unseen"], numbers["seen"]) == (0.5, 1.0)
    assert numbers["mean_max_recall"] == pytest.approx(2 / 3)
    verbs = scores.verb_means(toy)
    assert verbs[toy.verbs.index("kick")] == 0.5
    assert np.isnan(verbs[toy.verbs.index("ride")])


def loop_iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    overlap = (width + 1) * (height + 1)
    return overlap / (sum(areas) - overlap)


def loop_ap(annotations, detections, vocabulary, interaction):
    """The protocol as a plain loop over images and detections."""
    verb, label = vocabulary.interactions[interaction]
    outcomes, positives = [], 0
    for annotation, detected in zip(annotations, detections, strict=True):
        truth = [h for h in annotation.hois if h[2] == verb and annotation.labels[h[1]] == label]
        positives += len(truth)
        taken = set()
        for row in np.argsort(-detected.scores, kind="stable"):
            human, target, found_verb = detected.hois[row]
            if found_verb != verb or detected.labels[target] != label:
                continue
            best, best_iou = None, 0.0
            for index, (truth_human, truth_target, _) in enumerate(truth):
                iou = min(
                    loop_iou(annotation.boxes[truth_human], detected.boxes[human]),
                    loop_iou(annotation.boxes[truth_target], detected.boxes[target]),
                )
                if iou >= 0.5 and iou > best_iou:
                    best, best_iou = index, iou
            outcomes.append((-detected.scores[row], best is not None and best not in taken))
            taken.add(best)
    outcomes.sort(key=lambda outcome: outcome[0])
    hits = np.cumsum([hit for _, hit in outcomes])
    ap = 0.0
    for threshold in np.arange(0, 1.1, 0.1):
        reached = [
            hits[row] / (row + 1) for row in range(len(hits)) if hits[row] / positives >= threshold
        ]
        ap += max(reached, default=0.0) / 11
    return ap if positives else np.nan


def random_case(rng, toy, annotate, detect):
    """Crowded images: several pairs at the same position, jittered detections, equal scores."""
    valid = [(toy.verbs[v], toy.objects[o]) for v, o in toy.interactions[:8]]
    annotations, detections = [], []
    for index in range(12):
        names = [valid[i] for i in rng.integers(0, len(valid), rng.integers(0, 5))]
        annotations.append(annotate(f"{index}.jpg", *names))
        found = []
        for _ in range(rng.integers(0, 25)):
            name = valid[rng.integers(0, len(valid))]
            place = int(rng.integers(0, max(1, len(names))))
            found.append((*name, rng.integers(0, 20) / 20, rng.normal(0, 2.5), place))
        detections.append(detect(f"{index}.jpg", *found))
    return annotations, detections


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_plain_loop(toy, annotate, detect, seed):
    annotations, detections = random_case(np.random.default_rng(seed), toy, annotate, detect)
    scores = evaluate(annotations, detections, toy)
    expected = [
        loop_ap(annotations, detections, toy, interaction)
        for interaction in range(toy.num_interactions)
    ]
    np.testing.assert_allclose(scores.average_precision, expected, atol=1e-12)
    # Ties are ranked by image and row, whatever the order of the file.
    again = evaluate(annotations, detections[::-1], toy)
    np.testing.assert_array_equal(again.average_precision, scores.average_precision)


@pytest.mark.parametrize(
    ("seen", "unseen", "expected"),
    [(0.6, 0.3, 0.4), (0.5, 0.5, 0.5), (0.7, 0.0, 0.0), (0.0, 0.0, 0.0), (None, 0.3, None)],
)
def test_harmonic_mean(seen, unseen, expected):
    assert harmonic_mean(seen, unseen) == pytest.approx(expected)


@pytest.mark.golden("hico_metrics_*.json")
def test_golden_hico(golden_file):
    vocabulary = load_vocabulary("hico-det")
    folder, ending = golden_file.parent, golden_file.name.removeprefix("hico_metrics_")
    expected = json.loads(golden_file.read_text())
    truth = load_annotations(folder / f"hico_annotations_{ending}", vocabulary, "test")
    plain = read_predictions(folder / f"hico_predictions_{ending}", vocabulary)
    checked = set()
    for suffix, detections in (("", plain), ("_nms", [pairwise_nms(item) for item in plain])):
        scores = evaluate(truth.annotations, detections, vocabulary)
        assert_per_class(expected[f"per_class{suffix}"], scores)
        known = evaluate(truth.annotations, detections, vocabulary, "known_object")
        assert_per_class(expected[f"known_object{suffix}"]["per_class"], known)
        assert_groups(expected[f"known_object{suffix}"], summarize(known, vocabulary, ()))
        checked |= {f"per_class{suffix}", f"known_object{suffix}"}
        for name in expected:
            split = name.removesuffix("_nms")
            if name in checked or name.endswith("_nms") != bool(suffix):
                continue
            unseen = () if split == "rare" else load_split(vocabulary, split.replace("_", "-"))
            groups = summarize(scores, vocabulary, getattr(unseen, "unseen", unseen))
            assert_groups(expected[name], groups)
            checked.add(name)
    assert checked == set(expected)


def assert_per_class(expected, scores):
    found = {
        str(index): value
        for index, value in enumerate(scores.average_precision)
        if not np.isnan(value)
    }
    assert found == pytest.approx(expected, abs=1e-9)


def assert_groups(expected, found):
    numbers = {name: value for name, value in expected.items() if name != "per_class"}
    assert numbers
    assert {name: found[name] for name in numbers} == pytest.approx(numbers, abs=1e-9)
