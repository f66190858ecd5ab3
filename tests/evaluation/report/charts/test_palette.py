import itertools
import re

import numpy as np
import pytest

from evaluation.report.charts.palette import (
    DARK,
    DISTINCT_GROUPS,
    ENTRY_STYLES,
    HATCHES,
    LIGHT,
    LINE_STYLES,
    MARKERS,
    css_declarations,
    css_variable,
)

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Distance in CIELAB; about 2 is just noticeable side by side, 19 is another colour at a glance.
LEAST_DISTANCE = 19
# WCAG 2.1, 1.4.11: graphics; 1.4.3: text.
GRAPHICS, TEXT = 3.0, 4.5


def linear(colour):
    values = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.array(matrix) @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first, second):
    light = [linear(colour) @ np.array([0.2126, 0.7152, 0.0722]) for colour in (first, second)]
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_black_on_white_is_the_most_there_is():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert lab(linear("#ffffff")) == pytest.approx([100, 0, 0], abs=0.02)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("together", DISTINCT_GROUPS, ids=lambda names: names[0])
def test_colours_of_one_chart_are_distinct(together, vision, colours):
    matrix = np.array(VISION[vision])
    for first, second in itertools.combinations(together, 2):
        seen = [lab(matrix @ linear(colours[name])) for name in (first, second)]
        assert np.linalg.norm(seen[0] - seen[1]) >= LEAST_DISTANCE, (first, second)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_to_the_background(colours):
    for name in itertools.chain(*DISTINCT_GROUPS):
        assert contrast(colours[name], colours["card"]) >= GRAPHICS, name
    for name in ("text", "muted", "accent"):
        assert contrast(colours[name], colours["card"]) >= TEXT, name
        assert contrast(colours[name], colours["page"]) >= TEXT, name
    assert contrast(colours["star_text"], colours["star_background"]) >= TEXT


@pytest.mark.parametrize("together", DISTINCT_GROUPS, ids=lambda names: names[0])
def test_hatches_are_distinct(together):
    hatches = [HATCHES.get(name, "") for name in together]
    # Two roles may have no hatch: that of all labels is by far the darkest, or the lightest.
    assert len(set(hatches)) >= len(hatches) - 1


def test_lines_and_markers_are_distinct():
    assert len({LINE_STYLES[name] for name in ENTRY_STYLES}) == len(ENTRY_STYLES)
    assert len({MARKERS[name] for name in ENTRY_STYLES}) == len(ENTRY_STYLES)
    assert MARKERS["seen"] != MARKERS["unseen"]


def test_declarations_name_every_colour():
    assert LIGHT.keys() == DARK.keys()
    assert css_variable("all_labels") == "--all-labels"
    found = dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6});", css_declarations(DARK)))
    assert found == {css_variable(name): colour for name, colour in DARK.items()}


def test_light_colours_identify_the_names():
    assert len(set(LIGHT.values())) == len(LIGHT)
