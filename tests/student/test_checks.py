import pytest

from pipeline.utils.errors import InputError
from student.config import at_least, below, between, one_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "inside", "outside", "says"),
    [
        (lambda x: one_of("size", x, ("a", "b")), ["a", "b"], ["", "c"], "one of a, b"),
        (lambda x: at_least("size", x, 1), [1, 1.5, 9], [0, 0.99, -1, NAN], "at least 1"),
        (lambda x: between("size", x, 0, 1), [0, 0.5, 1], [-0.1, 1.1, NAN], "from 0 to 1"),
        (lambda x: below("size", x, 0, 1), [0, 0.99], [-0.1, 1, NAN], "from 0 to below 1"),
    ],
)
def test_what_lies_outside_is_named(check, inside, outside, says):
    for value in inside:
        check(value)
    for value in outside:
        with pytest.raises(InputError, match=f"size: expected .*{says}, found {value}"):
            check(value)
