import pytest
import torch

from student.engine.train_step import cat_outputs, detach_leaves, tree_leaves
from student.models.proposal_queries import ProposalOutputs


def output(first, count):
    values = torch.arange(first, first + count, dtype=torch.float32)
    inner = {"pred": values.view(-1, 1) + 0.5}
    shares = torch.ones(count, 2)
    dense = ProposalOutputs(values.view(-1, 1, 1, 1), values.view(-1, 1, 1, 1, 1), shares)
    return {"pred": values.view(-1, 1), "aux_outputs": [inner], "proposals": dense}


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (1, 1, 1)])
def test_parts_join_to_the_whole(sizes):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    found = cat_outputs([output(*one) for one in zip(starts, sizes, strict=True)])
    whole = output(0, 3)
    assert isinstance(found["proposals"], ProposalOutputs) and len(tree_leaves(found)) == 5
    for mine, theirs in zip(tree_leaves(found), tree_leaves(whole), strict=True):
        assert torch.equal(mine, theirs)


def test_gradients_end_where_the_output_was_cut_off():
    weight = torch.ones(1, requires_grad=True)
    made = {name: value * weight for name, value in (("a", 2.0), ("b", 3.0))}
    ends = detach_leaves(made)
    (ends["a"] ** 2 + ends["b"]).backward()
    assert weight.grad is None
    assert [one.grad.item() for one in tree_leaves(ends)] == [4.0, 1.0]
