from dataclasses import replace

import pytest
import torch


def image(height, width, seed=0):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small(build, small_config):
    return build(small_config)


@pytest.fixture(params=["small", "matching", "toy", "toy backbone"])
def config(request, small_config, toy_config):
    """Detectors that differ in their queries and heads."""
    return {
        "small": small_config,
        "matching": replace(small_config, matching_head=True),
        "toy": toy_config,
        "toy backbone": replace(small_config, backbone="toy"),
    }[request.param]


def test_outputs_have_the_documented_shapes(build, config):
    outputs = build(config)([image(96, 128), image(128, 64)])
    sizes = {
        "pred_object_logits": config.num_objects + 1,
        "pred_verb_logits": config.num_verbs,
        "pred_human_boxes": 4,
        "pred_object_boxes": 4,
        "pred_interactive_logits": 2,
        **({"pred_matching_logits": 2} if config.matching_head else {}),
    }
    assert len(outputs["aux_outputs"]) == 1
    for layer in (outputs, *outputs["aux_outputs"]):
        assert {name for name in layer if name.startswith("pred_")} == set(sizes)
        for name, size in sizes.items():
            assert layer[name].shape == (2, config.num_queries, size)
        for name in ("pred_human_boxes", "pred_object_boxes"):
            assert ((layer[name] >= 0) & (layer[name] <= 1)).all()


@pytest.mark.parametrize(("pairs", "actions"), [(1, 3), (3, 1), (2, 3)])
def test_inputs_of_the_heads(build, small_config, pairs, actions):
    model = build(
        replace(
            small_config,
            num_human_object_layers=pairs,
            num_interaction_layers=actions,
            matching_head=True,
        )
    )
    found = {}
    for name in ("human_object_decoder", "interaction_decoder"):
        decoder = getattr(model, name)
        decoder.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    outputs = model([image(64, 64), image(32, 96)])
    depth = min(pairs, actions)
    pair, action = (found[name][-depth:] for name in found)
    expected = {
        "pred_object_logits": model.object_head(pair),
        "pred_matching_logits": model.matching_head(pair),
        "pred_human_boxes": model.human_box_head(pair).sigmoid(),
        "pred_object_boxes": model.object_box_head(pair).sigmoid(),
        "pred_verb_logits": model.verb_head(action),
        "pred_interactive_logits": model.interactive_head(action),
    }
    assert len(outputs["aux_outputs"]) == depth - 1
    for row, layer in enumerate([*outputs["aux_outputs"], outputs]):
        for name, value in expected.items():
            torch.testing.assert_close(layer[name], value[row])


def test_a_padded_batch_equals_the_list(small):
    images = [image(64, 96), image(96, 64, seed=1)]
    pixels = torch.zeros(2, 3, 96, 96)
    padding = torch.ones(2, 96, 96, dtype=torch.bool)
    for row, one in enumerate(images):
        pixels[row, :, : one.shape[1], : one.shape[2]] = one
        padding[row, : one.shape[1], : one.shape[2]] = False
    listed, padded = small(images), small((pixels, padding))
    for name, value in listed.items():
        if name.startswith("pred_"):
            assert torch.equal(value, padded[name])


def test_no_padding_equals_a_mask_without_padding(small):
    pixels = torch.stack([image(64, 64), image(64, 64, seed=1)])
    without, masked = small((pixels, None)), small((pixels, torch.zeros(2, 64, 64).bool()))
    for name in ("pred_verb_logits", "pred_human_boxes"):
        torch.testing.assert_close(without[name], masked[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", ["learned", "proposals"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "toy"])
def test_padding_invariant_outputs_equal_those_of_single_images(
    build, small_config, backbone, queries
):
    model = build(replace(small_config, backbone=backbone, queries=queries))
    images = [image(100, 131), image(41, 64, seed=1), image(77, 90, seed=2)]
    padded = model.pad(images, (120, 150))
    batched, with_padding = model(padded, padding_invariant=True), model(padded)
    for row, one in enumerate(images):
        for name, value in model([one]).items():
            if name.startswith("pred_"):
                torch.testing.assert_close(batched[name][row], value[0], rtol=1e-4, atol=1e-5)
    # What the published model makes of padding.
    verbs = "pred_verb_logits"
    assert (batched[verbs] - with_padding[verbs]).abs().max() > 1e-3


@pytest.mark.parametrize(("detach", "reaches"), [(True, False), (False, True)])
def test_detach_verb_queries(build, small_config, detach, reaches):
    model = build(replace(small_config, detach_verb_queries=detach))
    model([image(64, 64)])["pred_verb_logits"].sum().backward()
    gradient = model.human_object_decoder.layers[-1].linear1.weight.grad
    assert (gradient is not None and bool(gradient.any())) == reaches
    assert model.encoder.layers[0].linear1.weight.grad.any()


def test_stem_and_first_stage_and_batch_norms_are_frozen(small):
    trained = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    body = {name.removeprefix("backbone.body.") for name in trained if "backbone" in name}
    assert {name.split(".")[0] for name in body} == {"layer2", "layer3", "layer4"}
    assert not any("bn" in name for name in body)


def test_untrained_boxes_of_proposals_are_their_reference_boxes(build, toy_config):
    model = build(toy_config)
    pixels = torch.stack([image(128, 128)])
    start = model.query_source(model.backbone(pixels), None)
    outputs = model(list(pixels))
    for name, reference in (
        ("pred_human_boxes", start.human_reference),
        ("pred_object_boxes", start.object_reference),
    ):
        torch.testing.assert_close(outputs[name], reference, rtol=1e-3, atol=1e-4)


def test_every_trained_parameter_gets_a_gradient(build, config):
    model = build(config).train()
    outputs = model([image(64, 96), image(96, 80, seed=1)])
    total = sum(
        (value**2).sum()
        for layer in (outputs, *outputs["aux_outputs"])
        for name, value in layer.items()
        if name.startswith("pred_")
    )
    total.backward()
    without = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    }
    # The proposal head learns from its own losses.
    assert {name for name in without if not name.startswith("query_source.head.")} == set()
