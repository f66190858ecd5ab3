import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from pipeline.errors import InputError
from pipeline.world.backbone import SingleMap, WorldBackbone
from student.config import StudentConfig
from student.initialise import start_from
from student.model import HOIDetector

WORLD = StudentConfig.world(num_objects=5, num_verbs=7, person=0)
RESNET = StudentConfig(
    num_objects=5,
    num_verbs=7,
    num_queries=6,
    backbone="resnet18",
    hidden_dim=32,
    num_heads=4,
    feedforward_dim=48,
    num_encoder_layers=1,
    num_human_object_layers=1,
    num_interaction_layers=1,
)


def build(config):
    torch.manual_seed(0)
    return HOIDetector(config).eval()


def detector_state(name):
    """State of a detector, as far as its backbone goes, and a head."""
    torch.manual_seed(1)
    body = (
        SingleMap(WorldBackbone())
        if name == "world"
        else resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=FrozenBatchNorm2d)
    )
    state = {f"backbone.{key}": value for key, value in body.state_dict().items()}
    return {**state, "roi_heads.box_predictor.bias": torch.ones(3)}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize(("name", "config"), [("world", WORLD), ("resnet18", RESNET)])
def test_the_backbone_comes_from_the_detector(tmp_path, name, config, ending):
    model, before = build(config), build(config).state_dict()
    state = detector_state(name)
    file = tmp_path / f"detector{ending}"
    (save_file if ending == ".safetensors" else torch.save)(state, file)
    line = start_from(model, file)
    own = model.backbone.state_dict()
    assert line.startswith(f"{file.name}: {len(own)} backbone tensors taken, ")
    for key, value in model.state_dict().items():
        if key.startswith("backbone."):
            theirs = key.removeprefix("backbone.").removeprefix("body.")
            assert torch.equal(value, state[f"backbone.body.{theirs}"]), key
            changed = value.is_floating_point() and not torch.equal(value, before[key])
            assert changed or value.ndim < 2
        else:
            assert torch.equal(value, before[key]), key


def wrong_shape(state):
    name = next(name for name in state if name.endswith("weight") and state[name].ndim == 4)
    state[name] = state[name][:1].clone()
    return state


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda state: {}, r"expected backbone key .* of the student's shape, found none \(0 keys"),
        (lambda state: {"backbone.body.stem": torch.ones(1)}, r"found none \(1 keys"),
        (lambda state: detector_state("resnet18"), "expected backbone key"),
        (wrong_shape, "of the student's shape"),
    ],
)
def test_other_weights_change_nothing(tmp_path, damage, says):
    model, before = build(WORLD), build(WORLD).state_dict()
    file = tmp_path / "detector.safetensors"
    save_file(damage(detector_state("world")), file)
    with pytest.raises(InputError, match=says) as caught:
        start_from(model, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.pth"])
def test_no_file(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: no such weights file"):
        start_from(build(WORLD), tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "expected a weights file"),
        ("cut.pth", b"PK\x03\x04", "expected a weights file"),
        ("text.pth", b"weights", "expected a file of plain tensors"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        start_from(build(WORLD), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_things(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="expected tensors by name"):
        start_from(build(WORLD), tmp_path / "other.pth")
