import pytest
import torch

from student.data.dataset import collate


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
    nothing = (torch.zeros(len(rows), dtype=bool) for rows in (targets, targets.proposal_labels))
    return sample._replace(targets=targets.select(*nothing))


def step(trainer, samples, frame=(0, 0)):
    """One step on the samples as a batch."""
    return trainer.train_step(collate(samples, trainer.batches.multiple, frame))


def gradients(trainer):
    named = trainer.train_step.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize(
    ("parts", "queries"), [(2, "proposals"), (3, "learned"), (20, "proposals")]
)
def test_accumulation_equals_the_whole_batch(make_trainer, different_sizes, parts, queries):
    options = {"queries": queries, "clip_norm": 0.0}
    whole = make_trainer("whole", **options)
    expected = step(whole, different_sizes)
    divided = make_trainer("divided", accumulation=parts, **options)
    for name, value in step(divided, different_sizes).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    counts = whole.train_step.candidate_counts
    assert divided.train_step.candidate_counts == counts and counts.total > 0
    assert counts.total == sum(int((~one.targets.seen).sum()) for one in different_sizes)
    theirs = gradients(divided)
    for name, gradient in gradients(whole).items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1e-2))


@pytest.mark.parametrize(
    ("queries", "backbone", "layers", "empty"),
    [
        ("proposals", "toy", (1, 2), False),
        ("proposals", "toy", (2, 1), True),
        ("learned", "toy", (2, 1), False),
        ("learned", "resnet18", (1, 2), True),
    ],
)
def test_every_trainable_parameter_has_a_gradient(
    make_trainer, samples, queries, backbone, layers, empty
):
    """DDP waits for the gradients of all parameters, also in a process without pairs."""
    depths = dict(zip(("num_human_object_layers", "num_interaction_layers"), layers, strict=True))
    trainer = make_trainer("run", queries=queries, backbone=backbone, **depths)
    losses = step(trainer, [without_targets(one) if empty else one for one in samples[:2]])
    assert (losses["human_box"] == losses["verb_soft"] == 0) == empty
    assert 0 < losses["object"] < 1e4
    named = trainer.train_step.model.named_parameters()
    trained = {name for name, parameter in named if parameter.requires_grad}
    assert trained == gradients(trainer).keys()
    assert all(torch.isfinite(value).all() for value in gradients(trainer).values())


@pytest.mark.parametrize("backbone", ["toy", "resnet18"])
def test_a_learning_rate_of_0_freezes_the_backbone(make_trainer, samples, backbone):
    trainer = make_trainer("run", backbone=backbone, backbone_lr_factor=0.0)
    step(trainer, samples)
    found = gradients(trainer)
    assert found and not [name for name in found if name.startswith("backbone.")]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("queries", ["learned", "proposals"])
def test_only_heads_are_trained(make_trainer, samples, queries, accumulation):
    options = {"heads_only": True, "accumulation": accumulation, "matching_head": True}
    trainer = make_trainer("run", queries=queries, **options)
    model = trainer.train_step.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(trainer, samples)
    heads = {"human_box_head", "object_box_head", "object_head", "verb_head", "interactive_head"}
    heads |= {"matching_head"}
    if queries == "proposals":
        heads |= {"query_source.head", "query_source.label"}
    trained = {name for name in before if name.startswith(tuple(f"{head}." for head in heads))}
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == trained == gradients(trainer).keys()
    groups = trainer.train_step.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(trained)


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


def test_a_compiled_model_gives_the_same_losses(make_trainer, samples, monkeypatch):
    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_model(model, backend="eager"))
    plain, compiled = make_trainer("plain"), make_trainer("compiled", compiled=True)
    expected = step(plain, samples)
    for name, value in step(compiled, samples).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert plain.train_step.state()["model"].keys() == compiled.train_step.state()["model"].keys()


def test_the_interactive_threshold_rises(make_trainer, samples):
    trainer = make_trainer("run", schedule="step", interactive_threshold=0.4, interactive_warmup=2)
    found = []
    for _ in range(2 * trainer.steps_per_epoch + 2):
        step(trainer, samples)
        found.append(trainer.train_step.matcher.interactive_threshold)
    end = 2 * trainer.steps_per_epoch
    assert found == pytest.approx([0.4 * min(1, number / end) for number in range(len(found))])
