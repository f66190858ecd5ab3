import json

import numpy as np
import pytest
import torch

from student.config import LossConfig, MatcherConfig
from student.losses import Criterion
from student.targets import Targets

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
LOG_ONLY = ("obj_class_error", "obj_cardinality_error")


def golden_targets(golden, image, asked):
    field = {
        name: torch.from_numpy(golden[f"t{image}.{name}"])
        for name in ("obj_labels", "verb_labels", "sub_boxes", "obj_boxes", "st", "is_mask")
    }
    teacher = torch.from_numpy(golden[f"t{image}.teacher_probs"])
    hard = field["verb_labels"] > 0
    return Targets(
        human_boxes=field["sub_boxes"],
        object_boxes=field["obj_boxes"],
        object_labels=field["obj_labels"],
        hard=hard,
        soft=teacher * asked * ~hard,
        seen=field["st"] == 0,
        interactive=field["is_mask"] == 1,
    )


@pytest.fixture
def golden_run(golden_file):
    """The golden's numbers, its outputs as leaves, its targets and our losses of them."""
    golden = np.load(golden_file)
    config = json.loads(str(golden["config"]))
    weights = json.loads(str(golden["weights"]))
    asked = torch.from_numpy(golden["unseen_verb_mask"]).bool()
    layers = [
        {
            ours: torch.from_numpy(golden[f"o{layer}.{name}"]).requires_grad_()
            for name, ours in OUTPUTS.items()
            if f"o{layer}.{name}" in golden.files
        }
        for layer in range(config["layers"])
    ]
    targets = [golden_targets(golden, image, asked) for image in range(config["batch"])]
    criterion = Criterion(
        MatcherConfig(topk=config["topk"], interactive_threshold=config["thres_is"]),
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
        asked,
    )
    losses = criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets)
    return golden, layers, targets, losses


@pytest.mark.golden("criterion_*.npz")
def test_golden_matching(golden_run):
    golden, layers, targets, losses = golden_run
    for layer in range(len(layers)):
        for image in range(len(targets)):
            for kind, candidates in (("seen_indices", False), ("topk_indices", True)):
                expected = golden[f"m{layer}.{image}.{kind}"].reshape(2, -1).T.tolist()
                ours = torch.stack(losses.matches.of_image(layer, image, candidates), 1).tolist()
                assert sorted(ours) == sorted(expected)


@pytest.mark.golden("criterion_*.npz")
def test_golden_verb_targets(golden_run):
    golden, layers, targets, losses = golden_run
    for image, target in enumerate(targets):
        matched = torch.zeros(len(target), 1)
        for candidates in (False, True):
            matched[losses.matches.of_image(len(layers) - 1, image, candidates)[1]] = 1
        ours = torch.where(target.hard, 1.0, target.soft) * matched
        expected = golden[f"t{image}.verb_targets_matched"]
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


@pytest.mark.golden("criterion_*.npz")
def test_golden_losses(golden_run):
    golden, layers, _, losses = golden_run
    expected = {
        name: value
        for name, value in json.loads(str(golden["losses"])).items()
        if not name.startswith(LOG_ONLY)
    }
    suffixes = [f"_{layer}" for layer in range(len(layers) - 1)] + [""]
    ours = {
        f"{theirs}{suffix}": losses.by_name[name][layer].item()
        for layer, suffix in enumerate(suffixes)
        for theirs, name in LOSSES.items()
        if name in losses.by_name
    }
    assert ours == pytest.approx(expected, rel=1e-4)
    assert losses.total.item() == pytest.approx(float(golden["total"]), rel=1e-4)


@pytest.mark.golden("criterion_*.npz")
def test_golden_gradients(golden_run):
    golden, layers, _, losses = golden_run
    losses.total.backward()
    for key in golden.files:
        if key.startswith("g"):
            layer, name = key[1:].split(".")
            ours = layers[int(layer)][OUTPUTS[name]].grad.numpy()
            assert np.abs(ours - golden[key]).max() <= 1e-4 * np.abs(golden[key]).max(), key
