import pytest
import torch
from torch.overrides import TorchFunctionMode

from student.data.dataset import Sample, collate
from student.data.targets import Targets
from student.engine.train_step import cat_outputs, detach_leaves, tree_leaves
from student.models.proposal_queries import ProposalOutputs


@pytest.fixture
def samples(make_trainer):
    """Seven training samples."""
    images = make_trainer("samples").batches.images
    return [images[0, index] for index in range(7)]


@pytest.fixture
def different_sizes(samples):
    """The samples, cropped to different heights and widths."""
    return [
        one._replace(image=one.image[:, : 128 - 9 * row, : 80 + 7 * row])
        for row, one in enumerate(samples)
    ]


def without_targets(sample):
    """The sample without pairs and detected boxes."""
    targets = sample.targets
    nothing = (torch.zeros(len(rows), dtype=bool) for rows in (targets, targets.detected_labels))
    return sample._replace(targets=targets.select(*nothing))


def step(trainer, samples, frame=(0, 0)):
    """One step on the samples as a batch."""
    return trainer.train_step(collate(samples, trainer.batches.multiple, frame))


def gradients(trainer):
    named = trainer.train_step.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("queries", ["proposals", "learned"])
@pytest.mark.parametrize("parts", [2, 3, 7, 20])
def test_accumulation_equals_the_whole_batch(make_trainer, different_sizes, parts, queries):
    options = {"queries": queries, "clip_norm": 0.0}
    whole = make_trainer("whole", **options)
    expected = step(whole, different_sizes)
    divided = make_trainer("divided", accumulation=parts, **options)
    for name, value in step(divided, different_sizes).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    theirs = gradients(divided)
    for name, gradient in gradients(whole).items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1e-2))


@pytest.mark.parametrize("queries", ["proposals", "learned"])
@pytest.mark.parametrize("verb_loss", ["focal_bce", "bce_bce"])
def test_a_batch_without_pairs(make_trainer, samples, queries, verb_loss):
    trainer = make_trainer("run", queries=queries, verb_loss=verb_loss)
    losses = step(trainer, [without_targets(sample) for sample in samples])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["human_box"] == losses["verb_soft"] == 0 < losses["object"]
    assert all(torch.isfinite(value).all() for value in gradients(trainer).values())


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("layers", [(1, 2), (2, 1)])
@pytest.mark.parametrize("backbone", ["toy", "resnet18"])
@pytest.mark.parametrize("queries", ["proposals", "learned"])
def test_every_trainable_parameter_has_a_gradient(
    make_trainer, samples, queries, backbone, layers, empty
):
    """DDP waits for the gradients of all parameters, also in a process without pairs."""
    depths = dict(zip(("num_human_object_layers", "num_interaction_layers"), layers, strict=True))
    trainer = make_trainer("run", queries=queries, backbone=backbone, **depths)
    step(trainer, [without_targets(sample) for sample in samples[:2]] if empty else samples[:2])
    named = trainer.train_step.model.named_parameters()
    trained = {name for name, parameter in named if parameter.requires_grad}
    assert trained == gradients(trainer).keys()


def test_images_are_padded_to_the_size_of_other_processes(make_trainer, different_sizes):
    trainer = make_trainer("run")
    model, frames = trainer.train_step.model, []
    model.register_forward_pre_hook(lambda _, given: frames.append(given[0][0].shape[-2:]))
    small = different_sizes[-1:]
    for frame in ((0, 0), (128, 150), (32, 160)):
        step(trainer, small, frame)
    # The toy backbone needs multiples of 8.
    assert frames == [(80, 128), (128, 152), (80, 160)]


def test_both_passes_over_a_part_use_the_same_dropout(make_trainer, samples):
    """Otherwise the gradient of a part would not be that of its losses."""
    trainer = make_trainer("run", accumulation=2, dropout=0.5)
    seen = []
    predict = trainer.train_step._predict

    def remember(batch, rows):
        outputs = predict(batch, rows)
        seen.append((batch.image_ids[rows][0], outputs["pred_verb_logits"].detach().clone()))
        return outputs

    trainer.train_step._predict = remember
    trainer.train_step.model.train()
    step(trainer, samples)
    (first, once), (second, _), (again, twice) = seen
    assert first == again != second and torch.equal(once, twice)


def test_gradient_clipping(make_trainer, samples):
    norms = []
    for clip in (0.0, 1e-3):
        trainer = make_trainer("run", clip_norm=clip)
        reported = step(trainer, samples)["gradient"]
        kept = torch.cat([value.flatten() for value in gradients(trainer).values()]).norm()
        norms.append((reported, kept))
    (reported, kept), (same, clipped) = norms
    torch.testing.assert_close(reported, kept, rtol=1e-4, atol=0)
    assert reported == same and clipped <= 1.001e-3 < kept


def empty_sample(vocabulary):
    verbs = vocabulary.num_verbs
    none = torch.zeros(0, dtype=torch.bool)
    targets = Targets(
        human_boxes=torch.zeros(0, 4),
        object_boxes=torch.zeros(0, 4),
        object_labels=torch.zeros(0, dtype=torch.int64),
        verb_labels=torch.zeros(0, verbs, dtype=torch.bool),
        teacher_probs=torch.zeros(0, verbs),
        seen=none,
        interactive=none,
    )
    return Sample("empty.jpg", torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8), targets)


@pytest.mark.parametrize("with_others", [False, True])
@pytest.mark.parametrize("queries", ["proposals", "learned"])
def test_images_without_pairs(make_trainer, vocabulary, queries, with_others):
    trainer = make_trainer("run", queries=queries)
    samples = [empty_sample(vocabulary)] * 2
    if with_others:
        samples.append(trainer.batches.images[0, 0])
    for _ in range(2):
        losses = step(trainer, samples)
        gradient = losses.pop("gradient")
        assert torch.isfinite(gradient) and all(abs(value) < 1e4 for value in losses.values())
    assert all(torch.isfinite(p).all() for p in trainer.train_step.model.parameters())


def test_more_pairs_than_queries(make_trainer, samples):
    trainer = make_trainer("run", num_queries=1, queries="learned")
    assert max(int(sample.targets.seen.sum()) for sample in samples) > 1
    losses = step(trainer, samples)
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("queries", ["learned", "proposals"])
def test_half_precision_gives_nearly_the_same_losses(make_trainer, samples, queries):
    found = {}
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer("run", precision=precision, queries=queries)
        found[precision] = step(trainer, samples)
        assert all(p.dtype == torch.float32 for p in trainer.train_step.model.parameters())
    full, half = found.values()
    assert full["total"] != half["total"]
    assert half["total"].item() == pytest.approx(full["total"].item(), rel=0.1)
    assert torch.isfinite(half["gradient"])


class HostSyncCounter(TorchFunctionMode):
    """Counts calls that make the host wait for a GPU, on any device."""

    names = ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__")
    calls = frozenset(getattr(torch.Tensor, name) for name in names)
    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in self.calls
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("queries", ["learned", "proposals"])
def test_a_step_has_one_host_synchronisation(make_trainer, samples, queries):
    trainer = make_trainer("run", queries=queries, dropout=0.1)
    step(trainer, samples)
    with HostSyncCounter() as counted:
        step(trainer, samples)
    assert counted.count == 1


def test_a_compiled_model_gives_the_same_losses(make_trainer, samples, monkeypatch):
    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_model(model, backend="eager"))
    plain, compiled = make_trainer("plain"), make_trainer("compiled", compiled=True)
    expected = step(plain, samples)
    for name, value in step(compiled, samples).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert plain.train_step.state()["model"].keys() == compiled.train_step.state()["model"].keys()


def output(first, count):
    values = torch.arange(first, first + count, dtype=torch.float32)
    inner = {"pred": values.view(-1, 1) + 0.5}
    shares = torch.ones(count, 2)
    dense = ProposalOutputs(values.view(-1, 1, 1, 1), values.view(-1, 1, 1, 1, 1), shares)
    return {"pred": values.view(-1, 1), "aux_outputs": [inner], "proposals": dense}


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (1, 1, 1)])
def test_cat_outputs(sizes):
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    found = cat_outputs([output(*one) for one in zip(starts, sizes, strict=True)])
    whole = output(0, 3)
    assert isinstance(found["proposals"], ProposalOutputs) and len(tree_leaves(found)) == 5
    for mine, theirs in zip(tree_leaves(found), tree_leaves(whole), strict=True):
        assert torch.equal(mine, theirs)


def test_detach_leaves_collects_gradients():
    weight = torch.ones(1, requires_grad=True)
    outputs = {name: value * weight for name, value in (("a", 2.0), ("b", 3.0))}
    leaves = detach_leaves(outputs)
    (leaves["a"] ** 2 + leaves["b"]).backward()
    assert weight.grad is None
    assert [leaf.grad.item() for leaf in tree_leaves(leaves)] == [4.0, 1.0]
