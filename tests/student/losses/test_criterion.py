import json

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss
from training import make_targets

from student.config import LossConfig, MatcherConfig
from student.data.targets import Targets
from student.losses.criterion import Criterion
from student.losses.matcher import TwoStageMatcher

OUTPUTS = {
    "pred_obj_logits": "pred_object_logits",
    "pred_verb_logits": "pred_verb_logits",
    "pred_sub_boxes": "pred_human_boxes",
    "pred_obj_boxes": "pred_object_boxes",
    "pred_is_logits": "pred_interactive_logits",
    "pred_matching_logits": "pred_matching_logits",
}
LOSSES = {
    "loss_obj_ce": "object",
    "loss_verb_ce": "verb_hard",
    "loss_verb_clip": "verb_soft",
    "loss_sub_bbox": "human_box",
    "loss_obj_bbox": "object_box",
    "loss_sub_giou": "human_giou",
    "loss_obj_giou": "object_giou",
    "loss_is": "interactive",
    "loss_matching": "matching",
}


def total(losses):
    return torch.stack([*losses.weighted.values()]).sum()


def matched(losses, layer, image, candidates):
    """Queries and pairs that one of the stages matched in one layer and image."""
    matches = losses.matches
    rows = (matches.layers == layer) & (matches.images == image)
    rows &= matches.is_candidate == candidates
    return matches.queries[rows], matches.targets[rows]


def golden_targets(golden, image, distilled):
    def field(name):
        return torch.from_numpy(golden[f"t{image}.{name}"])

    hard = field("verb_labels") > 0
    return make_targets(
        field("st") == 0,
        human_boxes=field("sub_boxes"),
        object_boxes=field("obj_boxes"),
        object_labels=field("obj_labels"),
        verb_labels=hard,
        teacher_probs=field("teacher_probs") * distilled * ~hard,
        interactive=field("is_mask") == 1,
    )


@pytest.fixture
def golden_run(golden_file):
    """The golden file, its outputs as leaf tensors, its targets, and our losses."""
    golden = np.load(golden_file)
    config = json.loads(str(golden["config"]))
    weights = json.loads(str(golden["weights"]))
    distilled = torch.from_numpy(golden["unseen_verb_mask"]).bool()
    layers = [
        {
            ours: torch.from_numpy(golden[f"o{layer}.{name}"]).requires_grad_()
            for name, ours in OUTPUTS.items()
            if f"o{layer}.{name}" in golden.files
        }
        for layer in range(config["layers"])
    ]
    targets = [golden_targets(golden, image, distilled) for image in range(config["batch"])]
    matcher = MatcherConfig(topk=config["topk"], interactive_threshold=config["thres_is"])
    criterion = Criterion(
        TwoStageMatcher(matcher, distilled),
        LossConfig(
            object_weight=weights["loss_obj_ce"],
            box_weight=weights["loss_sub_bbox"],
            giou_weight=weights["loss_sub_giou"],
            verb_hard_weight=weights["loss_verb_ce"],
            verb_soft_weight=weights["loss_verb_clip"],
            interactive_weight=weights["loss_is"],
            matching_weight=weights.get("loss_matching", 1.0),
            no_pair_weight=config["eos_coef"],
            alpha=config["alpha"],
            verb_loss=config["verb_loss"],
        ),
    )
    losses = criterion({**layers[-1], "aux_outputs": layers[:-1]}, Targets.collate(targets))
    return golden, layers, targets, losses


@pytest.mark.golden("criterion_*.npz")
def test_golden_matches_and_verb_targets(golden_run):
    golden, layers, targets, losses = golden_run
    for layer in range(len(layers)):
        for image in range(len(targets)):
            for kind, candidates in (("seen_indices", False), ("topk_indices", True)):
                expected = golden[f"m{layer}.{image}.{kind}"].reshape(2, -1).T.tolist()
                ours = torch.stack(matched(losses, layer, image, candidates), 1).tolist()
                assert sorted(ours) == sorted(expected)
    for image, target in enumerate(targets):
        mask = torch.zeros(len(target), 1)
        for candidates in (False, True):
            mask[matched(losses, len(layers) - 1, image, candidates)[1]] = 1
        ours = torch.where(target.verb_labels, 1.0, target.teacher_probs) * mask
        expected = golden[f"t{image}.verb_targets_matched"]
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


@pytest.mark.golden("criterion_*.npz")
def test_golden_losses_and_gradients(golden_run):
    golden, layers, _, losses = golden_run
    expected = {
        name: value
        for name, value in json.loads(str(golden["losses"])).items()
        if name.startswith("loss_")
    }
    suffixes = [f"_{layer}" for layer in range(len(layers) - 1)] + [""]
    ours = {
        f"{theirs}{suffix}": losses.by_name[name][layer].item()
        for layer, suffix in enumerate(suffixes)
        for theirs, name in LOSSES.items()
        if name in losses.by_name
    }
    assert ours == pytest.approx(expected, rel=1e-4)
    assert total(losses).item() == pytest.approx(float(golden["total"]), rel=1e-4)
    total(losses).backward()
    for key in golden.files:
        if key.startswith("g"):
            layer, name = key[1:].split(".")
            ours = layers[int(layer)][OUTPUTS[name]].grad.numpy()
            assert np.abs(ours - golden[key]).max() <= 1e-4 * np.abs(golden[key]).max(), key


NUM_VERBS, NUM_OBJECTS, NUM_QUERIES = 5, 3, 6
OPEN_GATE = MatcherConfig(interactive_threshold=0.0, iou_threshold=0.0)


def some_targets(seen, seed=0, **fields):
    return make_targets(seen, NUM_VERBS, seed, **fields)


def some_outputs(num_images, num_layers=2, dtype=torch.float32, seed=1, matching=False):
    random = torch.Generator().manual_seed(seed)

    def layer():
        sizes = {"object": NUM_OBJECTS + 1, "verb": NUM_VERBS, "interactive": 2}
        if matching:
            sizes["matching"] = 2
        logits = {
            f"pred_{name}_logits": torch.randn(num_images, NUM_QUERIES, size, generator=random)
            for name, size in sizes.items()
        }
        boxes = {
            f"pred_{name}_boxes": torch.rand(num_images, NUM_QUERIES, 4, generator=random) / 4 + 0.3
            for name in ("human", "object")
        }
        return {name: x.to(dtype).requires_grad_() for name, x in {**logits, **boxes}.items()}

    *aux, last = [layer() for _ in range(num_layers)]
    return {**last, "aux_outputs": aux}


def criterion(matcher=OPEN_GATE, num_distilled=1, **config):
    distilled = torch.zeros(NUM_VERBS, dtype=torch.bool)
    distilled[NUM_VERBS - num_distilled :] = True
    whole = Criterion(TwoStageMatcher(matcher, distilled), LossConfig(**config))
    return lambda outputs, targets: whole(outputs, Targets.collate(targets))


def leaves(outputs):
    layers = [*outputs["aux_outputs"], outputs]
    return [x for layer in layers for x in layer.values() if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("verb_loss", ["focal_bce", "bce_bce"])
def test_half_precision_logits_of_a_hundred_stay_finite(dtype, verb_loss):
    outputs = some_outputs(2, dtype=dtype, matching=True)
    with torch.no_grad():
        for layer in (outputs, *outputs["aux_outputs"]):
            for name, x in layer.items():
                if name.endswith("logits"):
                    x.copy_(100 * x.sign())
    targets = [some_targets([True, False]), some_targets([True] * 4)]
    losses = criterion(verb_loss=verb_loss)(outputs, targets)
    total(losses).backward()
    assert torch.isfinite(total(losses))
    assert all(torch.isfinite(x.grad).all() for x in leaves(outputs))


def test_a_teacher_probability_of_one_is_soft():
    target = some_targets([True])
    target.teacher_probs[0, NUM_VERBS - 1] = 1.0
    outputs = some_outputs(1, num_layers=1)
    losses = criterion()(outputs, [target])
    query = losses.matches.queries[0]
    logit = outputs["pred_verb_logits"][0, query, NUM_VERBS - 1]
    expected = -torch.nn.functional.logsigmoid(logit) / (NUM_QUERIES * NUM_VERBS)
    torch.testing.assert_close(losses.by_name["verb_soft"], expected[None])


@pytest.mark.parametrize("verb_loss", ["focal_bce", "bce_bce"])
def test_independent_probabilities(verb_loss):
    """They need not sum to 1; one of 0 counts as the label "absent"."""
    target = some_targets([True, False])
    values = torch.tensor([1.0, 0.75, 0.0])
    target.teacher_probs[:, -3:] = values
    outputs = some_outputs(1, num_layers=1)
    losses = criterion(num_distilled=3, verb_loss=verb_loss)(outputs, [target])
    matched = losses.matches.queries
    assert len(matched) == 2
    logits = outputs["pred_verb_logits"][0, matched, -3:-1]
    soft = binary_cross_entropy_with_logits(logits, values[:2].expand(2, 2), reduction="sum")
    entries = NUM_QUERIES * NUM_VERBS
    torch.testing.assert_close(losses.by_name["verb_soft"], soft[None] / entries)
    target.teacher_probs[:, -1] = 1e-30
    more = criterion(num_distilled=3, verb_loss=verb_loss)(outputs, [target])
    logits = outputs["pred_verb_logits"][0, matched, -1]
    losses_of_0 = binary_cross_entropy_with_logits(logits, torch.zeros(2), reduction="none")
    difference = more.by_name["verb_soft"] - losses.by_name["verb_soft"]
    torch.testing.assert_close(difference, losses_of_0.sum()[None] / entries)
    # As a soft target it is no longer a hard one.
    if verb_loss == "focal_bce":
        losses_of_0 = (1 - LossConfig().alpha) * logits.sigmoid() ** 2 * losses_of_0
    count = target.verb_labels.sum() if verb_loss == "focal_bce" else entries
    difference = losses.by_name["verb_hard"] - more.by_name["verb_hard"]
    torch.testing.assert_close(difference, losses_of_0.sum()[None] / count)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.8, 1.5)])
def test_the_focal_loss_is_torchvisions(alpha, gamma):
    target, outputs = some_targets([True]), some_outputs(1, num_layers=1)
    target.teacher_probs.zero_()
    losses = criterion(alpha=alpha, gamma=gamma)(outputs, [target])
    labels = torch.zeros(1, NUM_QUERIES, NUM_VERBS)
    labels[0, losses.matches.queries[0]] = target.verb_labels[0].float()
    expected = sigmoid_focal_loss(outputs["pred_verb_logits"], labels, alpha, gamma, "sum")
    torch.testing.assert_close(losses.by_name["verb_hard"], expected[None] / labels.sum())


def test_soft_normalisation():
    targets = [some_targets([True, False, True]), some_targets([True])]
    outputs = some_outputs(2)
    by_entries, by_pairs, by_verbs = (
        criterion(soft_normalisation=name, num_distilled=3)(outputs, targets)
        for name in ("entries", "pairs", "supervised")
    )
    soft = by_pairs.by_name["verb_soft"]
    assert soft.sum() > 0
    torch.testing.assert_close(by_verbs.by_name["verb_soft"], soft / 3)
    assert by_pairs.matches.num_last_layer == 4
    expected = by_entries.by_name["verb_soft"] * (2 * NUM_QUERIES * NUM_VERBS) / 4
    torch.testing.assert_close(by_pairs.by_name["verb_soft"], expected)
    for name in set(by_pairs.by_name) - {"verb_soft"}:
        assert torch.equal(by_pairs.by_name[name], by_entries.by_name[name])


def test_pairs_without_object_have_no_object_losses():
    outputs, target = some_outputs(1), some_targets([True])
    target.object_boxes[0] = 0
    target.object_labels[0] = outputs["pred_object_logits"].shape[-1] - 1
    losses = criterion()(outputs, [target]).by_name
    assert not losses["object_box"].any() and not losses["object_giou"].any()
    assert losses["human_box"].all()
    # The object class is that of queries without any pair.
    without_pairs = criterion()(outputs, [some_targets([])]).by_name["object"]
    torch.testing.assert_close(losses["object"], without_pairs)


BOXES = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.6, 0.6, 0.1, 0.1]])
THREE = {"human_boxes": BOXES, "object_boxes": BOXES}


def on_three_pairs(outputs):
    """The first queries on three pairs, and the others away from them."""
    rest = torch.tensor([0.8, 0.8, 0.05, 0.05]).expand(NUM_QUERIES - 3, 4)
    boxes = torch.cat([BOXES, rest])[None]
    return {**outputs, "pred_human_boxes": boxes, "pred_object_boxes": boxes}


def test_interactive_score_of_labelled_unlabelled_and_other_queries():
    """Queries on an interactive pair, on one that is not, on a candidate, and elsewhere."""
    interactive = torch.tensor([True, False, True])
    target = some_targets([True, True, False], **THREE, interactive=interactive)
    outputs = on_three_pairs(some_outputs(1, num_layers=1))
    logits = outputs["pred_interactive_logits"]
    log_not, log_is = logits[0].log_softmax(-1).T
    shut = criterion(MatcherConfig(interactive_threshold=1.0))(outputs, [target])
    others = -(log_is[0] + log_not[1] + log_not[3:].sum())
    torch.testing.assert_close(shut.by_name["interactive"], others[None] / 5)
    opened = criterion(MatcherConfig(interactive_threshold=0.0))(outputs, [target])
    torch.testing.assert_close(opened.by_name["interactive"], (others - log_is[2])[None] / 6)


def test_matching_loss_is_the_cross_entropy_of_matched_queries():
    outputs = some_outputs(1, num_layers=1, matching=True)
    losses = criterion()(outputs, [some_targets([True, True])])
    labels = torch.zeros(1, NUM_QUERIES, dtype=torch.int64)
    labels[0, losses.matches.queries] = 1
    logits = outputs["pred_matching_logits"].transpose(1, 2)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(losses.by_name["matching"], expected[None])


def unlabelled(count, **fields):
    return some_targets([False] * count, exhaustive_labels=torch.tensor([False]), **fields)


def test_losses_of_an_image_without_exhaustive_labels():
    """Of three candidates two are matched; the query on the third has no loss."""
    target = unlabelled(3, **THREE)
    outputs = on_three_pairs(some_outputs(1, num_layers=1, matching=True))
    found = criterion(MatcherConfig(interactive_threshold=0.0, topk=2))(outputs, [target])
    taken = found.matches.queries.tolist()
    (left,) = {0, 1, 2} - set(taken)
    names = ("pred_object_logits", "pred_verb_logits", "pred_interactive_logits",
             "pred_matching_logits")  # fmt: skip
    taught = [
        gradient[0].abs().sum(-1) > 0
        for gradient in torch.autograd.grad(total(found), [outputs[name] for name in names])
    ]
    for name, queries in zip(names, taught, strict=True):
        verbs = name == "pred_verb_logits"
        for query in range(NUM_QUERIES):
            assert queries[query] == (query in taken if verbs else query != left), (name, query)
    assert not found.by_name["verb_hard"].any() and found.by_name["verb_soft"].all()
    gradient = torch.autograd.grad(
        total(criterion()(outputs, [target])), outputs["pred_verb_logits"]
    )[0]
    # Verbs without teacher probability have no loss.
    assert not gradient[..., : NUM_VERBS - 1].any() and gradient[..., -1].any()


def test_an_unlabelled_image_does_not_change_the_verb_loss_of_a_labelled_one():
    outputs = some_outputs(1, num_layers=1, matching=True)
    both = {
        name: torch.cat([value, some_outputs(1, 1, seed=9, matching=True)[name]])
        for name, value in outputs.items()
        if name != "aux_outputs"
    }
    target = some_targets([True, False, True])
    alone = criterion()(outputs, [target])
    beside = criterion()({**both, "aux_outputs": []}, [target, unlabelled(2)])
    assert beside.weighted["verb_hard"] == alone.weighted["verb_hard"]
    assert beside.by_image["verb_hard"].tolist() == [alone.weighted["verb_hard"].item(), 0]


@pytest.mark.parametrize("verb_loss", ["focal_bce", "bce_bce"])
@pytest.mark.parametrize("targets", [[unlabelled(2), unlabelled(0)], [some_targets([])] * 2])
def test_a_batch_without_labels_has_finite_losses_and_gradients(verb_loss, targets):
    outputs = some_outputs(2, matching=True)
    found = criterion(verb_loss=verb_loss)(outputs, targets)
    total(found).backward()
    gradients = [x.grad for x in leaves(outputs) if x.grad is not None]
    assert all(torch.isfinite(value).all() for value in (*found.weighted.values(), *gradients))
    exhaustive = bool(targets[0].exhaustive_labels)
    assert (found.weighted["verb_hard"] > 0) == exhaustive and found.weighted["object"] > 0
    for name in ("human_box", "object_box", "human_giou", "object_giou", "verb_soft"):
        assert not exhaustive or found.weighted[name] == 0


def test_losses_by_image_sum_to_the_loss():
    kinds = [[True, False, True], [], [False], [True, True]]
    found = criterion()(
        some_outputs(4), [some_targets(seen, row) for row, seen in enumerate(kinds)]
    )
    for name, value in found.weighted.items():
        assert found.by_image[name].shape == (4,) and not found.by_image[name].requires_grad
        torch.testing.assert_close(found.by_image[name].sum(), value.detach())
