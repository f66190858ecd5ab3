import argparse
import json
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.utils.errors import InputError
from student.config import ModelConfig
from student.models.detector import HOIDetector
from student.weights.load import load_model
from student.weights.published import config_from_shapes, model_from_published, to_published

TOLERANCE = 2e-4
GOLDEN_NAMES = {
    "pred_obj_logits": "pred_object_logits",
    "pred_verb_logits": "pred_verb_logits",
    "pred_sub_boxes": "pred_human_boxes",
    "pred_obj_boxes": "pred_object_boxes",
    "pred_is_logits": "pred_interactive_logits",
    "pred_matching_logits": "pred_matching_logits",
}


def random_tensor(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    x = random.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(x)
    if name.endswith(("running_mean", ".bias")):
        return 0.05 * x
    if len(shape) == 1:
        return 1 + 0.1 * x
    gain = 0.5 if len(shape) == 4 else 1.0
    return (x * np.sqrt(gain / np.prod(shape[1:]))).astype(np.float32)


@pytest.fixture(scope="module")
def small(build, small_config):
    return build(small_config)


def published(model, change=lambda state: None, **more):
    state = to_published(model.state_dict())
    change(state)
    return {"model": state, **more}


@pytest.mark.golden("forward_*.npz")
def test_golden_forward(golden_file, tmp_path):
    golden = np.load(golden_file)
    meta = json.loads(str(golden["meta"]))
    state = {
        name: torch.from_numpy(np.asarray(random_tensor(name, shape), dtype=np.float32))
        for name, shape in meta["entries"]
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--nheads", type=int, default=8)
    arguments, _ = parser.parse_known_args(meta["args"])
    torch.save({"model": state, "args": arguments}, tmp_path / "published.pth")
    model = load_model(tmp_path / "published.pth")
    random = np.random.RandomState(meta["image_seed"])
    images = [
        torch.from_numpy(random.uniform(-2, 2, (3, height, width)).astype(np.float32))
        for height, width in meta["sizes"]
    ]
    with torch.no_grad():
        outputs = model(images)
    keys = [key for key in golden.files if key != "meta"]
    layers = {"": outputs, **{f"aux{i}.": aux for i, aux in enumerate(outputs["aux_outputs"])}}
    expected = {
        f"{i}{name}" for i in layers for name, our in GOLDEN_NAMES.items() if our in outputs
    }
    assert set(keys) == expected
    for key in keys:
        prefix, name = key.rsplit(".", 1) if "." in key else ("", key)
        ours = layers[prefix + "." if prefix else ""][GOLDEN_NAMES[name]].numpy()
        assert ours.shape == golden[key].shape
        assert np.abs(ours - golden[key]).max() <= TOLERANCE, key


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_config_from_shapes(backbone, optional):
    config = ModelConfig(
        num_objects=3,
        num_verbs=4,
        num_queries=5,
        backbone=backbone,
        hidden_dim=16,
        feedforward_dim=24,
        num_encoder_layers=0 if optional else 2,
        num_human_object_layers=1,
        num_interaction_layers=3,
        pre_norm=optional,
        matching_head=optional,
    )
    with torch.device("meta"):
        assert config_from_shapes(to_published(HOIDetector(config).state_dict())) == config


@pytest.mark.parametrize("form", ["model", "module.", "model.", "bare", "safetensors"])
def test_every_file_form_gives_the_same_model(small, small_config, tmp_path, form):
    state, file = to_published(small.state_dict()), tmp_path / "a.pth"
    if form == "safetensors":
        save_file(state, file)
    elif form == "bare":
        torch.save(state, file)
    else:
        prefix = form if form.endswith(".") else ""
        wrapped = {prefix + name: value for name, value in state.items()}
        torch.save({"model": wrapped, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}, file)
    loaded = load_model(file)
    assert not loaded.training and loaded.config == small_config
    for name, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("arguments", "num_heads", "heads"),
    [
        (None, None, 8),
        (None, 4, 4),
        ({"nheads": 4}, None, 4),
        (argparse.Namespace(nheads=4), 4, 4),
        (argparse.Namespace(lr=1e-4), 2, 2),
    ],
)
def test_number_of_attention_heads(small, arguments, num_heads, heads):
    content = published(small, args=arguments)
    assert model_from_published(content, "a.pth", num_heads).config.num_heads == heads


@pytest.mark.parametrize(
    ("arguments", "num_heads", "message"),
    [
        ({"nheads": 4}, 8, "args.nheads: expected 8, as given, found 4"),
        ({"nheads": "four"}, None, r"args.nheads: expected.*found four"),
        ({}, 5, "hidden_dim: expected a multiple of 4 and of num_heads"),
    ],
)
def test_impossible_numbers_of_heads_are_refused(small, arguments, num_heads, message):
    with pytest.raises(InputError, match=rf"a\.pth: {message}"):
        model_from_published(published(small, args=arguments), "a.pth", num_heads)


def test_cdn_without_interactive_head(small):
    def without(state):
        del state["is_embed.weight"], state["is_embed.bias"]

    outputs = model_from_published(published(small, without), "cdn.pth")([torch.zeros(3, 32, 32)])
    assert not outputs["pred_interactive_logits"].any()


def drop(name):
    return lambda state: state.pop(name)


def replace_entry(name, tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (
            replace_entry("stage2_decoder.norm.weight", torch.ones(3)),
            ["only entries", "stage2_decoder"],
        ),
        (replace_entry("encoder.norm.weight", torch.ones(3)), ["only entries", "encoder.norm"]),
        (
            replace_entry("transformer.decoder.extra", torch.ones(3)),
            ["only entries", "decoder.extra"],
        ),
        (drop("query_embed.weight"), ["query_embed.weight"]),
        (drop("is_embed.bias"), ["missing is_embed.bias"]),
        (drop("transformer.decoder.layers.1.norm1.bias"), ["decoder.layers.1.norm1.bias"]),
        (replace_entry("input_proj.bias", torch.ones(3)), ["input_proj.bias", "[32]", "[3]"]),
        (
            replace_entry("query_embed.weight", torch.ones(3)),
            ["query_embed.weight", "2 dimensions", "[3]"],
        ),
        (replace_entry("query_embed.weight", torch.ones(3, 30)), ["hidden_dim", "30"]),
        (replace_entry("query_embed.weight", "x"), ["query_embed.weight", "a tensor"]),
        (drop("backbone.0.body.layer4.1.conv1.weight"), ["layer4.1.conv1.weight"]),
        (
            replace_entry("backbone.0.body.layer4.2.conv1.weight", torch.ones(1)),
            ["backbone", "[2, 2, 2, 3]"],
        ),
    ],
)
def test_wrong_entries_are_named(small, change, facts):
    with pytest.raises(InputError) as error:
        model_from_published(published(small, change), "a.pth")
    message = str(error.value)
    assert message.startswith("a.pth: ") and "\n" not in message
    assert all(word in message for word in facts)


@pytest.mark.parametrize("content", [{}, [1], {"model": {}}, {"model": {"a": torch.ones(1)}}])
def test_other_content_is_refused(content):
    with pytest.raises(InputError, match=r"a\.pth: content: expected"):
        model_from_published(content, "a.pth")


def test_dilated_backbone_is_refused(small):
    content = published(small, args=argparse.Namespace(dilation=True))
    with pytest.raises(InputError, match="dilation"):
        model_from_published(content, "a.pth")


def test_proposal_queries_have_no_published_form(build, toy_config):
    model = build(toy_config)
    with pytest.raises(InputError, match="no entry for"):
        to_published(model.state_dict())
