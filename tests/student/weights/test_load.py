import argparse
from dataclasses import replace

import pytest
import torch

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from student.engine.evaluate import evaluate_checkpoint
from student.inference.postprocess import select_detections
from student.weights.load import load_student
from student.weights.published import to_published


@pytest.fixture(scope="module")
def model(build, small_config, vocabulary):
    """A small model with as many classes as the toy dataset has."""
    classes = {"num_objects": vocabulary.num_objects, "num_verbs": vocabulary.num_verbs}
    return build(replace(small_config, **classes))


@pytest.fixture
def published(model, tmp_path):
    """`published(**more)` writes a checkpoint in the published form."""

    def write(**more):
        torch.save({"model": to_published(model.state_dict()), **more}, tmp_path / "eoid_ua.pth")
        return tmp_path / "eoid_ua.pth"

    return write


def test_a_published_checkpoint_takes_the_vocabulary_of_the_dataset(published, model, vocabulary):
    loaded = load_student(published(), vocabulary, 4)
    assert loaded.model.config.num_heads == 4
    loaded = load_student(published(), vocabulary)
    assert loaded.is_published and loaded.split.name == "full" and not loaded.model.training
    assert loaded.recipe.model == model.config == loaded.model.config
    assert loaded.recipe.train.augmentation == "published"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


def test_v_coco_models_with_a_class_for_verbs_without_object(build, small_config, tmp_path):
    vcoco = load_vocabulary("vcoco")
    file = tmp_path / "cdn_vcoco.pth"
    config = replace(small_config, num_verbs=vcoco.num_verbs, num_objects=vcoco.num_objects + 1)
    torch.save({"model": to_published(build(config).state_dict())}, file)
    loaded = load_student(file, vcoco)
    assert loaded.model.config.num_objects == 81
    with pytest.raises(InputError, match="expected 80 objects and 29 verbs"):
        load_student(file, replace(vcoco, roles=()))
    outputs = loaded.model([torch.zeros(3, 64, 64)])
    # One query predicts a verb without object with certainty, all others "no pair".
    logits = torch.zeros(1, config.num_queries, 82)
    logits[..., 81] = 50.0
    logits[0, 2, 80] = 100.0
    outputs["pred_object_logits"] = logits
    outputs["pred_verb_logits"] = torch.full_like(outputs["pred_verb_logits"], -9.0)
    outputs["pred_verb_logits"][0, 2, 4] = 9.0
    (found,) = select_detections(outputs, ["a.jpg"], [(64, 64)], vcoco)
    assert found.scores[0] > 0.99 > 0.01 > found.scores[1]
    assert found.hois[0, 1] == -1 and found.hois[0, 2] == 4


def test_evaluating_a_published_checkpoint(published, dataset, dataset_root, tmp_path):
    file = published(epoch=89, args=argparse.Namespace(nheads=8))
    results = evaluate_checkpoint(file, dataset_root, None, None, "cpu", 0, False)
    out = tmp_path / "eoid_ua-evaluation"
    assert {path.name for path in out.iterdir()} >= {"predictions.json", "results.json"}
    assert (results.name, results.split, results.training_split) == ("eoid_ua", "full", None)
    assert results.distillation is results.seed is results.protocol is None
    assert results.num_images == len(dataset.load("test").annotations)
    with pytest.raises(InputError, match=r"results\.json: exists"):
        evaluate_checkpoint(file, dataset_root, "ua", None, "cpu", 0, False)
