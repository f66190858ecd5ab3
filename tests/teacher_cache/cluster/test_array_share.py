import pytest

from pipeline.utils.errors import InputError
from teacher_cache.cluster.modes import ArrayShare


@pytest.mark.parametrize("num_items", [0, 1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_shares_are_everything_once(num_items, count):
    items = list(range(num_items))
    shares = [ArrayShare(index, count).select(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text, share", [("0/1", ArrayShare(0, 1)), ("3/8", ArrayShare(3, 8))])
def test_parse(text, share):
    assert ArrayShare.parse(text) == share


@pytest.mark.parametrize("text", ["", "3", "1/1", "-1/2", "0/0", "a/2", "1/2/3", "0.5/2"])
def test_parse_refuses(text):
    with pytest.raises(InputError, match="--array: expected I/N with I from 0 to N-1, found"):
        ArrayShare.parse(text)


def variables(**values):
    return {f"SLURM_ARRAY_TASK_{name.upper()}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    "environment, share",
    [
        (variables(id=0, min=0, count=1), ArrayShare(0, 1)),
        (variables(id=2, min=0, max=7, count=8, step=1), ArrayShare(2, 8)),
        (variables(id=5, min=3, max=6, count=4, step=1), ArrayShare(2, 4)),
        (variables(id=14, min=10, max=16, count=4, step=2), ArrayShare(2, 4)),
        (variables(id=3, min=3, max=3, count=1, step=1), ArrayShare(0, 1)),
    ],
)
def test_of_slurm(environment, share):
    assert ArrayShare.from_slurm(environment) == share


@pytest.mark.parametrize(
    "environment, text",
    [
        ({}, "--array: expected"),
        (variables(id=1, min=0), "--array: expected"),
        (variables(id="x", min=0, count=2), "--array: expected"),
        (variables(id=7, min=1, max=7, count=3, step=1), "found job 7 of 3 from 1 on"),
        (variables(id=4, min=1, max=7, count=3, step=2), "found job 4 of 3 from 1 on"),
    ],
)
def test_of_slurm_refuses(environment, text):
    with pytest.raises(InputError, match=text):
        ArrayShare.from_slurm(environment)
