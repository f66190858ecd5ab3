from dataclasses import replace

import numpy as np
import pytest
import torch

from student.models.text_head import TextEmbeddings, TextVerbHead

OBJECTS, VERBS, TEXTS, DIM = 3, 4, 6, 5


@pytest.fixture
def config(small_config):
    return replace(
        small_config,
        num_objects=OBJECTS,
        num_verbs=VERBS,
        verb_head="text",
        text_dim=DIM,
        num_texts=TEXTS,
        text_model="clip",
    )


@pytest.fixture
def head(config):
    """A head with random text embeddings, scale 5 and margin 0.2."""
    random = torch.Generator().manual_seed(2)
    made = TextVerbHead(config)
    texts = torch.nn.functional.normalize(torch.randn(TEXTS, DIM, generator=random), dim=-1)
    rows = torch.randint(TEXTS, (OBJECTS, VERBS), generator=random)
    made.set_texts(TextEmbeddings(texts, rows))
    made.init_scale(5.0, 0.2)
    return made


def inputs(config, *shape):
    return torch.randn(*shape, config.hidden_dim), torch.randn(*shape, OBJECTS + 1)


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 3, 6)])
def test_logits_are_scaled_cosines_with_the_texts_of_the_most_probable_object(config, head, shape):
    actions, objects = inputs(config, *shape)
    # "No pair" being likelier still changes nothing.
    objects[..., -1] = 9
    logits, embeddings = head(actions, objects)
    assert logits.shape == (*shape, VERBS) and embeddings.shape == (*shape, DIM)
    for place in np.ndindex(*shape):
        expected = head.projection(actions[place])
        torch.testing.assert_close(embeddings[place], expected / expected.norm())
        label = objects[place][:-1].argmax()
        for verb in range(VERBS):
            cosine = torch.cosine_similarity(expected, head.texts[head.rows[label, verb]], dim=0)
            torch.testing.assert_close(logits[place][verb], 5 * (cosine - 0.2))


def test_gradients_reach_the_parameters_but_not_the_object_logits(config, head):
    actions, objects = (value.requires_grad_() for value in inputs(config, 2, 3))
    head(actions, objects)[0].sum().backward()
    assert objects.grad is None and actions.grad.abs().sum() > 0
    assert {name for name, p in head.named_parameters() if p.grad.abs().sum() > 0} == {
        "projection.weight",
        "projection.bias",
        "log_scale",
        "margin",
    }
    assert not head.texts.requires_grad


def test_half_precision_does_not_round_cosines(config, head):
    head.init_scale(100.0, 0.2)
    actions, objects = inputs(config, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, embeddings = head(actions, objects)
        projected = head.projection(actions).float()
    assert logits.dtype == embeddings.dtype == torch.float32
    expected = torch.nn.functional.normalize(projected, dim=-1)
    cosines = (expected @ head.texts.T).gather(-1, head.rows[objects[..., :-1].argmax(-1)])
    torch.testing.assert_close(logits, 100 * (cosines - 0.2), rtol=1e-5, atol=1e-4)


def test_a_detector_gives_embeddings_of_all_layers(config, build):
    model = build(config)
    outputs = model([torch.rand(3, 64, 64)])
    for layer in (outputs, *outputs["aux_outputs"]):
        assert layer["pred_verb_logits"].shape == (1, 6, VERBS)
        assert layer["pred_verb_embeddings"].shape == (1, 6, DIM)
    assert "pred_verb_embeddings" not in build(replace(config, verb_head="linear"))(
        [torch.rand(3, 64, 64)]
    )
