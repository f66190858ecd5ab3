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
from pipeline.utils.errors import InputError


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


def test_a_part_without_annotations_is_named(small_dataset, checked):
    assert "no annotations" not in checked()[1]
    (small_dataset / "annotations/test_hico.json").unlink()
    checks, text, line = checked()
    expected = small_dataset / "annotations/test_hico.json"
    assert f"test: no annotations; expected {expected}\n" in f"{text}\n"
    assert len(checks) == 1 and line == ""


def test_a_folder_of_images_is_not_annotated(small_dataset):
    (small_dataset / "dataset.toml").write_text(
        'vocabulary = "hico-det"\n[train]\nimages = "images/train2015"\n'
    )
    (train,) = check_dataset(open_dataset(small_dataset))
    assert (train.images, train.annotated, train.labels, train.problems) == (2, 0, 0, [])


ANNOTATIONS = "annotations/trainval_hico.json"


def change(old, new):
    """Damage of the training annotations of a folder: a text that is replaced."""

    def damage(root):
        text = (root / ANNOTATIONS).read_text()
        assert old in text
        (root / ANNOTATIONS).write_text(text.replace(old, new))

    return damage


def truncate(root):
    path = root / "images/train2015/b.jpg"
    path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "images/train2015/b.jpg").unlink(), "1 image missing, first"),
        (lambda root: shutil.rmtree(root / "images/train2015"), "no such folder of images"),
        (truncate, "1 image unreadable, first .*b.jpg: expected a whole image"),
        (change('"category_id": 72', '"category_id": 0'), "2 ids of objects or verbs .*found 0"),
        (change("b.jpg", "a.jpg"), "1 image named more than once, first .*every image once"),
        (change("[5, 40, 50, 70]", "[5, 40]"), "2 malformed entries, .*a.jpg: annotations.1..bbox"),
        (
            change('"object_id": 1', '"object_id": 7'),
            "found none that is valid: 2 labels with a box",
        ),
        (lambda root: (root / ANNOTATIONS).write_text("[]"), "expected an entry for each image"),
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
    change("[5, 40, 50, 70]", "[5, 40, 101, 70]")(small_dataset)
    checks, _, line = checked()
    (issue,) = checks[0].issues
    assert (issue.count, issue.is_error) == (2, False) and issue.first.endswith("a.jpg")
    assert "outside" in issue.kind and line == ""


def test_issues_are_reported_and_are_errors_under_strict(small_dataset, checked):
    change("[5, 40, 50, 70]", "[-5, 40, 50, 70]")(small_dataset)
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
        "ids of objects or verbs outside the vocabulary": (4, True),
        "images named more than once": (1, True),
        "malformed entries": (1, True),
        "repeated labels (dropped)": (1, False),
        "labels of no interaction of the vocabulary (dropped)": (1, False),
        "labels with a box index out of range (dropped)": (1, False),
        "images unreadable": (1, True),
    }
    assert (train.annotated, train.labels) == (2, 2)
    assert line.endswith("(and 3 more)")
    (row,) = [row for row in text.splitlines() if row.startswith("malformed entries")]
    assert row.split() == ["malformed", "entries", "1", "0", "error"]


@pytest.mark.parametrize(
    ("table", "row", "field", "value", "kind"),
    [
        ("annotations", 0, "category_id", 12, "ids of objects"),
        ("annotations", 1, "image_id", 99, "malformed entries"),
        ("annotations", 1, "bbox", [50, 5, 20, 9], "boxes over the image's edge"),
        ("images", 1, "file_name", "x.jpg", "images missing"),
        ("images", 1, "width", 60, None),
    ],
)
def test_coco_folders(tmp_path, table, row, field, value, kind):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for folder in ("annotations", "val2017"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        name, one = f"{number}.jpg", {"id": number}
        Image.new("RGB", (60, 50)).save(tmp_path / "val2017" / name)
        content["images"].append(one | {"file_name": name, "width": 60, "height": 50})
        box = {"image_id": number, "category_id": 1, "bbox": [5, 5, 20, 20]}
        content["annotations"].append(one | box)
    content[table][row][field] = value
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    (check,) = check_dataset(open_dataset(tmp_path))
    assert check.images == 3
    assert [issue.count for issue in check.issues] == [1] * (kind is not None)
    assert check.problems == [] or kind is not None
    assert all(issue.kind.startswith(kind) for issue in check.issues)


def test_vcoco_folder_with_published_counts(tmp_path, write_vcoco):
    image = {"boxes": [(1, [0, 0, 40, 80]), (37, [0, 0, 9, 9])], "does": {(0, "kick"): (1,)}}
    write_vcoco(tmp_path, [image, {**image, "does": {(0, "eat"): (1, None)}}])
    (tmp_path / "val2014").mkdir()
    for number in (10, 20):
        Image.new("RGB", (200, 150)).save(tmp_path / "val2014" / f"COCO_val2014_{number:012}.jpg")
    dataset = open_dataset(tmp_path)
    checks = check_dataset(dataset)
    (issue,) = checks[0].issues
    assert issue.kind.startswith("labels of no interaction") and not issue.is_error
    assert "2 / 4946" in format_check(dataset, checks) and summarise_problems(checks) == ""


def test_photographs_of_unsupported_formats_are_counted(small_dataset, checked):
    folder = small_dataset / "images/train2015"
    for name in ("c.heic", "d.CR2", "e.heic", ".f.heic", "notes.txt"):
        (folder / name).write_bytes(b"?")
    checks, text, line = checked()
    assert checks[0].images == 2 and line == ""
    (found,) = [line for line in text.splitlines() if "not supported" in line]
    assert found.startswith(f"{folder}: 3 image files in")
    assert found.endswith("(skipped: 1 .cr2, 2 .heic)")


def test_parts_that_share_a_folder_have_their_own_images(small_dataset):
    """And images that neither annotation file names are counted once."""
    folder = small_dataset / "images/train2015"
    for path in (small_dataset / "images/test2015").iterdir():
        shutil.move(path, folder)
    for name in ("x.jpg", "y.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (small_dataset / "dataset.toml").write_text(
        'name = "shared"\nvocabulary = "hico-det"\n[train]\nimages = "images/train2015"\n'
        'annotations = "annotations/trainval_hico.json"\n[test]\nimages = "images/train2015"\n'
        'annotations = "annotations/test_hico.json"\n'
    )
    dataset = open_dataset(small_dataset)
    checks = check_dataset(dataset)
    assert summarise_problems(checks) == ""
    assert [(check.name, check.images) for check in checks] == [("train", 2), ("test", 1)]
    assert f"{folder}: 2 images of no part" in format_check(dataset, checks).splitlines()


def test_a_folder_without_annotations_counts_unsupported_formats(small_dataset):
    (small_dataset / "dataset.toml").write_text(
        'name = "bare"\nvocabulary = "hico-det"\n[train]\nimages = "images/train2015"\n'
    )
    folder = small_dataset / "images/train2015"
    (folder / "c.heic").write_bytes(b"?")
    dataset = open_dataset(small_dataset)
    loaded = dataset.load("train")
    assert len(loaded.annotations) == 2
    assert "1 image file in formats that are not supported" in loaded.format_issues()
    (check,) = check_dataset(dataset)
    assert (check.images, [issue.count for issue in check.issues]) == (2, [1])
    for path in folder.glob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"found none but 1 image file .*1 \.heic"):
        dataset.load("train")
