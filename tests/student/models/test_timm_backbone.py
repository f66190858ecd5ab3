import sys
from dataclasses import replace

import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.utils.errors import InputError
from student.data.transforms import normalise
from student.models.backbone import measure_norm_statistics, pixel_statistics
from student.models.timm_backbone import TimmBackbone

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGENET_MEAN, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)
HIERARCHY = ["stride8", "stride16", "stride32"]
# Strides of the maps and mean of the pixels, by the models of the fixture `small_timm`.
FAMILIES = {
    "timm:test_resnet": (HIERARCHY, HALF),
    "timm:test_convnext": (HIERARCHY, HALF),
    "timm:swin_tiny_patch4_window7_224": (HIERARCHY, IMAGENET_MEAN),
    "timm:vit_small_patch14_dinov2.lvd142m": (["stride14"] * 3, IMAGENET_MEAN),
    "timm:vit_small_patch16_dinov3.lvd1689m": (["stride16"] * 3, IMAGENET_MEAN),
    "timm:vit_base_patch16_siglip_224.webli": (["stride16"] * 3, HALF),
    "timm:vit_base_patch16_clip_224.openai": (["stride16"] * 3, CLIP_MEAN),
}
PREDICTIONS = ("pred_verb_logits", "pred_object_logits", "pred_human_boxes", "pred_object_boxes")


def image(height, width, seed=0):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def detector(small_timm, build, small_config):
    """`detector(name, **fields)` builds a small detector in eval mode."""
    return lambda name, **fields: build(replace(small_config, backbone=name, **fields))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_feature_maps(small_timm, name):
    keys, mean = FAMILIES[name]
    backbone = TimmBackbone(name).train()
    assert [key.rpartition(".")[2] for key in backbone.num_channels] == keys
    multiple = backbone.size_divisible
    assert multiple == int(keys[-1].removeprefix("stride"))
    maps = backbone(torch.zeros(2, 3, 4 * multiple, 3 * multiple))
    assert list(maps) == list(backbone.num_channels)
    for (key, features), plain in zip(maps.items(), keys, strict=True):
        cells = multiple // int(plain.removeprefix("stride"))
        assert features.shape == (2, backbone.num_channels[key], 4 * cells, 3 * cells)
    statistics = pixel_statistics(backbone)
    torch.testing.assert_close(statistics.mean, torch.tensor(mean))
    grey = (255 * torch.tensor(mean).view(3, 1, 1)).round().to(torch.uint8)
    assert normalise(grey.expand(3, 2, 2), statistics).abs().max() < 0.01
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    assert bool(norms) == (name == "timm:test_resnet")
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)


@pytest.mark.parametrize("queries", ["learned", "proposals"])
@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_a_batch(detector, name, queries):
    """They have the outputs that they have alone; with a plain ViT, in training too."""
    model = detector(name, queries=queries, feature_levels=3 if queries == "learned" else 1)
    images = [image(100, 131), image(41, 64, seed=1), image(77, 90, seed=2)]
    padded = model.pad(images, (130, 160))
    with torch.no_grad():
        modes = [model(padded, padding_invariant=True)]
        # In training, regions of proposals at an image's edge are read beyond it.
        if model.backbone.separate_images and queries == "learned":
            modes.append(model(padded))
        for row, one in enumerate(images):
            alone = model([one])
            for batched in modes:
                for key in PREDICTIONS:
                    found = batched[key][row]
                    torch.testing.assert_close(found, alone[key][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trained_parameter_gets_a_gradient(detector, name):
    """As processes that train together require."""
    model = detector(name).train()
    outputs = model([image(64, 96), image(96, 80, seed=1)])
    layers = (outputs, *outputs["aux_outputs"])
    sum(layer[key].square().sum() for layer in layers for key in PREDICTIONS).backward()
    trained = {key: one for key, one in model.backbone.named_parameters() if one.requires_grad}
    assert trained and all(one.grad is not None for one in trained.values())


def test_statistics_of_random_batch_norms_are_measured(small_timm):
    torch.manual_seed(0)
    backbone, pixels = TimmBackbone("timm:test_resnet"), torch.randn(4, 3, 96, 96) + 1
    norms = [one for one in backbone.modules() if isinstance(one, _BatchNorm)]
    assert measure_norm_statistics(backbone, pixels) == len(norms) > 5
    features = []
    norms[0].register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        backbone(pixels)
    torch.testing.assert_close(norms[0].running_mean, features[0].mean((0, 2, 3)))
    assert not any(norm.training for norm in norms)
    assert measure_norm_statistics(TimmBackbone("timm:test_convnext"), pixels) == 0


def test_levels_are_the_last_ones(detector, small_config, build):
    one, three = (detector("timm:test_vit", feature_levels=number) for number in (1, 3))
    assert list(one.backbone.num_channels) == [
        "block2.stride16",
        "block3.stride16",
        "block5.stride16",
    ]
    added = three.state_dict().keys() - one.state_dict().keys()
    assert added == {
        f"finer_projections.{row}.{kind}" for row in (0, 1) for kind in ("weight", "bias")
    }
    # A seed gives both the same weights; the finer levels only add to the tokens.
    state = one.state_dict()
    assert all(torch.equal(value, three.state_dict()[key]) for key, value in state.items())
    maps = three.backbone(image(64, 64)[None])
    with torch.no_grad():
        expected = three.input_projection(maps["block5.stride16"])
        for projection, key in zip(three.finer_projections, maps, strict=False):
            expected = expected + projection(maps[key])
        torch.testing.assert_close(three._project(maps, None), expected)
    resnet = build(replace(small_config, feature_levels=2))
    maps = resnet.backbone(image(64, 96)[None])
    with torch.no_grad():
        finer = resnet.finer_projections[0](maps["stride16"])
        expected = resnet.input_projection(maps["stride32"])
        expected = expected + finer.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
        torch.testing.assert_close(resnet._project(maps, None), expected)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("timm:", [f"a model of timm {timm.__version__}, found timm:"]),
        ("timm:vit_small_patch14_dino", ["similar: ", "vit_small_patch14_dinov2"]),
        ("timm:hf-hub:owner/model", ["expected a model of timm", "found timm:hf-hub:owner/model"]),
        ("timm:test_vit.no_such_tag", ["expected a model of timm", "no_such_tag"]),
        ("timm:test_maxvit", ["for images of any size, found timm:test_maxvit (", "divisible"]),
    ],
)
def test_models_that_cannot_be_used(name, facts):
    with pytest.raises(InputError) as error:
        TimmBackbone(name)
    assert all(fact in str(error.value) for fact in facts), error.value
    assert "\n" not in str(error.value)


def test_too_many_levels_are_refused(detector, small_timm):
    small_timm["test_vit"] = {"depth": 2}
    with pytest.raises(InputError, match=r"^feature_levels: expected at most 2, .* found 3$"):
        detector("timm:test_vit", feature_levels=3)


def test_a_missing_package_is_named(small_config, build, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm:test_vit needs the package timm; pip install timm"):
        build(replace(small_config, backbone="timm:test_vit"))
    build(small_config)
