"""Declared image sizes and orientations compared with those of the image files."""

import json

import numpy as np
import pytest

from pipeline.boxes import boxes_to_upright
from pipeline.datasets.check import check_dataset, format_check, summarise_problems
from pipeline.datasets.dataset import open_dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.images import read_image
from pipeline.types import Detections
from pipeline.utils.errors import InputError

SIZE = (60, 40)
BOXES = [[5.0, 3.0, 25.0, 33.0], [20.0, 10.0, 58.0, 30.0]]


def sizes_of(dataset):
    return check_image_sizes(dataset, dataset.load("test"))


@pytest.mark.parametrize("declared", [SIZE, None])
def test_stored_boxes_are_rotated_with_their_images(turned, declared):
    dataset = turned(range(1, 9), "stored", declared)
    for annotation in dataset.load("test").annotations:
        image = np.asarray(read_image(dataset.root / "test" / annotation.image_id))
        x1, y1, x2, y2 = annotation.boxes[0].astype(int)
        red = image[..., 0] == 250
        assert red[y1:y2, x1:x2].all() and red.sum() == (x2 - x1) * (y2 - y1)
        upright = (image.shape[1], image.shape[0])
        assert annotation.size == (upright if declared else None)
        assert annotation.hois.tolist() == [[0, 1, 71]]


def test_predictions_are_written_in_stored_pixels_and_read_back(turned):
    dataset = turned(range(1, 9), "stored")
    upright = [
        Detections(one.image_id, one.boxes, one.labels, one.hois, np.ones(1, np.float32))
        for one in dataset.load("test").annotations
    ]
    stored = dataset.detections_to_file("test", upright)
    for one in stored:
        np.testing.assert_allclose(one.boxes, BOXES)
    for one, other in zip(dataset.detections_to_upright("test", stored), upright, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes)


def test_boxes_are_upright_by_default(turned):
    dataset = turned(range(1, 9), declared=None)
    (held, *_) = loaded = dataset.load("test").annotations
    assert all(one.boxes.tolist() == BOXES for one in loaded)
    detections = [Detections(held.image_id, held.boxes, held.labels, held.hois, np.ones(1))]
    assert dataset.detections_to_file("test", detections)[0].boxes is held.boxes


def test_digest_depends_on_the_orientation(turned):
    digests = [turned([6], key).load("test").digest for key in (None, "upright", "stored")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("key", [None, "upright", "stored"])
def test_declared_sizes_of_the_other_orientation_are_refused(turned, orientation, key):
    declared = SIZE[::-1] if key == "stored" else SIZE
    dataset = turned([orientation, 1, 3], key, [declared, SIZE, SIZE])
    with pytest.raises(InputError) as caught:
        sizes_of(dataset).raise_errors()
    other = "upright" if key == "stored" else "stored"
    line = str(caught.value)
    assert f'set orientation = "{other}"' in line and "1 of 3" in line and "000.png" in line
    assert f"declared {declared[0]} x {declared[1]}" in line and "60 x 40" in line
    right = turned([orientation, 1, 3], other, [declared, SIZE, SIZE])
    sizes_of(right).raise_errors()


def test_declared_sizes_confirm_the_orientation(turned):
    found = sizes_of(turned([6, 8, 1], None, [SIZE[::-1], SIZE[::-1], SIZE]))
    found.raise_errors(strict=True)
    assert list(found.warnings()) == [] and found.unusable == {}


def test_other_images_that_confirm_the_orientation_make_it_a_wrong_size(turned):
    found = sizes_of(turned([6, 6], None, [SIZE[::-1], SIZE]))
    assert list(found.size_mismatch) == ["001.png"] and not found.orientation_mismatch


@pytest.mark.parametrize(
    ("orientations", "declared", "size", "count"),
    [
        ([2, 3, 4, 1], SIZE, SIZE, 3),
        ([6, 8, 1, 1], (60, 60), (60, 60), 2),
        ([1, 2, 3, 4, 5, 6, 7, 8], None, SIZE, 7),
    ],
)
@pytest.mark.parametrize("key", [None, "stored"])
def test_unknown_orientation_of_boxes_gives_one_warning(
    turned, orientations, declared, size, count, key
):
    found = sizes_of(turned(orientations, key, declared, size))
    found.raise_errors(strict=True)
    lines = list(found.warnings())
    assert f"{count} of {len(orientations)} images" in lines[0]
    assert f'orientation = "{key or "upright"}"' in lines[0]
    assert found.unusable == {}


def test_boxes_that_fit_the_other_orientation_only_give_a_warning(turned):
    """The second box ends at x = 58 of 60 stored pixels, but the upright image is 40 wide."""
    found = sizes_of(turned([6, 8, 3, 1], None, None))
    assert found.fit_other == ["000.png", "001.png"]
    assert '"stored"' in list(found.warnings())[1]
    assert sizes_of(turned([6, 8, 3, 1], "stored", None)).fit_other == []


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_of_another_scale_are_refused_without_declared_sizes(turned, scale, orientation):
    dataset = turned([orientation] * 4, "stored", None, (60 // scale, 40 // scale))
    if scale == 1:
        sizes_of(dataset).raise_errors()
        assert summarise_problems(check_dataset(dataset)) == ""
        return
    with pytest.raises(InputError) as caught:
        sizes_of(dataset).raise_errors()
    facts = ("test.json", "8 of 8 boxes", "[5, 3, 25, 33]", "30 x 20")
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)
    assert "8 of 8 boxes" in summarise_problems(check_dataset(dataset))


@pytest.mark.parametrize("factor", [2, 0.5])
def test_part_with_too_many_wrong_sizes_is_refused(turned, factor):
    other = tuple(int(factor * side) for side in SIZE)
    many = turned([1] * 99, declared=[other] * 2 + [SIZE] * 97)
    with pytest.raises(InputError) as caught:
        sizes_of(many).raise_errors()
    line = str(caught.value)
    assert f"{other[0]} x {other[1]}" in line and "60 x 40" in line and "2 of 99" in line
    few = sizes_of(turned([1] * 100, declared=[other] + [SIZE] * 99))
    few.raise_errors()
    (line,) = few.warnings()
    assert "1 of 100" in line and "000.png" in line and list(few.unusable) == ["000.png"]
    with pytest.raises(InputError, match=r"000\.png"):
        few.raise_errors(strict=True)


def test_check_lists_all_wrong_sizes(turned):
    dataset = turned([6, 6, 3, 1], declared=[SIZE, SIZE, SIZE, (120, 80)])
    (check,) = checks = check_dataset(dataset)
    assert sorted(one.count for one in check.issues) == [1, 1, 2, 2]
    text = format_check(dataset, checks)
    for name, text_of_sizes in (
        ("000", "declared 60 x 40"),
        ("001", "declared 60 x 40"),
        ("003", "declared 120 x 80, the file has 60 x 40"),
    ):
        assert f"  {dataset.root}/test/{name}.png: {text_of_sizes}" in text
    assert "orientation" in summarise_problems(checks) and len(check.problems) == 2


def in_instances():
    entry = {"boxes_h": [BOXES[0]], "boxes_o": [BOXES[1]], "hoi": [0], "object": [0], "verb": [0]}
    return {
        "filenames": ["000.png"],
        "size": [list(SIZE)],
        "objects": ["bicycle"],
        "verbs": ["ride"],
        "correspondence": [[0, 0, 0]],
        "annotation": [entry],
    }


def in_coco():
    rows = [
        {"id": number, "image_id": 1, "category_id": 1 + number, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for number, (x1, y1, x2, y2) in enumerate(BOXES)
    ]
    image = {"id": 1, "file_name": "000.png", "width": SIZE[0], "height": SIZE[1]}
    return {"images": [image], "annotations": rows, "categories": []}


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("make", [in_instances, in_coco])
def test_boxes_of_every_format_are_rotated(turned, make, orientation):
    dataset = turned([orientation], "stored")
    (dataset.root / "test.json").write_text(json.dumps(make()))
    (annotation,) = dataset.load("test").annotations
    expected = boxes_to_upright(np.array(BOXES), orientation, SIZE)
    np.testing.assert_allclose(annotation.boxes, expected)
    sizes_of(dataset).raise_errors(strict=True)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_vcoco_boxes_are_rotated(turned, write_vcoco, orientation):
    root = turned([orientation], "stored").root
    boxes = [(1, [5, 3, 20, 30]), (44, [20, 10, 38, 20])]
    image = {"name": "000.png", "size": SIZE, "boxes": boxes, "does": {(0, "hold"): [1]}}
    actions = write_vcoco(root, [image])
    text = (root / "dataset.toml").read_text().replace("hico-det", "vcoco")
    (root / "dataset.toml").write_text(text.replace("test.json", str(actions)))
    dataset = open_dataset(root)
    corners = [[x, y, x + w - 1, y + h - 1] for _, (x, y, w, h) in boxes]
    expected = boxes_to_upright(np.array(corners, dtype=float), orientation, SIZE)
    (annotation,) = dataset.load("test").annotations
    np.testing.assert_allclose(annotation.boxes, expected)
    np.testing.assert_allclose(dataset.vcoco_ground_truth("test").images[0].boxes, expected)
