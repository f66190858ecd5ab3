"""The evaluations' benchmarks: loops that agree, and numbers that are there."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import evaluate as hico
from benchmarks import evaluate_vcoco as vcoco


@pytest.mark.parametrize("detections", [0, 20])
def test_hico_is_compared_on_random_annotations(monkeypatch, detections):
    monkeypatch.setattr(hico, "IMAGES", 40)
    monkeypatch.setattr(hico, "LABELS", 150)
    options = argparse.Namespace(annotations=None, detections=detections, loop_images=30, seed=1)
    result = hico.run(options)
    assert (result["images"], result["labels"]) == (40, 150)
    assert result["detections"] == 40 * detections
    assert (result["mean_ap"] > 0.1) == (detections > 0)
    assert result["plain_loop"]["images"] == 30
    assert set(result["seconds"]) == {
        "annotations",
        "default_setting",
        "both_settings",
        "pairwise_nms",
    }


def test_a_loop_that_disagrees_is_found(monkeypatch):
    monkeypatch.setattr(hico, "IMAGES", 20)
    monkeypatch.setattr(hico, "LABELS", 50)
    monkeypatch.setattr(hico, "plain_loop", lambda *_: np.zeros(600))
    options = argparse.Namespace(annotations=None, detections=20, loop_images=0, seed=1)
    with pytest.raises(AssertionError):
        hico.run(options)


def test_annotations_may_be_a_file(tmp_path):
    entries = [
        {
            "file_name": f"{index}.jpg",
            "annotations": [
                {"bbox": [10, 20, 130, 160], "category_id": 1},
                {"bbox": [90, 40, 250, 170], "category_id": 2},
            ],
            "hoi_annotation": [{"subject_id": 0, "object_id": 1, "category_id": 72}],
        }
        for index in range(5)
    ]
    path = tmp_path / "test_hico.json"
    path.write_text(json.dumps(entries))
    options = argparse.Namespace(annotations=path, detections=5, loop_images=0, seed=0)
    assert hico.run(options)["images"] == 5


def test_vcoco(monkeypatch):
    monkeypatch.setattr(vcoco, "IMAGES", 30)
    result = vcoco.run(argparse.Namespace(detections=8, loop_images=12, seed=0))
    assert (result["images"], result["detections"]) == (30, 240)
    assert result["average_agent_ap"] > result["average_role_ap_scenario_1"] > 0
