import pytest
import torch
from torch import nn

from student.config import TrainConfig
from student.engine.optimizer import ModelEMA, build_optimizer, build_schedule
from student.models.detector import HOIDetector

CPU = torch.device("cpu")


def rates(config, steps, steps_per_epoch):
    """The learning rate of every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    schedule = build_schedule(optimizer, config, steps_per_epoch)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_parameter_groups_of_backbone_and_others(toy_config):
    model = HOIDetector(toy_config)
    config = TrainConfig(learning_rate=1e-3, backbone_lr_factor=0.25, weight_decay=0.5)
    optimizer = build_optimizer(model, config, CPU)
    others, backbone = optimizer.param_groups
    assert backbone["lr"] == pytest.approx(0.25e-3) and others["lr"] == pytest.approx(1e-3)
    assert backbone["weight_decay"] == others["weight_decay"] == 0.5 and backbone["fused"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(names[p].startswith("backbone.") for p in backbone["params"])
    assert not any(names[p].startswith("backbone.") for p in others["params"])
    both = {names[p] for p in others["params"] + backbone["params"]}
    assert both == {name for p, name in names.items() if p.requires_grad}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"drop_epoch": 2}, [1, 1, 1, 1, 0.1, 0.1]),
        ({"drop_epoch": 0}, [0.1] * 6),
        ({"drop_epoch": 9, "warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"drop_epoch": 1, "warmup_steps": 3}, [0.25, 0.5, 0.075, 0.1, 0.1, 0.1]),
    ],
)
def test_step_schedule_warms_up_and_drops_to_a_tenth(options, expected):
    config = TrainConfig(learning_rate=1.0, **options)
    assert rates(config, 6, steps_per_epoch=2) == pytest.approx(expected)


def test_one_cycle_schedule():
    found = rates(TrainConfig(learning_rate=1.0, schedule="one_cycle", epochs=5), 10, 2)
    top = found.index(max(found))
    assert 0 < top < 5 and 0.9 < found[top] <= 1
    assert found[:top] == sorted(found[:top]) and found[top:] == sorted(found[top:], reverse=True)


def test_ema_starts_with_the_first_weights_and_does_not_update_buffers():
    model = nn.BatchNorm1d(1)
    averaged = ModelEMA(model, decay=0.75)
    weights = []
    for value in (4.0, 8.0, 0.0):
        nn.init.constant_(model.weight, value)
        model.running_mean.fill_(value + 1)
        averaged.update(model)
        weights.append(averaged.module.weight.item())
    assert weights == [4.0, 5.0, 3.75] and averaged.updates == 3
    assert model.weight.item() == 0 and not averaged.module.weight.requires_grad
    assert averaged.module.running_mean.item() == 0
