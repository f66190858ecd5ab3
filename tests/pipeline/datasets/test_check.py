import json
import re
import shutil

import pytest
from PIL import Image

from pipeline.datasets.check import (
    check_dataset,
    format_check,
    summarise_problems,
)
from pipeline.datasets.dataset import open_dataset


@pytest.fixture
def checked(small_dataset):
    """Checks the small dataset; returns (part reports, report text, summary line)."""

    def run(strict=False):
        dataset = open_dataset(small_dataset)
        checks = check_dataset(dataset, strict)
        return checks, format_check(dataset, checks), summarise_problems(checks)

    return run


def test_valid_dataset_with_published_counts(checked):
    checks, text, line = checked()
    assert line == ""
    train, test = checks
    assert (train.images, train.annotated, train.labels, train.issues) == (2, 2, 2, [])
    assert (test.images, test.annotated, test.labels, test.issues) == (1, 1, 1, [])
    assert "2 / 38118" in text and "2 / 37633" in text and "2 / 117871" in text
    assert "1 / 9658" in text and "1 / 9546" in text and "1 / 33405" in text
    assert "117 verbs, 80 objects, 600 interactions" in text


def change(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def truncate(root):
    path = root / "images/train2015/b.jpg"
    path.write_bytes(path.read_bytes()[:400])


ANNOTATIONS = "annotations/trainval_hico.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "images/train2015/b.jpg").unlink(), "1 images missing, first"),
        (lambda root: shutil.rmtree(root / "images/train2015"), "no such folder of images"),
        (truncate, "1 images unreadable, first .*b.jpg: expected a whole image"),
        (
            lambda root: change(root / ANNOTATIONS, '"category_id": 72', '"category_id": 0'),
            "2 ids of objects or verbs that are not in the vocabulary, first .*found 0; does this",
        ),
        (
            lambda root: change(root / ANNOTATIONS, "b.jpg", "a.jpg"),
            "1 images named more than once, first .*every image once",
        ),
        (
            lambda root: change(root / ANNOTATIONS, "[5, 40, 50, 70]", "[5, 40]"),
            "2 malformed entries, first .*a.jpg: annotations.1..bbox: expected four",
        ),
        (lambda root: (root / ANNOTATIONS).write_text("[]"), "expected an entry for each image"),
        (
            lambda root: change(root / ANNOTATIONS, '"object_id": 1', '"object_id": 7'),
            "labelled interactions, found none that is valid: 2 labels with a box index",
        ),
        (lambda root: (root / ANNOTATIONS).write_text('[{"file'), "expected JSON"),
    ],
)
def test_problems_are_reported_and_the_other_part_is_checked(
    small_dataset, checked, damage, message
):
    damage(small_dataset)
    checks, text, line = checked()
    assert re.search(f"^train: .*{message}", line)
    assert line in text and "\n" not in line
    # Images are counted even if there are no valid annotations.
    assert checks[0].images == len(list((small_dataset / "images/train2015").glob("*")))
    assert checks[1].problems == [] and checks[1].annotated == 1


def test_table_lists_all_problems_and_the_summary_counts_them(small_dataset, checked):
    truncate(small_dataset)
    (small_dataset / "images/train2015/a.jpg").unlink()
    (small_dataset / "images/test2015/c.jpg").unlink()
    _, text, line = checked()
    rows = {row.rsplit(maxsplit=3)[0]: row.split()[-3:] for row in text.splitlines() if row}
    assert rows["images missing"] == ["1", "1", "error"]
    assert rows["images unreadable"] == ["1", "0", "error"]
    assert text.count(", first ") == 3 and line.endswith("(and 2 more)")


def test_missing_folder_and_weights_are_reported_once(small_dataset, checked):
    (small_dataset / "dataset.toml").write_text(
        'vocabulary = "hico-det"\ndetector = "d.pth"\n'
        '[train]\nimages = "gone"\n[test]\nimages = "images/test2015"\n'
    )
    (train, test), text, _ = checked()
    assert len(train.problems) == 2 and text.count("no such folder of images") == 1
    assert "d.pth: no such detector" in text and test.problems == []
    assert "/ 38118" not in text


def test_boxes_outside_the_image_file_are_reported(small_dataset, checked):
    change(small_dataset / ANNOTATIONS, "[5, 40, 50, 70]", "[5, 40, 101, 70]")
    checks, _, line = checked()
    (issue,) = checks[0].issues
    assert (issue.count, issue.is_error) == (2, False) and issue.first.endswith("a.jpg")
    assert "outside" in issue.kind and line == ""


def test_issues_are_reported_and_are_errors_under_strict(small_dataset, checked):
    change(small_dataset / ANNOTATIONS, "[5, 40, 50, 70]", "[-5, 40, 50, 70]")
    _, text, line = checked()
    assert "2 boxes over the image's edge (clipped)" in text and line == ""
    checks, text, line = checked(strict=True)
    assert "2 boxes over the image's edge (clipped), first " in line
    assert "a.jpg: annotations[1].bbox" in line and checks[0].annotated == 2


def test_all_kinds_of_errors_are_found_at_once(small_dataset, checked):
    """The check continues after every wrong entry of a file and reads the images too."""
    file = small_dataset / ANNOTATIONS
    entries = json.loads(file.read_text())
    first = entries[0]
    first["annotations"] += [{"bbox": [1, 1, 9, 9], "category_id": 12}] * 3
    first["hoi_annotation"] += [
        {"subject_id": 0, "object_id": 1, "category_id": 118},
        {"subject_id": 0, "object_id": 2, "category_id": 72},
        {"subject_id": 0, "object_id": 1, "category_id": 72},
        {"subject_id": 0, "object_id": 1, "category_id": 1},
        {"subject_id": 0, "object_id": 9, "category_id": 72},
    ]
    file.write_text(json.dumps([*entries, entries[1], 3]))
    truncate(small_dataset)
    (train, _), text, line = checked()
    assert {issue.kind: (issue.count, issue.is_error) for issue in train.issues} == {
        "ids of objects or verbs that are not in the vocabulary": (4, True),
        "images named more than once": (1, True),
        "malformed entries": (1, True),
        "repeated labels (dropped)": (1, False),
        "labels that are not an interaction of the vocabulary (dropped)": (1, False),
        "labels with a box index out of range (dropped)": (1, False),
        "images unreadable": (1, True),
    }
    assert (train.annotated, train.labels) == (2, 2)
    assert line.endswith("(and 3 more)")
    (row,) = [row for row in text.splitlines() if row.startswith("malformed entries")]
    assert row.split() == ["malformed", "entries", "1", "0", "error"]


def coco(root, images):
    """A COCO folder of `images` with one box each."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    value = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for number in range(images):
        Image.new("RGB", (60, 50)).save(root / "val2017" / f"{number}.jpg")
        value["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 50}
        )
        value["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 20, 20]}
        )
    return value


@pytest.mark.parametrize(
    ("damage", "kind", "count"),
    [
        (lambda v: None, None, 0),
        (lambda v: v["annotations"][0].update(category_id=12), "ids of objects", 1),
        (
            lambda v: v["annotations"][1].update(bbox=[50, 5, 20, 9]),
            "boxes over the image's edge",
            1,
        ),
        (lambda v: v["images"][1].update(file_name="x.jpg"), "images missing", 1),
    ],
)
def test_coco_folders(tmp_path, damage, kind, count):
    value = coco(tmp_path, 3)
    damage(value)
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(value))
    (check,) = check_dataset(open_dataset(tmp_path))
    assert check.images == 3
    if kind is None:
        assert check.issues == check.problems == []
    else:
        (issue,) = check.issues
        assert issue.kind.startswith(kind) and issue.count == count


def test_vcoco_folder_with_published_counts(tmp_path, write_vcoco):
    image = {"boxes": [(1, [0, 0, 40, 80]), (37, [0, 0, 9, 9])], "does": {(0, "kick"): (1,)}}
    write_vcoco(tmp_path, [image, {**image, "does": {(0, "eat"): (1, None)}}])
    (tmp_path / "val2014").mkdir()
    for number in (10, 20):
        Image.new("RGB", (200, 150)).save(tmp_path / "val2014" / f"COCO_val2014_{number:012}.jpg")
    dataset = open_dataset(tmp_path)
    checks = check_dataset(dataset)
    (issue,) = checks[0].issues
    assert issue.kind.startswith("labels that are not an interaction") and not issue.is_error
    assert "2 / 4946" in format_check(dataset, checks) and summarise_problems(checks) == ""
