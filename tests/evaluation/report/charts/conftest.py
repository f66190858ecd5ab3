"""What charts put on a page."""

import re

import pytest

from evaluation.analysis.comparison import ComparisonEntry


@pytest.fixture(scope="session")
def texts():
    """All texts of a chart's two SVGs."""

    def find(chart):
        return [re.findall(r"<text[^>]*>([^<]*)</text>", svg) for svg in (chart.wide, chart.narrow)]

    return find


@pytest.fixture(scope="session")
def entries():
    return [
        ComparisonEntry("distilled", "Distilled", "", ()),
        ComparisonEntry("control", "No distillation", "", ()),
    ]
