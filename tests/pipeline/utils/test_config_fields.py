from dataclasses import dataclass, replace

import pytest

from pipeline.utils.config_fields import check_settings, list_settings, setting
from pipeline.utils.errors import InputError

NAN = float("nan")


@dataclass(frozen=True)
class Config:
    """One setting of every kind."""

    form: str = setting("a", "Choices.", choices=("a", "b"))
    size: float = setting(1, "A lower bound.", low=1)
    rate: float = setting(1, "An open lower bound.", low=0, low_open=True)
    share: float = setting(0, "A range.", low=0, high=1)
    decay: float = setting(0, "An open upper bound.", low=0, high=1, high_open=True)
    seed: int | None = setting(None, "Optional.", low=0)
    classes: int = 1
    plain: int = -1

    def __post_init__(self):
        check_settings(self)


@pytest.mark.parametrize(
    ("name", "inside", "outside", "expected"),
    [
        ("form", ["a", "b"], ["", "c"], "one of a, b"),
        ("size", [1, 1.5, 9], [0, 0.99, -1, NAN], "at least 1"),
        ("rate", [0.1, 9], [0, -1, NAN], "a number above 0"),
        ("share", [0, 0.5, 1], [-0.1, 1.1, NAN], "a number from 0 to 1"),
        ("decay", [0, 0.99], [-0.1, 1, NAN], "a number from 0 to below 1"),
        ("seed", [None, 0], [-1], "at least 0"),
    ],
)
def test_values_outside_are_named(name, inside, outside, expected):
    for value in inside:
        replace(Config(), **{name: value})
    for value in outside:
        with pytest.raises(InputError, match=f"^{name}: expected {expected}, found {value}$"):
            replace(Config(), **{name: value})

    with pytest.raises(InputError, match="size: expected a finite number, found inf"):
        replace(Config(), size=float("inf"))


def test_settings_are_listed_with_their_types():
    kinds = {name: kind for name, (_, kind) in list_settings(Config).items()}
    numbers = dict.fromkeys(("size", "rate", "share", "decay"), float)
    assert kinds == {"form": str, "seed": int, **numbers}
