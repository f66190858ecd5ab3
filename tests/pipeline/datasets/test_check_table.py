import pytest

from pipeline.datasets.check import PUBLISHED_COUNTS, DatasetIssue, PartReport, format_check
from pipeline.datasets.dataset import LAYOUTS, Dataset


@pytest.fixture
def dataset(tmp_path, hico):
    return lambda name: Dataset(tmp_path, name, hico, {})


def test_published_numbers_are_of_layouts_that_exist():
    assert set(PUBLISHED_COUNTS) == {layout.name for layout in LAYOUTS}


def test_an_empty_check(dataset):
    assert format_check(dataset("mine"), []).splitlines()[1:] == ["part  images  annotated  labels"]


def test_parts_without_findings_have_no_findings(dataset):
    checks = [PartReport("train", 5, 4, 3), PartReport("test", 12, 11, 10)]
    assert format_check(dataset("mine"), checks).splitlines()[1:] == [
        "part   images  annotated  labels",
        "train  5       4          3",
        "test   12      11         10",
    ]
    assert format_check(dataset("v-coco"), checks).splitlines()[2:] == [
        "train  5       4 / 5400   3",
        "test   12      11 / 4946  10",
        "(behind the slash: as published)",
    ]


def test_findings_in_rows_and_their_first_ones_below(dataset):
    train, test = PartReport("train", 5, 4, 3), PartReport("test")
    train.add(DatasetIssue("boxes over the edge", 7, "a.jpg", is_error=False))
    train.add(DatasetIssue("images missing", 1, "b.jpg", is_error=True))
    test.problems.append("test.json: no such file")
    assert format_check(dataset("mine"), [train, test]).splitlines()[4:] == [
        "",
        "found                train  test",
        "boxes over the edge  7      0",
        "images missing       1      0     wrong",
        "",
        "train: 7 boxes over the edge, first a.jpg",
        "train: 1 images missing, first b.jpg",
        "test: test.json: no such file",
    ]
