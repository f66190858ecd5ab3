import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.dataset import open_dataset
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.proposals import (
    AMBIGUOUS_NUMBER,
    NOT_ANNOTATED,
    PROPOSAL_DTYPE,
    image_index_by_key,
    load_proposals,
    read_proposals,
)

IMAGES = {"a.jpg": 0, 5: 0, "b.jpg": 1, 6: 1, "c.jpg": NOT_ANNOTATED, 7: AMBIGUOUS_NUMBER}
SIZES = np.array([[100.0, 50.0], [np.inf, np.inf]])
HICO = load_vocabulary("hico-det")
# In the dataset folder of the tests.
ANNOTATIONS = "annotations/trainval_hico.json"
GOOD = {"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.fixture
def read(tmp_path):
    """Writes a list of entries, or a text, to a file and reads it."""

    def call(entries, vocabulary=HICO, **options):
        path = tmp_path / "results.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        return read_proposals(path, IMAGES, lambda images: SIZES[images], vocabulary, **options)

    return call


def entry(**changes):
    return {**GOOD, **changes}


def test_an_empty_list(read, tmp_path):
    found = read([])
    assert found.rows.shape == (0,) and found.rows.dtype == PROPOSAL_DTYPE
    assert [len(boxes.labels) for boxes in found.by_image()] == [0, 0]
    assert found.digest == sha256_of_file(tmp_path / "results.json")


def test_detections_by_image(read):
    found = read(
        [
            entry(image_id="b.jpg", category_id=18, bbox=[10, 20, 30.5, 40], score=1),
            entry(extra="ignored"),
            entry(image_id=6, score=0),
            entry(bbox=[0, 0, 100, 50], score=0.25),
        ]
    )
    first, second = found.by_image()
    assert first.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 100, 50]]
    assert first.scores.tolist() == [0.5, 0.25]
    assert second.boxes.tolist() == [[10, 20, 40.5, 60], [1, 2, 4, 6]]
    assert [HICO.objects[label] for label in second.labels] == ["dog", "person"]
    assert not +found.issue_counts
    assert found.summary("f.json") == "f.json: 4 detections in 2 of 2 images"


def test_boxes_outside_the_image_are_clipped_and_counted(read):
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
    first, second = found.by_image()
    assert first.boxes.tolist() == [[0, 0, 15, 15], [90, 40, 100, 50], [90, 40, 100, 50]]
    assert second.boxes.tolist() == [[900, 900, 1900, 1900]]
    line = found.summary("f.json")
    assert "4 detections in 2 of 2 images, 2 boxes over the image's edge (clipped)" in line
    assert "2 boxes without area (dropped)" in line


@pytest.mark.parametrize("bbox", [[-5, 0, 20, 20], [10, 10, 0, 20], [200, 10, 20, 20]])
def test_strict_reading_refuses_boxes_that_would_be_clipped_or_dropped(read, bbox):
    with pytest.raises(InputError, match=r"entry 1\.bbox: expected"):
        read([GOOD, entry(bbox=bbox)], strict=True)
    assert len(read([GOOD], strict=True).rows) == 1


def test_other_images_and_coco_objects_are_left_out(read):
    subset = replace(HICO, objects=HICO.objects[:3], category_ids=HICO.category_ids[:3])
    missing = HICO.category_ids[10]
    found = read([entry(category_id=missing), entry(image_id="c.jpg"), GOOD], subset)
    assert len(found.rows) == 1
    line = found.summary("f")
    assert "1 detection of COCO objects that the vocabulary does not" in line
    assert "1 detection of images outside the annotated part (left out)" in line
    with pytest.raises(InputError, match=r"entry 0\.category_id: expected"):
        read([entry(category_id=12)], subset)


@pytest.mark.parametrize(
    ("wrong", "field", "facts"),
    [
        ("fish", "", "an object"),
        ({}, ".image_id", "missing"),
        ({"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}, ".score", "missing"),
        (entry(image_id="z.jpg"), ".image_id", "the file name or the number"),
        (entry(image_id=99), ".image_id", "the file name or the number"),
        (entry(image_id=True), ".image_id", "found True"),
        (entry(image_id=7), ".image_id", "a file name, because several"),
        (entry(category_id=12), ".category_id", "an object id of hico-det"),
        (entry(category_id="1"), ".category_id", "a whole number"),
        (entry(bbox=[1, 2, 3]), ".bbox", "four finite numbers"),
        (entry(bbox=[1, 2, 3, "4"]), ".bbox", "four finite numbers"),
        (entry(bbox=[1, 2, 3, float("nan")]), ".bbox", "four finite numbers"),
        (entry(bbox=[1, float("inf"), 3, 4]), ".bbox", "four finite numbers"),
        (entry(bbox=[1, 10**400, 3, 4]), ".bbox", "four finite numbers"),
        (entry(bbox=[10, 10, -3, 4]), ".bbox", "sides >= 0"),
        (entry(score=1.5), ".score", "from 0 to 1, found 1.5"),
        (entry(score=float("nan")), ".score", "from 0 to 1"),
        (entry(score=None), ".score", "from 0 to 1"),
    ],
)
def test_wrong_entries(read, wrong, field, facts):
    with pytest.raises(InputError, match=r"results\.json: ") as caught:
        read([GOOD, wrong, GOOD])
    line = str(caught.value)
    assert f"entry 1{field}: expected" in line and facts in line and "\n" not in line


@pytest.mark.parametrize(
    "text", ["", "{}", '{"annotations": []}', "[", json.dumps([GOOD] * 9)[:-30], "[1, 2", "nan"]
)
def test_files_without_a_list(read, text):
    with pytest.raises(InputError, match=r"results\.json: ") as caught:
        read(text)
    assert "\n" not in str(caught.value)


def annotation(name, number=None):
    empty = np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros((0, 3), int)
    return Annotation(name, *empty, coco_image_id=number)


NAMES = ("HICO_train2015_00000015.jpg", "COCO_val2014_000000581929.jpg", "part_2/12.png", "0.jpg")


@pytest.mark.parametrize(
    ("annotations", "others", "keys"),
    [
        ([], [], {}),
        ([annotation(NAMES[0])], [], {NAMES[0]: 0, 15: 0}),
        ([annotation(NAMES[1])], [], {NAMES[1]: 0, 581929: 0}),
        ([annotation(NAMES[2]), annotation(NAMES[3])], [], {NAMES[2]: 0, 12: 0, NAMES[3]: 1, 0: 1}),
        ([annotation("cat.jpg"), annotation("7cat.jpg")], [], {"cat.jpg": 0, "7cat.jpg": 1}),
        (
            [annotation("a_2.jpg")],
            ["a_2.jpg", "a_3.jpg"],
            {"a_2.jpg": 0, 2: 0, "a_3.jpg": NOT_ANNOTATED, 3: NOT_ANNOTATED},
        ),
        (
            [annotation("a_2.jpg"), annotation("b_2.jpg")],
            [],
            {"a_2.jpg": 0, "b_2.jpg": 1, 2: AMBIGUOUS_NUMBER},
        ),
        # Ids of the annotation file replace numbers in file names.
        (
            [annotation("a_2.jpg", 9), annotation("a_9.jpg", 2)],
            ["a_4.jpg"],
            {"a_2.jpg": 0, "a_9.jpg": 1, 9: 0, 2: 1, "a_4.jpg": NOT_ANNOTATED},
        ),
    ],
)
def test_keys_of_images(annotations, others, keys):
    assert image_index_by_key(annotations, others) == keys


@pytest.fixture
def load(dataset, tmp_path):
    """Loads a detections file with one wide box for each image."""
    entries = [
        {"image_id": number, "category_id": 1, "bbox": [100, 90, 300, 20], "score": 0.5}
        for number in range(1, 8)
    ]
    (tmp_path / "results.json").write_text(json.dumps(entries))

    def call():
        data = open_dataset(dataset)
        file = tmp_path / "results.json"
        return load_proposals(file, data, data.load("train"), strict=False)

    return call


def widths(proposals):
    return [box.boxes[0, 2] for box in proposals.by_image()]


def test_boxes_are_clipped_to_the_files_sizes_without_annotated_ones(dataset, load):
    assert widths(load()) == [128] * 7
    path = dataset / ANNOTATIONS
    entries = json.loads(path.read_text())
    for entry in entries:
        del entry["width"], entry["height"]
    path.write_text(json.dumps(entries))
    images = sorted((dataset / "images/train2015").iterdir())
    Image.new("RGB", (200, 128)).save(images[0])
    images[1].write_bytes(b"not an image")
    images[2].unlink()
    assert widths(load()) == [200, 400, 400, 128, 128, 128, 128]
