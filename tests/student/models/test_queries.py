import torch

from student.models.queries import LearnedQueries


def test_learned_queries_start_at_zero_and_are_the_same_for_every_image():
    source = LearnedQueries(num_queries=5, hidden_dim=8)
    start = source({"stride32": torch.randn(3, 4, 2, 2)}, None)
    assert start.target.shape == start.positions.shape == (3, 5, 8)
    assert not start.target.any() and start.outputs == {}
    assert torch.equal(start.positions[0], start.positions[2])
    assert start.human_reference is start.object_reference is start.interaction_target is None
    start.positions.sum().backward()
    assert torch.equal(source.embedding.weight.grad, torch.full((5, 8), 3.0))
