import itertools
import re

import numpy as np
import pytest

from evaluation.analysis.comparison import ENTRY_ROLES
from evaluation.analysis.error_kinds import ERROR_KINDS
from evaluation.report.charts.palette import (
    DARK,
    HATCHES,
    LIGHT,
    LINE_STYLES,
    MARKERS,
    css_declarations,
)

# Names that appear in one chart.
DISTINCT_GROUPS = (tuple(ENTRY_ROLES), ("seen", "unseen"), ERROR_KINDS)
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ_OF_RGB = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
# Distance in CIELAB; about 2 is just noticeable side by side, 19 is another colour at a glance.
LEAST_DISTANCE = 19
# WCAG 2.1, 1.4.11: graphics; 1.4.3: text.
GRAPHICS, TEXT = 3.0, 4.5


def linear(colour):
    values = np.array([*bytes.fromhex(colour[1:])]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = XYZ_OF_RGB @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first, second):
    low, high = sorted(linear(colour) @ XYZ_OF_RGB[1] for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_are_distinct_and_have_contrast(colours):
    for group in DISTINCT_GROUPS:
        for (vision, matrix), (first, second) in itertools.product(
            VISION.items(), itertools.combinations(group, 2)
        ):
            seen = [lab(matrix @ linear(colours[name])) for name in (first, second)]
            distance = np.linalg.norm(seen[0] - seen[1])
            assert distance >= LEAST_DISTANCE, (vision, first, second)
        for name in group:
            assert contrast(colours[name], colours["card"]) >= GRAPHICS, name
    for name, background in itertools.product(("text", "muted", "accent"), ("card", "page")):
        assert contrast(colours[name], colours[background]) >= TEXT, name
    assert contrast(colours["star_text"], colours["star_background"]) >= TEXT


def test_charts_can_be_read_without_colours():
    for group in DISTINCT_GROUPS:
        hatches = [HATCHES.get(name, "") for name in group]
        # Two roles may have no hatch: that of all labels is by far the darkest, or the lightest.
        assert len(set(hatches)) >= len(hatches) - 1
    assert len({LINE_STYLES[name] for name in ENTRY_ROLES}) == len(ENTRY_ROLES)
    assert len({MARKERS[name] for name in ENTRY_ROLES}) == len(ENTRY_ROLES)
    assert MARKERS["seen"] != MARKERS["unseen"]


def test_every_colour_has_a_css_variable():
    assert LIGHT.keys() == DARK.keys()
    # The charts' colours are replaced by the variables.
    assert len(set(LIGHT.values())) == len(LIGHT)
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css_declarations(DARK)))
    assert found == {name.replace("_", "-"): colour for name, colour in DARK.items()}
