import os
import signal

import pytest
import torch
from training import TIMING, logged

from pipeline.utils.errors import InputError
from student.data.targets import TARGET_FIELDS
from student.engine.metrics_log import METRICS
from student.utils.preemption import EXIT_REQUEUE
from student.weights.checkpoint_file import load_checkpoint

STEPS = 8


def before(trainer, step, act):
    """Makes a trainer call `act` before this step."""
    original = trainer._run_step

    def act_first(*arguments):
        if trainer.step + 1 == step:
            act()
        return original(*arguments)

    trainer._run_step = act_first
    return trainer


def stopping(trainer, step, number=signal.SIGINT):
    return before(trainer, step, lambda: os.kill(os.getpid(), number))


def resumed(trainer):
    file = trainer.run_dir / "checkpoint.pt"
    trainer.state.resume(load_checkpoint(file), file)
    return trainer


def assert_equal_training(first, second):
    for mine, theirs in (
        (first.train_step.model, second.train_step.model),
        (first.predictor.model, second.predictor.model),
    ):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    for mine, theirs in zip(logged(first.run_dir), logged(second.run_dir), strict=True):
        for name in mine.keys() - TIMING:
            assert mine[name] == theirs[name], (mine["step"], name)


def test_a_run_logs_every_step_and_saves_its_end(make_trainer):
    trainer = make_trainer("run")
    model = trainer.train_step.model
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.go()
    lines = logged(trainer.run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["epoch"] == 2 and lines[-1]["images"] == 32
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line["losses"].values()), rel=1e-4)
        assert [*line["candidates"]] == ["total", "overlapping", "interactive", "kept"]
        counts = list(line["candidates"].values())
        assert counts == sorted(counts, reverse=True) and counts[0] > 0
        assert all(line[name] > 0 for name in ("images_per_second", "grad_norm", "memory_gb"))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["lr"] < max(line["lr"] for line in lines) > lines[-1]["lr"]
    checkpoint = load_checkpoint(trainer.run_dir / "checkpoint.pt")
    assert checkpoint.recipe == trainer.recipe and checkpoint.state["step"] == STEPS
    for name, value in trainer.predictor.model.state_dict().items():
        assert torch.equal(value, checkpoint.weights[name])
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, start[name])
    }
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changed <= trained and len(changed) > 0.9 * len(trained)
    # The checkpoint of the previous epoch is kept as well.
    assert load_checkpoint(trainer.run_dir / "checkpoint-previous.pt").state["step"] == STEPS // 2


@pytest.mark.parametrize(
    ("workers", "step", "options"),
    [
        (0, 7, {"ema": 0.0, "dropout": 0.3, "schedule": "step", "drop_epoch": 1}),
        (1, 2, {"dropout": 0.3, "accumulation": 2, "batch_size": 7, "last_batch": "fill"}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer, workers, step, options):
    whole = make_trainer("whole", **options)
    whole.go()
    # Of 16 images, two epochs of four or of three steps.
    assert len(logged(whole.run_dir)) == (6 if "last_batch" in options else STEPS)
    stopped = stopping(make_trainer("stopped", workers, **options), step)
    with pytest.raises(KeyboardInterrupt):
        stopped.go()
    assert stopped.step == step and len(logged(stopped.run_dir)) == step
    torch.rand(100)
    again = resumed(make_trainer("stopped", workers, **options))
    assert again.step == step
    again.go()
    assert_equal_training(whole, again)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_run_exits_with_the_requeue_code(make_trainer, number, messages):
    trainer = stopping(make_trainer("run", epochs=1), 2, number)
    with pytest.raises(SystemExit) as left:
        trainer.go()
    assert left.value.code == EXIT_REQUEUE == 75
    assert "stopped and saved at step 2 of 4; the same command resumes" in "\n".join(messages)
    again = resumed(make_trainer("run", epochs=1))
    again.go()
    assert [line["step"] for line in logged(again.run_dir)] == [1, 2, 3, 4]


class Killed(BaseException):
    """Simulates SIGKILL."""


def kill():
    raise Killed


def test_after_a_kill_no_log_line_is_repeated_or_missing(make_trainer):
    whole = make_trainer("whole")
    whole.go()
    with pytest.raises(Killed):
        before(make_trainer("killed"), 3, kill).go()
    # Without a checkpoint the run starts again.
    assert not (make_trainer("killed").run_dir / "checkpoint.pt").exists()
    with pytest.raises(Killed):
        before(make_trainer("killed", checkpoint_minutes=0), 7, kill).go()
    again = resumed(make_trainer("killed"))
    with open(again.run_dir / METRICS, "a") as log:
        log.write('{"step": 8, "loss"')
    assert again.step == 6
    again.go()
    assert_equal_training(whole, again)


def test_a_non_finite_loss_names_step_losses_and_images(make_trainer):
    trainer = make_trainer("run")
    named = []

    def poison():
        with torch.no_grad():
            trainer.train_step.model.verb_head.bias.fill_(torch.nan)
        images, (keys, _) = trainer.batches.images, list(trainer.sampler)[5]
        named.extend(images.records[index].id for _, index in keys)

    with pytest.raises(InputError, match=r"step 6: verb_hard, .*total, gradient not fin") as caught:
        before(trainer, 6, poison).go()
    assert str(caught.value).endswith(f"on images {', '.join(named)}") and len(named) == 4
    checkpoint = load_checkpoint(trainer.run_dir / "checkpoint.pt")
    assert checkpoint.state["step"] == 4
    assert all(torch.isfinite(value).all() for value in checkpoint.weights.values())
    assert [line["step"] for line in logged(trainer.run_dir)] == [1, 2, 3, 4, 5]


def test_without_distillation_only_soft_targets_differ(make_trainer):
    """With the same seed, images, pairs and order are the same."""
    on, off = make_trainer("on"), make_trainer("off", distillation=False)
    for name, value in on.train_step.model.state_dict().items():
        assert torch.equal(value, off.train_step.model.state_dict()[name])
    differing = 0
    for mine, theirs in zip(on.build_loader(), off.build_loader(), strict=True):
        assert mine.image_ids == theirs.image_ids and torch.equal(mine.pixels, theirs.pixels)
        for name in set(TARGET_FIELDS) - {"teacher_probs"}:
            assert torch.equal(getattr(mine.targets, name), getattr(theirs.targets, name)), name
        assert not theirs.targets.teacher_probs.any()
        differing += int(mine.targets.teacher_probs.flatten(1).any(1).sum())
    assert differing > 10
