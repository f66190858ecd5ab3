import json

import numpy as np
import pytest
from PIL import Image

from pipeline.annotations.load import load_annotations
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

# injecting syringe: action 169 and object 31, interaction 0.
ENTRY = {
    "file_name": "injecting_1.jpg",
    "img_id": 7,
    "width": 100,
    "height": 80,
    "box_annotations": [
        {"bbox": [10, 20, 30, 60], "category_id": 0, "aux_category_id": []},
        {"bbox": [5, 40, 50, 70.5], "category_id": 31, "aux_category_id": [2, 7]},
    ],
    "hoi_annotations": [{"subject_id": 0, "object_id": 1, "action_id": 169}],
}
EMPTY = {**ENTRY, "file_name": "b.jpg", "img_id": 8, "box_annotations": [], "hoi_annotations": []}
BOX, LABEL = ("box_annotations", 1, "bbox"), ("hoi_annotations", 0)


@pytest.fixture(scope="module")
def swig():
    return load_vocabulary("swig-hoi")


@pytest.fixture
def read(save_json, swig):
    def run(*entries, **options):
        return load_annotations(save_json(entries), swig, "test", **options)

    return run


def test_ids_count_from_0(read):
    file = read(ENTRY, strict=True)
    (one,) = file.annotations
    np.testing.assert_array_equal(one.boxes, np.float32([[10, 20, 30, 60], [5, 40, 50, 70.5]]))
    assert one.labels.tolist() == [0, 31] and one.hois.tolist() == [[0, 1, 169]]
    assert (one.image_id, one.size, one.coco_image_id) == ("injecting_1.jpg", (100, 80), 7)
    (image,) = file.swig_images
    assert (image.id, image.name, image.size) == (7, "injecting_1.jpg", (100, 80))
    assert image.pairs.tolist() == [[0, 1]] and image.interactions.tolist() == [0]


def test_images_without_labels_are_only_in_the_ground_truth(read):
    boxes_only = {**ENTRY, "file_name": "c.jpg", "img_id": 9, "hoi_annotations": []}
    bare = {key: EMPTY[key] for key in ("file_name", "width", "height")} | {"img_id": 3}
    bare["file_name"] = "d.jpg"
    # The first entry may be the bare one.
    assert read(bare, ENTRY).unlabelled == {"d.jpg"}
    file = read(ENTRY, EMPTY, boxes_only, bare)
    assert [one.image_id for one in file.annotations] == ["injecting_1.jpg"]
    assert file.unlabelled == {"b.jpg", "c.jpg", "d.jpg"}
    assert [image.id for image in file.swig_images] == [7, 8, 9, 3]
    assert [len(image.interactions) for image in file.swig_images] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["file_name"], "../a.jpg", "entry 0: file_name: .* below the images folder"),
        (["file_name"], "./b.jpg", "entry 1: file_name: expected every image once, found b.jpg"),
        (["img_id"], "7", "injecting_1.jpg: img_id: expected a whole number, found '7'"),
        (["img_id"], 8, "b.jpg: img_id: expected every image once, found 8 a second time"),
        (["width"], ..., "injecting_1.jpg: width: .*the key is missing"),
        (BOX, [1, 2, 3], r"box_annotations\[1\].bbox: expected .*found \[1, 2, 3\]"),
        (["box_annotations", 1, "category_id"], 1000, r"\[1\].category_id: .*from 0 to 999"),
        ([*LABEL, "action_id"], 407, r"hoi_annotations\[0\].action_id: .*from 0 to 406, found 407"),
        ([*LABEL, "subject_id"], ..., r"hoi_annotations\[0\].subject_id: .*missing"),
    ],
)
def test_structural_errors_name_file_image_and_field(read, changed, path, value, message):
    with pytest.raises(InputError, match=message) as error:
        read(changed(ENTRY, path, value), EMPTY)
    assert "annotations.json" in str(error.value) and "\n" not in str(error.value)
    assert read(changed(ENTRY, path, value), EMPTY, lenient=True).entry_errors.total() == 1


# A change, the kind of the issue, and the numbers of labels left in training and in the scores.
ISSUES = [
    (BOX, [-5, 40, 50, 70], "1 box over the image's edge", 1, 1),
    (BOX, [5, 40, 5, 70], "1 box without area", 0, 1),
    ([*LABEL, "object_id"], 2, "box index out of range", 0, 0),
    ([*LABEL, "object_id"], -1, "box index out of range", 0, 0),
    ([*LABEL, "action_id"], 3, "1 label of no interaction of the vocabulary", 0, 0),
    ([*LABEL, "subject_id"], 1, "1 label whose subject is not a person", 0, 1),
    (["hoi_annotations"], ENTRY["hoi_annotations"] * 2, "1 repeated label ", 1, 2),
]


@pytest.mark.parametrize(("path", "value", "kind", "trained", "scored"), ISSUES)
def test_issues_are_repaired_for_training_and_kept_for_scores(
    read, changed, path, value, kind, trained, scored
):
    entry = changed(ENTRY, path, value)
    file = read(entry, EMPTY)
    assert kind in file.format_issues() and len(file.annotations[0].hois) == trained
    assert (file.annotations[0].boxes >= 0).all()
    assert len(file.swig_images[0].interactions) == scored
    given = [row["bbox"] for row in entry["box_annotations"]]
    assert file.swig_images[0].boxes.tolist() == given
    with pytest.raises(InputError, match=r"annotations.json: injecting_1.jpg: \w+\[\d\]"):
        read(entry, EMPTY, strict=True)


def test_limited_files_have_the_ground_truth_of_their_images(read):
    entries = [{**ENTRY, "file_name": f"{n}.jpg", "img_id": n} for n in range(6)]
    file = read(*entries, EMPTY).limited(2)
    assert [one.image_id for one in file.annotations] == ["0.jpg", "3.jpg"]
    assert [image.id for image in file.swig_images] == [0, 3]


def test_a_dataset_folder_with_boxes_in_stored_pixels(tmp_path, swig):
    """The published layout, and the same with `orientation`."""
    (tmp_path / "images_512").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/swig_test_1000.json").write_text(json.dumps([ENTRY, EMPTY]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(tmp_path / "images_512/injecting_1.jpg", exif=exif)
    dataset = open_dataset(tmp_path)
    assert dataset.vocabulary.digest() == swig.digest()
    file = dataset.load("test")
    assert file.swig_images[0].boxes[0].tolist() == [10, 20, 30, 60]
    (tmp_path / "dataset.toml").write_text(
        'vocabulary = "swig-hoi"\norientation = "stored"\n[test]\nimages = "images_512"\n'
        'annotations = "annotations/swig_test_1000.json"\n'
    )
    turned = open_dataset(tmp_path).load("test")
    assert turned.swig_images[0].boxes[0].tolist() == [20, 10, 60, 30]
    assert turned.annotations[0].boxes[0].tolist() == [20, 10, 60, 30]
