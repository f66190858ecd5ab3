"""The student's benchmark: its straightforward side computes the same numbers."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import student_step
from benchmarks.plain_student import attention_with_weights, plain_losses, plain_model
from benchmarks.synthetic_data import make_images, random_outputs
from benchmarks.timing import HostSyncCounter, Timings, time_in_turns
from student.config import LossConfig, MatcherConfig, ModelConfig
from student.data.targets import Targets
from student.losses.criterion import Criterion
from student.losses.matcher import TwoStageMatcher
from student.models.detector import HOIDetector

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("bench"), 3, labelled=4, proposed=6, side=64)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_both_ways_to_the_losses_agree(images, threshold):
    distilled_verbs = torch.from_numpy(images[0].split.distilled_verbs)
    targets = [images[0][0, index].targets for index in range(3)]
    assert all(target.teacher_probs.any() and not target.seen.all() for target in targets)
    matcher = MatcherConfig(interactive_threshold=threshold)
    outputs, others = (random_outputs(2, 3, 12, CPU) for _ in range(2))
    # Two queries lie on candidates, so that stage 2 keeps some.
    for made in (outputs, others):
        for layer in (made, *made["aux_outputs"]):
            for name in ("human_boxes", "object_boxes"):
                with torch.no_grad():
                    layer[f"pred_{name}"][0, :2] = getattr(targets[0], name)[-2:]
    criterion = Criterion(TwoStageMatcher(matcher, distilled_verbs), LossConfig())
    with HostSyncCounter() as counted:
        found = criterion(outputs, Targets.collate(targets))
    assert counted.count == 1 and found.matches.is_candidate.any()
    expected = plain_losses(others, targets, distilled_verbs, matcher, LossConfig())
    assert found.weighted.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.weighted[name], value, rtol=1e-5, atol=1e-6)
    found.total.backward()
    sum(expected.values()).backward()
    for name in outputs.keys() - {"aux_outputs"}:
        torch.testing.assert_close(outputs[name].grad, others[name].grad, rtol=1e-3, atol=1e-6)


def test_both_models_agree(small_student):
    images = [torch.randn(3, 64, 96)] * 2
    plain = plain_model(small_student).eval()
    expected = small_student(images)
    with torch.no_grad(), attention_with_weights():
        found = plain(images)
    for name in expected.keys() - {"aux_outputs"}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    trained = [sum(p.requires_grad for p in model.parameters()) for model in (plain, small_student)]
    assert trained[0] == trained[1]


@pytest.fixture
def small_student():
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", hidden_dim=32, feedforward_dim=48)
    return HOIDetector(replace(config, num_encoder_layers=1)).eval()


def test_turns_change_sides_and_the_first_does_not_count():
    order = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b") or 2.5}
    seconds = time_in_turns(sides, 2, CPU).seconds
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert seconds["b"] == [2.5, 2.5] and len(seconds["a"]) == 2


def test_ratios_compare_what_ran_side_by_side():
    turns = Timings({"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]})
    assert turns.ratio("a", "b") == 2 and turns.medians() == {"a": 3, "b": 1}


@pytest.mark.slow
def test_every_part_gives_its_ratio(monkeypatch, capsys):
    small = ["--backbone", "resnet18", "--clip-model", "ViT-S-32-alt"]
    few = ["--side", "64", "--images", "4", "--turns", "1", "--steps", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["student_step", *small, *few, "--device", "cpu"])
    student_step.main()
    found = json.loads(capsys.readouterr().out)
    assert all(found[part]["ratio"] > 0 for part in student_step.PARTS)
    assert (
        found["teacher"]["regions"]["every_layer"] > found["teacher"]["regions"]["each_pair_once"]
    )
    assert found["losses"]["host_reads"]["ours"] == 1 and found["losses"]["pairs_per_image"] > 10
    totals = found["losses"]["totals"]
    assert totals["ours"] == pytest.approx(totals["plain"], rel=1e-4)
    assert found["padding"]["grouped"] < found["padding"]["random"] / 2
