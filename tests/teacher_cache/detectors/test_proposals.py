import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.proposals import (
    AMBIGUOUS_NUMBER,
    NOT_ANNOTATED,
    PROPOSAL_DTYPE,
    read_proposals,
)

IMAGES = {"a.jpg": 0, 5: 0, "b.jpg": 1, 6: 1, "c.jpg": NOT_ANNOTATED, 7: AMBIGUOUS_NUMBER}
SIZES = np.array([[100.0, 50.0], [np.inf, np.inf]])
HICO = load_vocabulary("hico-det")
GOOD = {"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.fixture
def read(tmp_path):
    """Reads a list of entries, or a text, from a file."""

    def call(entries, vocabulary=HICO, **options):
        path = tmp_path / "results.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        return read_proposals(path, IMAGES, lambda images: SIZES[images], vocabulary, **options)

    return call


def entry(**changes):
    return {**GOOD, **changes}


def test_an_empty_list(read, tmp_path):
    found = read([])
    assert len(found.rows) == 0 and found.rows.dtype == PROPOSAL_DTYPE
    assert [len(boxes.labels) for boxes in found.by_image(3)] == [0, 0, 0]
    assert found.digest == sha256_of_file(tmp_path / "results.json")
    assert found.summary("f.json", 3) == "f.json: 0 detections in 0 of 3 images"


def test_detections_by_image(read):
    found = read(
        [
            entry(image_id="b.jpg", category_id=18, bbox=[10, 20, 30.5, 40], score=1),
            entry(extra="ignored"),
            entry(image_id=6, score=0),
            entry(bbox=[0, 0, 100, 50], score=0.25),
        ]
    )
    first, second, third = found.by_image(3)
    assert first.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 100, 50]]
    assert first.scores.tolist() == [0.5, 0.25]
    assert second.boxes.tolist() == [[10, 20, 40.5, 60], [1, 2, 4, 6]]
    assert [HICO.objects[label] for label in second.labels] == ["dog", "person"]
    assert len(third.labels) == 0 and third.boxes.shape == (0, 4)
    assert not +found.issue_counts
    assert found.summary("f.json", 3) == "f.json: 4 detections in 2 of 3 images"


def test_boxes_over_the_edge_are_clipped_and_counted(read):
    found = read(
        [
            entry(bbox=[-5, -5, 20, 20]),
            entry(bbox=[90, 40, 20, 20]),
            entry(bbox=[90, 40, 10.004, 10]),
            entry(bbox=[200, 10, 20, 20]),
            entry(bbox=[10, 10, 0, 20]),
            entry(image_id=6, bbox=[900, 900, 1000, 1000]),
        ]
    )
    first, second, _ = found.by_image(3)
    assert first.boxes.tolist() == [[0, 0, 15, 15], [90, 40, 100, 50], [90, 40, 100, 50]]
    assert second.boxes.tolist() == [[900, 900, 1900, 1900]]
    line = found.summary("f.json", 3)
    assert "4 detections in 2 of 3 images, 2 boxes over the image's edge (clipped)" in line
    assert "2 boxes without area (dropped)" in line


@pytest.mark.parametrize("bbox", [[-5, 0, 20, 20], [10, 10, 0, 20], [200, 10, 20, 20]])
def test_strict(read, bbox):
    with pytest.raises(InputError, match="entry 1: bbox: expected"):
        read([GOOD, entry(bbox=bbox)], strict=True)
    assert len(read([GOOD], strict=True).rows) == 1


def test_images_that_are_not_annotated_are_left_out(read):
    found = read([entry(image_id="c.jpg"), GOOD])
    assert len(found.rows) == 1
    assert "1 detections of images that are not annotated (left out)" in found.summary("f", 3)


def test_other_objects_of_coco_are_left_out_of_a_part_of_them(read):
    few = replace(HICO, objects=HICO.objects[:3], category_ids=HICO.category_ids[:3])
    missing = HICO.category_ids[10]
    found = read([entry(category_id=missing), GOOD], few)
    assert len(found.rows) == 1
    assert "1 detections of COCO objects that the vocabulary does not" in found.summary("f", 3)
    with pytest.raises(InputError, match="entry 0: category_id: expected"):
        read([entry(category_id=12)], few)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("fish", "entry 1: expected an object with image_id, category_id, bbox, score, found fish"),
        (None, "entry 1: expected an object"),
        ({}, "entry 1: image_id: expected an object with image_id"),
        ({"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}, "entry 1: score: expected"),
        (entry(image_id="z.jpg"), "entry 1: image_id: expected the file name or the number"),
        (entry(image_id=99), "entry 1: image_id: expected the file name or the number"),
        (entry(image_id=True), "entry 1: image_id: expected the file name or the number"),
        (entry(image_id=[5]), "entry 1: image_id: expected the file name or the number"),
        (entry(image_id=7), "entry 1: image_id: expected a file name, for several images"),
        (entry(category_id=12), "entry 1: category_id: expected an object id of hico-det"),
        (entry(category_id=0), "entry 1: category_id: expected an object id"),
        (entry(category_id="1"), "entry 1: category_id: expected an object id"),
        (entry(category_id=True), "entry 1: category_id: expected an object id"),
        (entry(bbox=[1, 2, 3]), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox="1234"), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox=None), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox=[1, 2, 3, "4"]), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox=[1, 2, 3, True]), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox=[1, 2, 3, float("nan")]), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox=[1, float("inf"), 3, 4]), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox=[1, 10**400, 3, 4]), "entry 1: bbox: expected four finite numbers"),
        (entry(bbox=[10, 10, -3, 4]), "entry 1: bbox: expected [x, y, width, height], sides"),
        (entry(bbox=[10, 10, 3, -0.5]), "entry 1: bbox: expected [x, y, width, height], sides"),
        (entry(score=1.5), "entry 1: score: expected a number from 0 to 1, found 1.5"),
        (entry(score=-0.1), "entry 1: score: expected a number from 0 to 1"),
        (entry(score=float("nan")), "entry 1: score: expected a number from 0 to 1"),
        (entry(score="high"), "entry 1: score: expected a number from 0 to 1"),
        (entry(score=None), "entry 1: score: expected a number from 0 to 1"),
    ],
)
def test_wrong_entries(read, wrong, says):
    with pytest.raises(InputError, match=r"results\.json: ") as caught:
        read([GOOD, wrong, GOOD])
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"annotations": []}', "[", json.dumps([GOOD] * 9)[:-30], "[1, 2", "nan"]
)
def test_files_that_are_no_list(read, text):
    with pytest.raises(InputError, match=r"results\.json: ") as caught:
        read(text)
    assert "\n" not in str(caught.value)
