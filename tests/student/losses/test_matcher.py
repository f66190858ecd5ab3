from itertools import permutations

import pytest
import torch
from training import make_targets

from student.config import MatcherConfig
from student.data.targets import Targets
from student.losses.matcher import CandidateCounts, TwoStageMatcher

NUM_VERBS, NUM_OBJECTS = 4, 3
NO_DISTILLED_VERBS = torch.zeros(NUM_VERBS, dtype=torch.bool)


def targets_at(boxes, seen, object_boxes=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    things = boxes if object_boxes is None else torch.tensor(object_boxes)
    return make_targets(seen, NUM_VERBS, human_boxes=boxes, object_boxes=things)


def make_outputs(boxes, interactive=None, num_layers=1):
    """Outputs for one image, whose queries differ only in boxes and interactive logits."""
    boxes = (
        torch.tensor(boxes, dtype=torch.float32).reshape(1, 1, -1, 4).repeat(num_layers, 1, 1, 1)
    )
    count = boxes.shape[2]
    score = torch.tensor(interactive if interactive is not None else [9.0] * count)
    logits = torch.stack([torch.zeros(count), score], -1)
    return {
        "pred_object_logits": torch.zeros(num_layers, 1, count, NUM_OBJECTS + 1),
        "pred_verb_logits": torch.zeros(num_layers, 1, count, NUM_VERBS),
        "pred_human_boxes": boxes,
        "pred_object_boxes": boxes.clone(),
        "pred_interactive_logits": logits.expand(num_layers, 1, count, 2).clone(),
    }


def match(outputs, *targets, **config):
    return TwoStageMatcher(MatcherConfig(**config), NO_DISTILLED_VERBS)(
        outputs, Targets.collate(targets)
    )


def pairs(matches, candidates, image=0, layer=0):
    rows = (matches.layers == layer) & (matches.images == image)
    rows &= matches.is_candidate == candidates
    return sorted(torch.stack([matches.queries[rows], matches.targets[rows]], 1).tolist())


def at(x):
    return [x, 0.5, 0.1, 0.1]


def test_an_image_without_pairs_among_others():
    outputs = make_outputs([at(0.1), at(0.2)])
    both = {name: torch.cat([x, x], dim=1) for name, x in outputs.items()}
    matches = match(both, targets_at([], []), targets_at([at(0.2)], [True]))
    assert pairs(matches, False, image=0) == [] and pairs(matches, False, image=1) == [[1, 0]]
    assert matches.num_last_layer == 1


def test_padding_takes_no_query_of_a_candidate():
    outputs = make_outputs([at(0.2), at(0.22)])
    # Padded pairs have class 0, which the better query predicts.
    outputs["pred_object_logits"][..., 0, 0] = 3.0
    outputs["pred_object_logits"][..., 0, 1] = outputs["pred_object_logits"][..., 1, 1] = 1.0
    both = {name: torch.cat([x, x], dim=1) for name, x in outputs.items()}
    candidate = targets_at([at(0.2)], [False])
    candidate.object_labels[:] = 1
    others = targets_at([at(0.5), at(0.8), at(0.9)], [False] * 3)
    assert pairs(match(outputs, candidate), True) == [[0, 0]]
    assert pairs(match(both, candidate, others), True) == [[0, 0]]


@pytest.mark.parametrize(
    ("queries", "places", "seen", "matched", "candidates"),
    [
        pytest.param([], [], [], [], [], id="nothing"),
        pytest.param(
            *([0.2, 0.5, 0.8], [0.21, 0.2, 0.79], [True, False, False], [[0, 0]], [[2, 2]]),
            id="candidates take the queries that seen pairs leave",
        ),
        pytest.param(
            *([0.7, 0.1], [0.1, 0.3, 0.5, 0.7], [True] * 4, [[0, 3], [1, 0]], []),
            id="more seen pairs than queries",
        ),
        pytest.param(
            *([0.20, 0.21], [0.21, 0.6], [False, False], [], [[1, 0]]),
            id="query 0, without overlap with its pair 1, has some with pair 0",
        ),
    ],
)
def test_matches(queries, places, seen, matched, candidates):
    outputs = make_outputs([at(x) for x in queries or (0.1, 0.2)])
    matches = match(outputs, targets_at([at(x) for x in places], seen))
    assert pairs(matches, False) == matched and pairs(matches, True) == candidates
    assert matches.num_last_layer == len(matched) + len(candidates)


@pytest.mark.parametrize(
    ("config", "kept", "counts"),
    [
        ({"topk": 9}, [[0, 0], [1, 1], [2, 2]], (5, 4, 3, 3)),
        ({"topk": 2}, [[0, 0], [2, 2]], (5, 4, 3, 2)),
        ({"topk": 0}, [], (5, 4, 3, 0)),
        (
            *({"interactive_threshold": 0.0, "topk": 9}, [[0, 0], [1, 1], [2, 2], [3, 3]]),
            (5, 4, 4, 4),
        ),
        ({"interactive_threshold": 0.9, "topk": 9}, [[2, 2]], (5, 4, 1, 1)),
        ({"interactive_threshold": 1.0}, [], (5, 4, 0, 0)),
        ({"iou_threshold": 0.99, "topk": 9}, [], (5, 0, 0, 0)),
    ],
)
def test_thresholds_of_stage_two(config, kept, counts):
    """Four candidates near queries and one far from all."""
    places = [0.1, 0.3, 0.5, 0.7]
    outputs = make_outputs([at(x + 0.01) for x in places], interactive=[2.0, 1.0, 3.0, -1.0])
    candidates = [*(at(x) for x in places), [0.9, 0.1, 0.1, 0.1]]
    matches = match(outputs, targets_at(candidates, [False] * 5), **config)
    assert pairs(matches, True) == kept
    assert matches.candidate_counts == counts


def test_candidates_are_counted_in_the_last_layer_of_all_images():
    """Neither seen pairs nor padded ones are counted."""
    outputs = make_outputs([at(0.1), at(0.5)], num_layers=2)
    outputs["pred_human_boxes"][0] += 0.4
    both = {name: torch.cat([x, x], dim=1) for name, x in outputs.items()}
    first = targets_at([at(0.1), at(0.5)], [True, False])
    second = targets_at([at(0.1), at(0.5), at(0.9)], [False] * 3)
    matches = match(both, first, second, topk=1)
    assert matches.candidate_counts == CandidateCounts(4, 3, 3, 2)


def test_both_boxes_must_overlap():
    outputs = make_outputs([at(0.2)])
    outputs["pred_object_boxes"] += 0.3
    matches = match(outputs, targets_at([at(0.2)], [False]))
    assert pairs(matches, True) == [] and not matches.iou_mask.any()


def test_a_pair_without_object_is_matched_by_the_human_alone():
    outputs = make_outputs([at(0.2), at(0.6)])
    outputs["pred_object_boxes"][0, 0, 0] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    outputs["pred_object_boxes"][0, 0, 1] = torch.zeros(4)
    targets = targets_at([at(0.3)], [True], object_boxes=[[0.0] * 4])
    assert pairs(match(outputs, targets), False) == [[0, 0]]


def test_the_cost_of_one_pair_by_hand():
    """All terms of one query and pair, computed by hand from the definition."""
    random = torch.Generator().manual_seed(0)
    outputs = make_outputs([[0.5, 0.5, 0.2, 0.2]])
    outputs["pred_object_logits"] = torch.randn(1, 1, 1, NUM_OBJECTS + 1, generator=random)
    outputs["pred_verb_logits"] = torch.randn(1, 1, 1, NUM_VERBS, generator=random)
    outputs["pred_object_boxes"] = torch.tensor([0.4, 0.4, 0.2, 0.2]).view(1, 1, 1, 4)
    targets = targets_at([[0.5, 0.6, 0.2, 0.2]], [True])
    distilled = torch.tensor([False, False, False, True])
    matcher = TwoStageMatcher(MatcherConfig(), distilled)
    cost, _ = matcher._costs(outputs, Targets.collate([targets]))

    p = outputs["pred_verb_logits"].sigmoid().flatten()
    verb = -(p[0] / 1.0001 + (2 - p[1] - p[2]) / 2.0001) / 2
    label = -outputs["pred_object_logits"].softmax(-1).flatten()[0]
    human_giou = 0.02 / 0.06 - (0.06 - 0.06) / 0.06
    object_giou = 0.0 - (0.12 - 0.08) / 0.12
    boxes = 2.5 * max(0.1, 0.1 + 0.2) + max(-human_giou, -object_giou)
    torch.testing.assert_close(cost.item(), (label + verb + boxes).item(), rtol=1e-5, atol=1e-6)


def test_the_assignment_has_the_lowest_cost():
    random = torch.Generator().manual_seed(3)
    boxes = torch.rand(2, 4, 4, generator=random) / 3 + 0.3
    outputs = make_outputs(boxes[0].tolist())
    targets = targets_at(boxes[1].tolist(), [True] * 4)
    matcher = TwoStageMatcher(MatcherConfig(), NO_DISTILLED_VERBS)
    cost = matcher._costs(outputs, Targets.collate([targets]))[0][0, 0]
    found = sum(
        cost[q, t].item() for q, t in pairs(matcher(outputs, Targets.collate([targets])), False)
    )
    best = min(
        sum(cost[q, t].item() for q, t in enumerate(order)) for order in permutations(range(4))
    )
    assert found == pytest.approx(best)


def test_layers_are_matched_independently():
    outputs = make_outputs([at(0.2), at(0.8)], num_layers=2)
    for name in ("pred_human_boxes", "pred_object_boxes"):
        outputs[name][1] = outputs[name][1].flip(1)
    matches = match(outputs, targets_at([at(0.2)], [True]))
    assert pairs(matches, False, layer=0) == [[0, 0]]
    assert pairs(matches, False, layer=1) == [[1, 0]]
    assert matches.num_last_layer == 1


def test_nan_costs_raise_no_error():
    outputs = make_outputs([at(0.2), at(0.8)])
    outputs["pred_human_boxes"][0, 0, 0] = torch.nan
    matches = match(outputs, targets_at([at(0.2)], [True]))
    assert pairs(matches, False) == [[1, 0]]
