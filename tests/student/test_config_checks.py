import pytest

from pipeline.utils.errors import InputError
from student.config import check_choice, check_half_open, check_min, check_range

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "inside", "outside", "says"),
    [
        (lambda x: check_choice("size", x, ("a", "b")), ["a", "b"], ["", "c"], "one of a, b"),
        (lambda x: check_min("size", x, 1), [1, 1.5, 9], [0, 0.99, -1, NAN], "at least 1"),
        (lambda x: check_range("size", x, 0, 1), [0, 0.5, 1], [-0.1, 1.1, NAN], "from 0 to 1"),
        (
            lambda x: check_half_open("size", x, 0, 1),
            [0, 0.99],
            [-0.1, 1, NAN],
            "from 0 to below 1",
        ),
    ],
)
def test_what_lies_outside_is_named(check, inside, outside, says):
    for value in inside:
        check(value)
    for value in outside:
        with pytest.raises(InputError, match=f"size: expected .*{says}, found {value}"):
            check(value)
