from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from student.data.transforms import normalise
from student.inference.export import DetectorGraph, ExportableAttention
from student.inference.model import ModelSpec, load_inference_model
from student.inference.postprocess import to_detections


@pytest.fixture(params=["toy", "published"])
def loaded(request):
    return load_inference_model(ModelSpec(request.getfixturevalue(f"{request.param}_checkpoint")))


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_plain_attention_is_multihead_attention(batch, padded):
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    nn.init.normal_(attention.in_proj_bias)
    queries, keys, values = (torch.randn(batch, length, 16) for length in (5, 7, 7))
    mask = torch.arange(7).expand(batch, 7) >= 4 if padded else None
    with torch.no_grad():
        ours, none = ExportableAttention(attention)(queries, keys, values, mask)
        theirs, _ = attention(queries, keys, values, key_padding_mask=mask, need_weights=False)
    assert none is None
    torch.testing.assert_close(ours, theirs)


def test_the_detector_given_stays_as_it_is(loaded):
    before = {name: type(module) for name, module in loaded.model.named_modules()}
    DetectorGraph(loaded)
    assert {name: type(module) for name, module in loaded.model.named_modules()} == before
    assert any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_says_what_the_detector_says(loaded):
    images = [pixels(3, 64, 96), pixels(3, 64, 96)]
    with torch.no_grad():
        sizes = torch.tensor([[64, 96]] * 2)
        graph = DetectorGraph(loaded)(torch.stack(images).float() / 255, sizes)
        outputs = loaded.model([normalise(image) for image in images])
    for name in ("pred_object_logits", "pred_verb_logits", "pred_human_boxes", "pred_object_boxes"):
        torch.testing.assert_close(graph[name], outputs[name], atol=2e-5, rtol=1e-5)
    expected = to_detections(outputs, ["a", "b"], [(100, 50)] * 2, loaded.vocabulary)
    scale = np.array([100, 50, 100, 50])
    for row, found in enumerate(expected):
        # Rows below 0 fill up.
        count = int((graph["scores"][row] >= 0).sum())
        assert count == len(found.scores)
        np.testing.assert_allclose(graph["scores"][row, :count], found.scores, atol=1e-5)
        best = 10
        humans, objects = (
            graph[name][row, :best].numpy() * scale for name in ("human_boxes", "object_boxes")
        )
        hois = found.hois[:best]
        np.testing.assert_array_equal(graph["verbs"][row, :best], hois[:, 2])
        np.testing.assert_array_equal(graph["labels"][row, :best], found.labels[hois[:, 1]])
        np.testing.assert_allclose(humans, found.boxes[hois[:, 0]], atol=1e-2)
        np.testing.assert_allclose(objects, found.boxes[hois[:, 1]], atol=1e-2)


@pytest.mark.parametrize("frame", [(80, 96), (128, 200)])
def test_padding_does_not_matter(loaded, frame):
    """Neither how much there is nor what stands in it."""
    images = [pixels(3, 64, 93), pixels(3, 79, 72), pixels(3, 33, 50)]
    batch = torch.rand(3, 3, *frame)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image.float() / 255
    with torch.no_grad():
        found = DetectorGraph(loaded)(batch, torch.tensor([one.shape[1:] for one in images]))
        for row, image in enumerate(images):
            alone = loaded.model([normalise(image)])
            for name in ("pred_object_logits", "pred_verb_logits", "pred_human_boxes"):
                torch.testing.assert_close(found[name][row], alone[name][0], atol=5e-5, rtol=1e-5)
            (expected,) = to_detections(alone, ["a"], [(9, 9)], loaded.vocabulary)
            scores = found["scores"][row, : len(expected.scores)]
            np.testing.assert_allclose(scores, expected.scores, atol=1e-5)


def test_verbs_without_object(loaded):
    """In a vocabulary with roles a verb may be alone, at the probability of "no pair"."""
    vocabulary = replace(loaded.vocabulary, roles=({"action": "ride"},))
    with torch.no_grad():
        loaded.model.object_head.bias[-1] += 20
    graph = DetectorGraph(replace(loaded, vocabulary=vocabulary))
    images, sizes = torch.rand(2, 3, 64, 64), torch.tensor([[64, 64]] * 2)
    with torch.no_grad():
        found = graph(images, sizes)
    expected = to_detections(found, ["a", "b"], [(10, 10)] * 2, vocabulary)
    for row, one in enumerate(expected):
        count = len(one.scores)
        labels = np.append(one.labels, -1)[one.hois[:, 1]]
        np.testing.assert_array_equal(found["labels"][row, :count], labels)
        np.testing.assert_array_equal(found["verbs"][row, :count], one.hois[:, 2])
        assert (labels < 0).any()
