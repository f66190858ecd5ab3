import re
import shutil

import pytest

from pipeline.check import check_dataset, summary, table
from pipeline.datasets import open_dataset


@pytest.fixture
def checked(small_dataset):
    """Checks the small dataset after a change; returns (checks, table, one line)."""

    def run(strict=False):
        dataset = open_dataset(small_dataset)
        checks = check_dataset(dataset, strict)
        return checks, table(dataset, checks), summary(checks)

    return run


def test_a_sound_dataset_beside_the_published_numbers(checked):
    checks, text, line = checked()
    assert line == ""
    train, test = checks
    assert (train.images, train.annotated, train.labels, train.outside) == (2, 2, 2, 0)
    assert (test.images, test.annotated, test.labels, test.outside) == (1, 1, 1, 0)
    assert "2 / 38118" in text and "2 / 37633" in text and "2 / 117871" in text
    assert "1 / 9658" in text and "1 / 9546" in text and "1 / 33405" in text
    assert "117 verbs, 80 objects, 600 interactions" in text


def test_a_dataset_nobody_published(small_dataset, checked):
    (small_dataset / "dataset.toml").write_text(
        'name = "mine"\nvocabulary = "hico-det"\n[test]\nimages = "images/test2015"\n'
        'annotations = "annotations/test_hico.json"\n'
    )
    checks, text, line = checked()
    assert len(checks) == 1 and line == "" and "/" not in text


def change(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def truncate(root):
    path = root / "images/train2015/b.jpg"
    path.write_bytes(path.read_bytes()[:400])


ANNOTATIONS = "annotations/trainval_hico.json"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda root: (root / "images/train2015/b.jpg").unlink(), "1 of 2 images missing, first"),
        (lambda root: shutil.rmtree(root / "images/train2015"), "no such folder of images"),
        (truncate, "1 of 2 images unreadable, first .*b.jpg: expected a whole image"),
        (
            lambda root: change(root / ANNOTATIONS, '"category_id": 2', '"category_id": 12'),
            "an obj",
        ),
        (lambda root: change(root / ANNOTATIONS, "b.jpg", "a.jpg"), "every image once"),
        (lambda root: (root / ANNOTATIONS).write_text("[]"), "expected an entry for each image"),
        (lambda root: (root / ANNOTATIONS).write_text('[{"file'), "expected JSON"),
    ],
)
def test_what_is_wrong_is_told_and_the_other_part_is_checked(small_dataset, checked, harm, says):
    harm(small_dataset)
    checks, text, line = checked()
    assert re.search(f"^train: .*{says}", line)
    assert line in text and "\n" not in line
    assert checks[1].problems == [] and checks[1].annotated == 1


def test_all_problems_stand_in_the_table_and_are_counted_in_the_line(small_dataset, checked):
    truncate(small_dataset)
    (small_dataset / "images/train2015/a.jpg").unlink()
    (small_dataset / "images/test2015/c.jpg").unlink()
    _, text, line = checked()
    assert text.count("missing") == 2 and text.count("unreadable") == 1
    assert line.endswith("(and 2 more)")


def test_boxes_are_held_against_the_pictures(small_dataset, checked):
    change(small_dataset / ANNOTATIONS, "[5, 40, 50, 70]", "[5, 40, 101, 70]")
    checks, _, line = checked()
    assert checks[0].outside == 2 and line == ""


def test_blemishes_are_told_and_under_strict_wrong(small_dataset, checked):
    change(small_dataset / ANNOTATIONS, "[5, 40, 50, 70]", "[-5, 40, 50, 70]")
    _, text, line = checked()
    assert "2 boxes over the image's edge (clipped)" in text and line == ""
    assert "a.jpg: annotations[1].bbox" in checked(strict=True)[2]


def test_missing_weights_are_told(small_dataset, checked):
    (small_dataset / "dataset.toml").write_text(
        'vocabulary = "hico-det"\ndetector = "d.pth"\n[test]\nimages = "images/test2015"\n'
        'annotations = "annotations/test_hico.json"\n'
    )
    assert "d.pth: no such detector" in checked()[2]
