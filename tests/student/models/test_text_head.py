from dataclasses import replace

import numpy as np
import pytest
import torch

from student.models.text_head import TextEmbeddings, TextObjectHead, TextVerbHead

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
def texts():
    """Random text embeddings; two texts about object 0, three about object 2, one about none."""
    random = torch.Generator().manual_seed(2)
    return TextEmbeddings(
        torch.nn.functional.normalize(torch.randn(TEXTS, DIM, generator=random), dim=-1),
        torch.randint(TEXTS, (OBJECTS, VERBS), generator=random),
        torch.tensor([2, 0, 2, 0, OBJECTS, 2]),
    )


@pytest.fixture
def head(config, texts):
    """A verb head with scale 5 and margin 0.2."""
    made = TextVerbHead(config)
    made.set_texts(texts)
    made.init_scale(5.0, 0.2)
    return made


@pytest.fixture
def object_head(config, texts):
    """An object head with scale 5 and margin 0.2."""
    made = TextObjectHead(config)
    made.set_texts(texts)
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


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 3, 6)])
def test_object_logits_are_those_of_the_best_sentence(config, object_head, texts, shape):
    pairs = torch.randn(*shape, config.hidden_dim)
    logits, embeddings = object_head(pairs)
    assert logits.shape == (*shape, OBJECTS + 1) and embeddings.shape == (*shape, DIM)
    for place in np.ndindex(*shape):
        expected = object_head.projection(pairs[place])
        torch.testing.assert_close(embeddings[place], expected / expected.norm())
        cosines = torch.cosine_similarity(expected[None], texts.texts, dim=1)
        for label in range(OBJECTS):
            own = cosines[texts.labels == label]
            # Object 1 has no sentence.
            best = own.max() if label != 1 else torch.tensor(-1.0)
            torch.testing.assert_close(logits[place][label], 5 * (best - 0.2))
        no_pair = object_head.no_pair.weight[0] @ pairs[place] + object_head.no_pair.bias[0]
        torch.testing.assert_close(logits[place][-1], no_pair)


def test_gradients_reach_the_parameters_of_the_object_head(config, object_head):
    torch.nn.functional.cross_entropy(
        object_head(torch.randn(4, config.hidden_dim))[0], torch.tensor([0, 2, 2, 3])
    ).backward()
    assert all(p.grad.abs().sum() > 0 for p in object_head.parameters())


def test_more_objects_after_training(config, object_head, texts):
    pairs = torch.randn(4, config.hidden_dim)
    before, embeddings = object_head(pairs)
    more = torch.cat([texts.texts, embeddings[:1].detach()])
    labels = torch.cat([torch.where(texts.labels == OBJECTS, 5, texts.labels), torch.tensor([4])])
    object_head.set_texts(TextEmbeddings(more, torch.zeros(5, VERBS, dtype=torch.int64), labels))
    after = object_head(pairs)[0]
    torch.testing.assert_close(after[:, [0, 1, 2, 5]], before)
    torch.testing.assert_close(after[0, 4], torch.tensor(5 * 0.8))


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


@pytest.mark.parametrize("verb_head", ["linear", "text"])
@pytest.mark.parametrize("object_head", ["linear", "text"])
def test_a_detector_gives_embeddings_of_all_layers(config, build, verb_head, object_head):
    heads = {"verb": verb_head, "object": object_head}
    model = build(replace(config, verb_head=verb_head, object_head=object_head))
    outputs = model([torch.rand(3, 64, 64)])
    for layer in (outputs, *outputs["aux_outputs"]):
        assert layer["pred_verb_logits"].shape == (1, 6, VERBS)
        assert layer["pred_object_logits"].shape == (1, 6, OBJECTS + 1)
        for name, head in heads.items():
            embeddings = layer.get(f"pred_{name}_embeddings")
            assert embeddings.shape == (1, 6, DIM) if head == "text" else embeddings is None
