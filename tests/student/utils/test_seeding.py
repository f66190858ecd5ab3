import random

import torch
from numpy.random import mtrand

from student.utils import seeding

CPU = torch.device("cpu")


def draw():
    return torch.rand(3).tolist(), random.random(), mtrand.random()


def test_states_of_all_generators_are_restored(tmp_path):
    states = seeding.rng_state(CPU)
    torch.save(states, tmp_path / "states.pt")
    first = draw()
    seeding.manual_seed(3)
    draw()
    seeding.set_rng_state(torch.load(tmp_path / "states.pt", weights_only=True), CPU)
    assert draw() == first


def test_different_numbers_give_different_seeds():
    found = set()
    for numbers in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (2, 0, 0)):
        seeding.manual_seed(*numbers)
        found.add(torch.rand(1).item())
    assert len(found) == 4
