"""The toy dataset's teacher and detector that come with the package."""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pipeline.boxes import box_iou
from pipeline.toy import DETECTOR
from pipeline.toy.generate import DRAWING_VERSION
from pipeline.toy.scene import draw_scene
from pipeline.utils.files import read_json
from student.weights.pretrained import pretrained_path
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import load_detector
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.clip import WEIGHTS_FILE, ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.teachers.regions import RegionMode, crop_regions_pil
from teacher_cache.toy.train import RECIPE_FILE, ToyModelsConfig, captioned_regions

CPU = torch.device("cpu")
SCENES = [draw_scene(7, "test", index) for index in range(40)]


def labelled_regions(vocabulary):
    """(N, 3, 64, 64) union regions of the scenes' interactions, their objects and verbs."""
    crops, objects, verbs = [], [], []
    for image, annotation in SCENES:
        boxes, _ = captioned_regions(annotation, vocabulary, np.random.default_rng(0))
        crops += crop_regions_pil(image, boxes[::2], 64, RegionMode())
        objects += annotation.labels[annotation.hois[:, 1]].tolist()
        verbs += annotation.hois[:, 2].tolist()
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), np.array(objects), verbs


def probabilities(model, vocabulary):
    """Probabilities of the verbs in `labelled_regions`, and the annotated verbs."""
    clip = ClipTeacher(ClipConfig(str(model)), CPU)
    regions, objects, verbs = labelled_regions(vocabulary)
    prompts = [group[0] for group in interaction_prompts(vocabulary)]
    logits = clip.logit_scale * clip.encode_images(regions) @ clip.encode_texts(prompts).T
    return action_probabilities(logits, objects, vocabulary), np.array(verbs)


def detections(weights, vocabulary):
    detector = load_detector(DetectorConfig("toy", weights, 0.2), vocabulary, CPU)
    return detector.detect([image for image, _ in SCENES])


def test_the_teacher_recognises_actions(vocabulary):
    found, verbs = probabilities("toy", vocabulary)
    actions = verbs != vocabulary.no_interaction
    assert actions.sum() > 50 and (found.argmax(1) == verbs)[actions].mean() > 0.95


def test_the_detector_finds_people_and_objects(vocabulary):
    hits = []
    for (_, annotation), found in zip(SCENES, detections(None, vocabulary), strict=True):
        same = annotation.labels[:, None] == found.labels
        hits += ((box_iou(annotation.boxes, found.boxes) > 0.5) & same).any(1).tolist()
    assert len(hits) > 100 and np.mean(hits) > 0.85


def test_half_precision_does_not_change_the_answers(vocabulary, tmp_path):
    """Random weights in the intervals that are rounded to the stored ones give these answers."""
    random = torch.Generator().manual_seed(0)

    def displace(file):
        state = load_file(file)
        for name, value in state.items():
            if value.is_floating_point() and value.dim():
                assert value.dtype == torch.float16
                exponent = value.float().abs().clamp(min=2.0**-14).log2().floor()
                noise = torch.rand(value.shape, generator=random) - 0.5
                state[name] = value.float() + 2 ** (exponent - 10) * noise
        save_file(state, file)

    models = Path(shutil.copytree(DETECTOR.parent, tmp_path / "models"))
    displace(models / "teacher" / WEIGHTS_FILE)
    displace(models / "detector.safetensors")
    stored, other = (probabilities(each, vocabulary)[0] for each in ("toy", models / "teacher"))
    error = np.abs(other - stored).max(1)
    assert np.quantile(error, 0.95) < 1e-3 and error.max() < 3e-3
    for mine, theirs in zip(
        detections(None, vocabulary),
        detections(str(models / "detector.safetensors"), vocabulary),
        strict=True,
    ):
        certain = mine.scores > 0.5
        overlap = box_iou(mine.boxes[certain], theirs.boxes)
        same = overlap.argmax(1)
        np.testing.assert_array_equal(mine.labels[certain], theirs.labels[same])
        np.testing.assert_allclose(theirs.scores[same], mine.scores[certain], atol=5e-3)
        np.testing.assert_allclose(theirs.boxes[same], mine.boxes[certain], atol=0.1)


def test_the_recipe_is_recorded():
    """Seeds 0 to 4 are those of the demo's results."""
    recipe = read_json(DETECTOR.parent / RECIPE_FILE)
    assert recipe == ToyModelsConfig(seed=recipe["seed"]).recipe() and recipe["seed"] > 4
    assert recipe["drawing"] == DRAWING_VERSION
    assert f"--seed {recipe['seed']}" in (DETECTOR.parent / "README.md").read_text()


def test_the_name_is_no_path(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pretrained_path(Path("toy")) == DETECTOR
    assert ClipTeacher(ClipConfig("toy"), CPU).image_size == 64
    # A run of that name takes precedence, as for `eoid-predict toy`.
    (tmp_path / "toy/checkpoint.pt").touch()
    assert pretrained_path(Path("toy")) == Path("toy/checkpoint.pt")
