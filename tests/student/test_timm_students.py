"""Students with backbones of timm: trained, stopped, resumed, opened, predicted, exported."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import assert_equal_weights, interrupted

from pipeline.utils.errors import InputError
from student.config import TrainConfig
from student.data.transforms import normalise
from student.inference.batch_predictor import BatchPredictor
from student.inference.detector import Detector
from student.inference.export import ONNX, DetectorGraph, export_detector
from student.models.backbone import pixel_statistics
from student.weights.checkpoint_file import load_checkpoint

SWIN = "timm:swin_tiny_patch4_window7_224"
DINO2, DINO3 = "timm:vit_small_patch14_dinov2.lvd142m", "timm:vit_small_patch16_dinov3.lvd1689m"
SIGLIP, CLIP = "timm:vit_base_patch16_siglip_224.webli", "timm:vit_base_patch16_clip_224.openai"
FAMILIES = ("timm:test_resnet", "timm:test_convnext", SWIN, DINO2, DINO3, SIGLIP, CLIP)
SMALLEST = {
    "num_queries": 3,
    "num_encoder_layers": 0,
    "num_human_object_layers": 1,
    "num_interaction_layers": 1,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stopped_training_is_resumed(small_timm, make_trainer, tmp_path, monkeypatch, name):
    options = {"backbone": name, "backbone_lr_factor": 0.1, "feature_levels": 2, "epochs": 1}
    whole = make_trainer("whole", **options)
    start = {key: value.clone() for key, value in whole.train_step.model.state_dict().items()}
    whole.go()
    with interrupted(3):
        make_trainer("stopped", checkpoint_minutes=0, **options).go()
    again, file = make_trainer("stopped", **options), tmp_path / "stopped/checkpoint.pt"
    again.state.resume(load_checkpoint(file), file)
    assert again.step == 2
    again.go()
    assert_equal_weights(tmp_path / "stopped", tmp_path / "whole")
    weights = load_checkpoint(file).weights
    changed = {key for key, value in weights.items() if not torch.equal(value, start[key])}
    trained = {key for key, one in again.train_step.model.named_parameters() if one.requires_grad}
    assert changed <= trained and any(key.startswith("backbone.body.") for key in changed)

    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    detector = Detector.open(tmp_path / "stopped", "cpu")
    model = detector.predictor.model
    # People are no interaction's object; after four steps every query may take its object for one.
    model.object_head.bias.data[detector.vocabulary.person] = -10
    pixels = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
    image = Image.fromarray(pixels)
    result = detector(image, threshold=0, top=5, no_interaction=True)
    assert len(result.scores) == 5
    # Pixels are normalised by the values in the checkpoint.
    assert torch.equal(model.backbone.mean, weights["backbone.mean"])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.no_grad():
        outputs = model([normalise(tensor, pixel_statistics(model.backbone))])
    graph = DetectorGraph(detector)
    scores = graph.decode(outputs)["scores"][0, :5].numpy()
    assert result.scores == pytest.approx(scores, abs=1e-5)


@pytest.fixture
def detector(small_timm, build, small_config, vocabulary):
    """`detector(name)` is the smallest detector with a backbone."""

    def make(name):
        sizes = {"num_objects": vocabulary.num_objects, "num_verbs": vocabulary.num_verbs}
        model = build(replace(small_config, backbone=name, **sizes, **SMALLEST))
        predictor = BatchPredictor(model, vocabulary, TrainConfig(augmentation="toy"))
        return Detector(predictor, Path("a.pt"), None)

    return make


@pytest.mark.slow
def test_export(detector, tmp_path):
    """The written file is compared with the detector, for images of several sizes."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    export_detector(detector(DINO2), ONNX, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["about"])
    assert about["mixed_sizes"] is False
    assert about["least_side"] % about["side_multiple"] == 0 and about["least_side"] >= 64


@pytest.mark.parametrize(("name", "what"), [(SWIN, "windows"), (DINO3, "rotary")])
def test_export_is_refused(detector, tmp_path, name, what):
    with pytest.raises(InputError, match=rf"^--export: .* found {name}, whose .*{what}"):
        export_detector(detector(name), ONNX, tmp_path / "a.onnx")
    assert not any(tmp_path.iterdir())
