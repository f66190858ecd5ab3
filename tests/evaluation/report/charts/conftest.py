"""What charts put on a page."""

import re

import pytest

from evaluation.analysis.class_tables import ClassRow
from evaluation.analysis.comparison import ComparisonEntry


@pytest.fixture(scope="session")
def texts():
    """All texts of a chart's panels and of its legend."""

    def find(chart):
        found = [title for _, title in chart.legend]
        for svg in chart.panels:
            found += re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        return found

    return find


@pytest.fixture(scope="session")
def entries():
    return [
        ComparisonEntry("distilled", "Distilled", "", (), "distilled"),
        ComparisonEntry("control", "No distillation", "", (), "control"),
    ]


@pytest.fixture(scope="session")
def rows():
    """Rows of unseen, then of seen classes, the second entry's AP of the first row only."""

    def make(num_unseen, num_seen, training=lambda index: 3 * index):
        return [
            ClassRow(
                f"class {index:03}",
                index < num_unseen,
                (1 - index / 1000, None if index else 0.034),
                num_training=training(index),
            )
            for index in range(num_unseen + num_seen)
        ]

    return make
