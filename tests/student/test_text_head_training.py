"""Training of a student with a text verb head."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training import assert_equal_weights, interrupted, make_targets

from pipeline.splits import load_split
from student.config import LossConfig, MatcherConfig, TargetConfig
from student.data.dataset import collate
from student.data.targets import Targets, build_targets
from student.data.text_embeddings import init_text_heads
from student.engine.run import run_student
from student.engine.run_inputs import build_inputs
from student.engine.train_step import TrainStep
from student.losses.criterion import Criterion
from student.losses.matcher import TwoStageMatcher
from student.utils.distributed import SINGLE_PROCESS, Execution
from student.weights.checkpoint_file import Checkpoint, load_checkpoint, save_checkpoint
from student.weights.pretrained import load_pretrained
from teacher_cache.reader.cache import open_cache


@pytest.fixture
def make_inputs(configure_run, text_cache, tmp_path):
    """Builds the inputs of a run with a text verb head from fields of the recipe."""

    def make(**options):
        options = {"verb_head": "text", "batch_size": 4, **options}
        return build_inputs(configure_run(tmp_path, cache=text_cache, **options), SINGLE_PROCESS)

    return make


def build_head(build, inputs, seed=0):
    """An untrained student for the inputs."""
    model = build(inputs.recipe.model, seed)
    if model.text_heads:
        init_text_heads(model.text_heads, inputs.cache, inputs.images.vocabulary)
    return model


@pytest.fixture
def make_train_step(make_inputs, build):
    def make(**options):
        run_inputs = make_inputs(**options)
        model = build_head(build, run_inputs).train()
        execution = Execution(torch.device("cpu"))
        train_step = TrainStep(run_inputs.recipe, model, run_inputs.split, 50, execution)
        return train_step, collate([run_inputs.images[0, index] for index in range(6)], 8)

    return make


def test_embedding_loss_falls_in_training(make_train_step):
    train_step, batch = make_train_step(epochs=1, learning_rate=2e-3)
    first = train_step(batch)
    for _ in range(12):
        last = train_step(batch)
    assert last["embedding"] < 0.7 * first["embedding"]
    assert last["verb_hard"] < first["verb_hard"]


def test_an_object_head_learns_names_and_embeddings(make_train_step):
    train_step, batch = make_train_step(
        verb_head="linear", object_head="text", epochs=1, learning_rate=2e-3
    )
    first = train_step(batch)
    for _ in range(12):
        last = train_step(batch)
    assert "embedding" not in first
    assert last["object_embedding"] < 0.8 * first["object_embedding"]
    assert last["object"] < first["object"]


@pytest.mark.parametrize("options", [{"distillation": False}, {"verb_head": "linear"}])
def test_no_embedding_loss_without_distillation_or_text_head(make_train_step, options):
    train_step, batch = make_train_step(**options)
    assert batch.targets.region_embeddings.shape[-1] == 0
    assert "embedding" not in train_step(batch)


@pytest.mark.parametrize("split", ["ua", "full"])
def test_region_embeddings_are_those_of_seen_pairs_and_candidates(
    annotations, text_cache, vocabulary, split
):
    """Every row is the embedding of its pair; none is that of an unseen annotated pair."""
    cache, known = open_cache(text_cache), 0
    for annotation in annotations.annotations:
        outputs = cache[annotation.image_id]
        # The first value of every embedding identifies its pair.
        embeddings = np.zeros((len(outputs.pairs), 16), dtype=np.float16)
        embeddings[:, 0] = 1 + np.arange(len(embeddings))
        own = (outputs.pairs, outputs.probabilities, load_split(vocabulary, split), vocabulary)
        targets = build_targets(annotation, *own, TargetConfig(), region_embeddings=embeddings)
        assert len(targets.region_embeddings) == len(targets.seen)
        numbers = targets.region_embeddings[:, 0].numpy().astype(int) - 1
        assert (numbers >= 0).all()
        sources = outputs.pairs.sources[numbers]
        assert (sources == np.where(targets.seen, 0, 1)).all()
        for name in ("human_boxes", "object_boxes", "object_labels"):
            cached = getattr(outputs.pairs, name)[numbers]
            np.testing.assert_allclose(getattr(targets, name), cached, atol=0.02)
        known += len(numbers)
    assert known > 20


def one_image(embeddings):
    """An image with a seen pair and a candidate, and one query on each of them."""
    targets = make_targets(
        [True, False],
        num_verbs=2,
        human_boxes=torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2]]),
        object_boxes=torch.tensor([[0.4, 0.4, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]),
        region_embeddings=torch.tensor(embeddings, dtype=torch.float16),
    )
    elsewhere = torch.full((1, 4), 0.1)
    outputs = {
        "pred_object_logits": torch.zeros(1, 3, 3),
        "pred_verb_logits": torch.zeros(1, 3, 2),
        "pred_human_boxes": torch.cat([targets.human_boxes, elsewhere])[None],
        "pred_object_boxes": torch.cat([targets.object_boxes, elsewhere])[None],
        "pred_interactive_logits": torch.zeros(1, 3, 2),
        "pred_verb_embeddings": torch.tensor([[[1.0, 0], [0.6, 0.8], [0, 1]]]).requires_grad_(),
        "aux_outputs": [],
    }
    return outputs, targets


@pytest.mark.parametrize(
    ("embeddings", "expected", "moved"),
    [
        ([[0, 1], [1, 0]], (1 + 0.4) / 2, [True, True, False]),
        ([[0, 0], [1, 0]], 0.4, [False, True, False]),
        ([[0, 0], [0, 0]], 0.0, [False, False, False]),
    ],
)
def test_embedding_loss_moves_matched_queries_towards_the_teacher(embeddings, expected, moved):
    outputs, targets = one_image(embeddings)
    no_verbs = torch.zeros(2, dtype=torch.bool)
    matcher = TwoStageMatcher(MatcherConfig(interactive_threshold=0.0), no_verbs)
    criterion = Criterion(matcher, LossConfig(embedding_weight=2.0))
    losses = criterion(outputs, Targets.collate([targets]))
    assert losses.by_name["embedding"].tolist() == pytest.approx([expected], abs=1e-3)
    assert losses.weighted["embedding"].item() == pytest.approx(2 * expected, abs=2e-3)
    losses.weighted["embedding"].backward()
    gradient = outputs["pred_verb_embeddings"].grad[0]
    assert (gradient.abs().sum(1) > 0).tolist() == moved


@pytest.mark.parametrize("name", ["verb_head", "object_head"])
@pytest.mark.parametrize("head", ["linear", "text of this CLIP", "text of another CLIP"])
def test_pretrained_weights_for_a_text_head(build, make_inputs, tmp_path, head, name):
    """Only the head of the same CLIP is taken."""
    inputs = make_inputs(**{"verb_head": "linear", name: "text"})
    recipe = make_inputs(**{"verb_head": "linear", name: head.split()[0]}).recipe
    if head == "text of another CLIP":
        recipe = recipe.override(text_model="another")
    pretrained = build(recipe.model, seed=5)
    for one in pretrained.text_heads:
        one.init_scale(7.0, 0.3)
    vocabulary, file = inputs.images.vocabulary, tmp_path / "trained.pt"
    save_checkpoint(file, Checkpoint(recipe, vocabulary, inputs.split, pretrained.state_dict(), {}))
    model = build_head(build, inputs, seed=4)
    ours = getattr(model, name)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    report = load_pretrained(model, file, vocabulary)
    assert torch.equal(ours.texts, before["texts"])
    unused = {key for key in report.unused if name in key}
    taken = not torch.equal(ours.projection.weight, before["projection.weight"])
    assert taken == (head == "text of this CLIP")
    if head == "linear":
        assert unused == {f"{name}.weight", f"{name}.bias"}
        trained = {f"{name}.{key}" for key, _ in ours.named_parameters()}
        assert {key for key in report.missing if key.startswith(name)} == trained
        assert any(name in line for line in report.lines())
        return
    assert f"{name}.texts" in unused
    assert (f"{name}.margin" in unused) == (not taken)
    if not taken:
        assert report.unused[f"{name}.margin"] == "trained with another CLIP's text embeddings"


def test_a_stopped_training_is_resumed(configure_run, text_cache, tmp_path):
    heads = {"verb_head": "text", "object_head": "text"}
    whole = configure_run(tmp_path / "whole", cache=text_cache, **heads)
    stopped = replace(whole, out=tmp_path / "stopped", checkpoint_minutes=0)
    run_student(whole)
    with interrupted(2):
        run_student(stopped)
    assert load_checkpoint(stopped.out / "checkpoint.pt").state["step"] == 1
    run_student(stopped)
    assert_equal_weights(stopped.out, whole.out)
