import torch
from torch import nn

from student.engine.optimizer import ModelEMA


def test_the_average_starts_at_the_first_weights_and_follows_slowly():
    model = nn.Linear(1, 1)
    averaged = ModelEMA(model, decay=0.75)
    weights = []
    for value in (4.0, 8.0, 0.0):
        nn.init.constant_(model.weight, value)
        averaged.update(model)
        weights.append(averaged.module.weight.item())
    assert weights == [4.0, 5.0, 3.75] and averaged.updates == 3
    assert model.weight.item() == 0 and not averaged.module.weight.requires_grad


def test_buffers_stay():
    model = nn.BatchNorm1d(2)
    averaged = ModelEMA(model, decay=0.9)
    model.running_mean.fill_(3)
    averaged.update(model)
    assert torch.equal(averaged.module.running_mean, torch.zeros(2))
