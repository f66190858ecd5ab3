import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from pipeline.errors import InputError
from pipeline.splits import load_split
from student import train
from student.augmentation import world_augmentation
from student.checkpoints import load_checkpoint
from student.data import Sample
from student.model import HOIDetector
from student.targets import Targets
from student.train import Batch, Trainer

STEPS = 8


@pytest.fixture
def make(make_images, tiny_recipe, vocabulary, tmp_path, monkeypatch):
    """`make("run", workers=, field=value)` gives a fresh trainer; every step is logged."""
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    split = load_split(vocabulary, "ua")

    def build(name, workers=0, **options):
        recipe = tiny_recipe.changed(**options)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        torch.manual_seed(recipe.train.seed)
        model = HOIDetector(recipe.model)
        images = make_images(split, world_augmentation(), recipe.train.seed, recipe.targets)
        return Trainer(
            recipe, model, images, vocabulary, split, folder, torch.device("cpu"), workers
        )

    return build


def stopping(trainer, step, number=signal.SIGINT):
    """Makes a trainer receive a signal during this step."""
    whole = trainer.train_step

    def train_step(batch):
        if trainer.step + 1 == step:
            os.kill(os.getpid(), number)
        return whole(batch)

    trainer.train_step = train_step
    return trainer


def logged(trainer):
    lines = (trainer.run / train.METRICS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_equal_training(first, second):
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for name, value in first.predictor.state_dict().items():
        assert torch.equal(value, second.predictor.state_dict()[name]), name
    timing = {"images_per_second", "data_wait_share"}
    for mine, theirs in zip(logged(first), logged(second), strict=True):
        for name in mine.keys() - timing:
            assert mine[name] == theirs[name], (mine["step"], name)


def test_a_run_logs_every_step_and_keeps_its_end(make):
    trainer = make("run")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer.train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    lines = logged(trainer)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["epoch"] == 2 and lines[-1]["images"] == 32
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line["losses"].values()), rel=1e-4)
        assert {"verb_soft", "verb_hard", "dense_box"} <= line["losses"].keys()
        assert line["images_per_second"] > 0 and 0 <= line["data_wait_share"] <= 1
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["lr"] < max(line["lr"] for line in lines) > lines[-1]["lr"]
    checkpoint = load_checkpoint(trainer.run / "checkpoint.pt")
    assert checkpoint.recipe == trainer.recipe and checkpoint.state["step"] == STEPS
    for name, value in trainer.predictor.state_dict().items():
        assert torch.equal(value, checkpoint.weights[name])
    changed = {
        name for name, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert changed <= trained and len(changed) > 0.9 * len(trained)


@pytest.mark.parametrize(
    ("workers", "step", "options"),
    [
        (0, 4, {}),
        (0, 7, {"ema": 0.0, "dropout": 0.3, "schedule": "step", "drop_epoch": 1}),
        (1, 2, {"dropout": 0.3}),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_never_was(make, workers, step, options):
    whole = make("whole", **options)
    whole.train()
    stopped = stopping(make("stopped", workers, **options), step)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert stopped.step == step and len(logged(stopped)) == step
    torch.rand(100)
    resumed = make("stopped", workers, **options)
    resumed.resume()
    assert resumed.step == step
    resumed.train()
    assert_equal_training(whole, resumed)


def test_a_second_stop_and_sigterm(make):
    whole = make("whole", epochs=1)
    whole.train()
    for step, number in ((1, signal.SIGTERM), (3, signal.SIGINT)):
        trainer = stopping(make("run", epochs=1), step, number)
        if step > 1:
            trainer.resume()
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    last = make("run", epochs=1)
    last.resume()
    last.train()
    assert_equal_training(whole, last)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("step", [3, 6])
def test_after_a_kill_no_line_is_repeated_or_missing(make, step):
    whole = make("whole")
    whole.train()
    killed = make("killed")
    whole_step = killed.train_step

    def train_step(batch):
        if killed.step == step:
            raise Killed
        return whole_step(batch)

    killed.train_step = train_step
    with pytest.raises(Killed):
        killed.train()
    with open(killed.run / train.METRICS, "a") as log:
        log.write('{"step": 8, "loss"')
    resumed = make("killed")
    if step > 4:
        resumed.resume()
    else:
        assert not (resumed.run / "checkpoint.pt").exists()
    assert resumed.step == step // 4 * 4
    resumed.train()
    assert_equal_training(whole, resumed)


def test_a_finished_run_has_nothing_to_train(make):
    trainer = make("run", epochs=1)
    trainer.train()
    before = {path: path.read_bytes() for path in trainer.run.iterdir()}
    again = make("run", epochs=1)
    again.resume()
    again.train()
    assert {path: path.read_bytes() for path in again.run.iterdir()} == before


def test_a_batch_larger_than_the_dataset(make):
    trainer = make("run", batch_size=100, epochs=2)
    trainer.train()
    assert [line["step"] for line in logged(trainer)] == [1, 2]


def test_a_loss_that_is_not_finite_names_step_losses_and_images(make):
    trainer = make("run")
    whole_step = trainer.train_step

    def train_step(batch):
        if trainer.step == 5:
            with torch.no_grad():
                trainer.model.verb_head.bias.fill_(torch.nan)
            named.extend(sample.image_id for sample in batch.samples)
        return whole_step(batch)

    named = []
    trainer.train_step = train_step
    with pytest.raises(InputError, match=r"step 6: verb_hard, .*total not finite") as caught:
        trainer.train()
    assert str(caught.value).endswith(f"on images {', '.join(named)}") and len(named) == 4
    checkpoint = load_checkpoint(trainer.run / "checkpoint.pt")
    assert checkpoint.state["step"] == 4
    assert all(torch.isfinite(value).all() for value in checkpoint.weights.values())


def empty_sample(vocabulary):
    verbs = vocabulary.num_verbs
    none = torch.zeros(0, dtype=torch.bool)
    targets = Targets(
        human_boxes=torch.zeros(0, 4),
        object_boxes=torch.zeros(0, 4),
        object_labels=torch.zeros(0, dtype=torch.int64),
        hard=torch.zeros(0, verbs, dtype=torch.bool),
        soft=torch.zeros(0, verbs),
        seen=none,
        interactive=none,
    )
    return Sample(
        "empty.jpg",
        torch.randn(3, 128, 128),
        targets,
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
    )


@pytest.mark.parametrize("with_others", [False, True])
@pytest.mark.parametrize("queries", ["pairs", "learned"])
def test_images_without_pairs_are_no_trouble(make, vocabulary, queries, with_others):
    trainer = make("run", queries=queries)
    samples = [empty_sample(vocabulary)] * 2
    if with_others:
        samples.append(trainer.loader.dataset[0, 0])
    for _ in range(2):
        losses = trainer.train_step(Batch(samples))
        assert all(abs(value) < 1e4 for value in losses.values())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_rates_of_backbone_and_rest(make):
    trainer = make("run", learning_rate=1e-3, backbone_factor=0.25)
    others, backbone = trainer.optimizer.param_groups
    assert backbone["max_lr"] == pytest.approx(0.25e-3) and others["max_lr"] == pytest.approx(1e-3)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    assert all(names[p].startswith("backbone.") for p in backbone["params"])
    assert not any(names[p].startswith("backbone.") for p in others["params"])
    both = {names[p] for p in others["params"] + backbone["params"]}
    assert both == {name for p, name in names.items() if p.requires_grad}


def test_the_published_schedule_drops_to_a_tenth(make):
    trainer = make("run", schedule="step", drop_epoch=1, learning_rate=1e-3)
    trainer.train()
    rates = [line["lr"] for line in logged(trainer)]
    # A line tells the rate of the step to come.
    assert rates[:3] == [1e-3] * 3 and rates[3:7] == pytest.approx([1e-4] * 4)


def test_the_same_seed_gives_the_same_control_but_for_the_teacher(make):
    """The control sees the same images, pairs and order; only soft targets differ."""
    on, off = make("on"), make("off", distillation=False)
    assert replace(on.recipe.targets, distillation=False) == off.recipe.targets
    differing = 0
    for epoch in range(2):
        on.sampler.position(epoch, 0)
        off.sampler.position(epoch, 0)
        for mine, theirs in zip(on.loader, off.loader, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a.image_id == b.image_id and torch.equal(a.image, b.image)
                assert torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels)
                for name in ("human_boxes", "object_boxes", "object_labels", "hard", "seen"):
                    assert torch.equal(getattr(a.targets, name), getattr(b.targets, name))
                assert torch.equal(a.targets.interactive, b.targets.interactive)
                assert not b.targets.soft.any()
                differing += int(a.targets.soft.any())
    assert differing > 10


def test_resuming_from_a_damaged_checkpoint_is_one_line(make):
    trainer = make("run", epochs=1)
    trainer.train()
    file = trainer.run / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match="expected a torch checkpoint") as caught:
        make("run", epochs=1).resume()
    assert "\n" not in str(caught.value)


def test_a_copy_of_a_run_goes_on_elsewhere(make, tmp_path):
    trainer = stopping(make("run", epochs=1), 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    shutil.copytree(trainer.run, tmp_path / "copy")
    copy = make("copy", epochs=1)
    copy.resume()
    copy.train()
    assert [line["step"] for line in logged(copy)] == [1, 2, 3, 4]
