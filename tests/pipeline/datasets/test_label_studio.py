"""Dataset folders written from exports of Label Studio."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli import data
from pipeline.datasets.check import check_dataset, summarise_problems
from pipeline.datasets.dataset import open_dataset
from pipeline.datasets.label_studio import _ing, convert_label_studio
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary


def rectangle(name, label, box, **fields):
    """A region of a 200 x 100 image; the box is x, y, width, height in percent."""
    value = dict(zip(("x", "y", "width", "height"), box, strict=True))
    value |= {"rotation": fields.pop("rotation", 0), "rectanglelabels": [label] if label else []}
    return {
        "id": name,
        "type": "rectanglelabels",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": value,
        **fields,
    }


def relation(first, second, *labels, direction="right"):
    row = {"from_id": first, "to_id": second, "type": "relation", "direction": direction}
    return row | {"labels": list(labels)}


def task(number, image, *result, **fields):
    annotation = {"id": 1, "result": list(result), "was_cancelled": False, "ground_truth": False}
    return {"id": number, "data": {"image": image}, "annotations": [annotation]} | fields


PERSON = rectangle("p", "Person", [0, 10, 50, 80])
BROKEN = PERSON | {"value": {"x": 1}}
TURNED = rectangle("b", "bicycle", [0, 0, 50, 50], image_rotation=90)
BIKE = rectangle("b", "bicycle", [25, 50, 50, 50])
SECOND = rectangle("q", "person", [50, 0, 50, 90])
RIDES = [PERSON, BIKE, relation("p", "b", "ride")]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.jpg", "b 1.jpg", "more/c.jpg"):
        Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def write_export(tmp_path):
    def write(*tasks):
        file = tmp_path / "export.json"
        file.write_text(json.dumps(tasks))
        return file

    return write


@pytest.fixture
def convert(tmp_path, images, write_export):
    """Converts tasks without a test part; gives the entries of the training part."""

    def run(*tasks, **settings):
        settings = {"test_size": 0} | settings
        convert_label_studio(write_export(*tasks), tmp_path / "out", images, **settings)
        return json.loads((tmp_path / "out/annotations/train.json").read_text())

    return run


def test_converted_folder_is_a_dataset_without_issues(tmp_path, images, write_export):
    export = write_export(
        task(1, "/data/upload/3/0a1b2c3d-a.jpg", *RIDES),
        task(
            2, "/data/upload/3/ffffffff-b_1.jpg", PERSON, BIKE, relation("p", "b", "push", "hold")
        ),
        task(3, "/data/local-files/?d=photos/more/c.jpg", PERSON),
    )
    arguments = ["convert", "label-studio", str(export), str(tmp_path / "out")]
    result = CliRunner().invoke(data, [*arguments, "--images", str(images), "--test-size", "1"])
    assert result.exit_code == 0, result.output
    dataset = open_dataset(tmp_path / "out")
    assert dataset.vocabulary.objects == ("person", "bicycle")
    assert dataset.vocabulary.category_ids == (1, 2)
    assert dataset.vocabulary.verb_ings == ("holding", "pushing", "riding")
    assert dataset.vocabulary.interaction_names == [
        ("hold", "bicycle"),
        ("push", "bicycle"),
        ("ride", "bicycle"),
    ]
    assert not summarise_problems(check_dataset(dataset, strict=True))
    loaded = {one.image_id: one for part in dataset.parts for one in dataset.load(part).annotations}
    assert set(loaded) == {"a.jpg", "b 1.jpg", "more/c.jpg"}
    assert loaded["a.jpg"].boxes.tolist() == [[0, 10, 100, 90], [50, 50, 150, 100]]
    assert loaded["a.jpg"].hois.tolist() == [[0, 1, 2]]
    assert len(loaded["b 1.jpg"].hois) == 2
    assert len(loaded["more/c.jpg"].boxes) == 1


@pytest.mark.parametrize(
    ("other", "arrow", "expected"),
    [
        (BIKE, relation("b", "p", "ride"), [(0, 1)]),
        (BIKE, relation("b", "p", "ride", direction="left"), [(0, 1)]),
        (BIKE, relation("p", "b", "ride", direction="bi"), [(0, 1)]),
        (SECOND, relation("p", "q", "hug"), [(0, 1)]),
        (SECOND, relation("p", "q", "hug", direction="left"), [(1, 0)]),
        (SECOND, relation("p", "q", "hug", direction="bi"), [(0, 1), (1, 0)]),
    ],
)
def test_person_is_the_subject_whatever_the_arrow(convert, other, arrow, expected):
    (entry,) = convert(task(1, "a.jpg", PERSON, other, arrow))
    pairs = [(row["subject_id"], row["object_id"]) for row in entry["hoi_annotation"]]
    assert pairs == expected


def test_a_broken_number_of_test_images_is_refused(convert, tmp_path):
    with pytest.raises(InputError, match="test size: expected a fraction below 1 or a wh"):
        convert(task(1, "a.jpg", *RIDES), test_size=1.5)
    assert not (tmp_path / "out").exists()


def test_rotated_rectangle_becomes_the_box_around_it(convert):
    # Its top left corner at (100, 20), 40 wide and 20 high before a quarter turn to the right.
    turned = rectangle("b", "bicycle", [50, 20, 20, 20], rotation=90)
    held = task(1, "a.jpg", PERSON, turned, relation("p", "b", "hold"))
    (entry,) = convert(held)
    assert entry["annotations"][1]["bbox"] == [80, 20, 100, 60]
    with pytest.raises(InputError, match=r"task 1.*region b.*90"):
        convert(held, strict=True, overwrite=True)


def test_ground_truth_or_latest_annotation_is_taken(convert, tmp_path):
    def annotated(number, image, *rows):
        keys = ("updated_at", "ground_truth", "was_cancelled")
        annotations = [
            {"result": [PERSON, BIKE, relation("p", "b", verb)]}
            | dict(zip(keys, fields, strict=True))
            for verb, *fields in rows
        ]
        return task(number, image, annotations=annotations)

    first = ("hold", "2026-01-02", False, False), ("ride", "2026-01-01", True, False)
    second = ("hold", "2026-01-01", False, False), ("ride", "2026-01-02", False, False)
    cancelled = ("push", "2026-01-03", False, True)
    entries = convert(
        annotated(1, "a.jpg", *first),
        annotated(2, "b 1.jpg", *second, cancelled),
        annotated(3, "c.jpg", cancelled),
    )
    assert [entry["file_name"] for entry in entries] == ["a.jpg", "b 1.jpg"]
    assert load_vocabulary(tmp_path / "out/vocabulary.json").verbs == ("ride",)


def test_rectangle_and_label_of_separate_tags_are_joined(convert):
    plain = [
        rectangle(name, None, box, type="rectangle")
        for name, box in (("p", [0, 10, 50, 80]), ("b", [25, 50, 50, 50]))
    ]
    named = []
    for row, label in zip(plain, ("person", "bicycle"), strict=True):
        value = {key: value for key, value in row["value"].items() if key != "rectanglelabels"}
        named.append(row | {"type": "labels", "value": value | {"labels": [label]}})
    (entry,) = convert(task(1, "a.jpg", *plain, *named, relation("p", "b", "ride")))
    assert [row["category_id"] for row in entry["annotations"]] == [1, 2]
    assert len(entry["hoi_annotation"]) == 1


@pytest.mark.parametrize(
    ("tasks", "facts"),
    [
        ([task(7, "z.jpg", *RIDES)], ["task 7", "z.jpg"]),
        ([{"id": 7, "image": "a.jpg", "label": []}], ["task 7", "JSON"]),
        ([task(7, "a.jpg", PERSON)], ["relations"]),
        ([task(7, "a.jpg", PERSON, TURNED)], ["task 7", "region b", "90"]),
        ([task(7, "a.jpg", BROKEN)], ["task 7", "y"]),
        ([task(7, "a.jpg", *RIDES), task(8, "a.jpg", *RIDES)], ["a.jpg", "2"]),
        ([], ["tasks"]),
    ],
)
def test_bad_exports_are_one_line_and_write_nothing(convert, tmp_path, tasks, facts):
    with pytest.raises(InputError) as error:
        convert(*tasks)
    assert "\n" not in str(error.value)
    assert all(fact in str(error.value) for fact in facts), error.value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        (relation("p", "b"), "p and b"),
        (relation("b", "b", "ride"), "bicycle"),
        (relation("p", "gone", "ride"), "gone"),
    ],
)
def test_unusable_relations_are_left_out_or_refused(convert, row, fact):
    (entry,) = convert(task(5, "a.jpg", *RIDES, row))
    assert len(entry["hoi_annotation"]) == 1
    with pytest.raises(InputError, match=rf"task 5.*{fact}"):
        convert(task(5, "a.jpg", *RIDES, row), strict=True, overwrite=True)


def test_spellings_of_a_label_are_one_label(convert, tmp_path):
    spelled = [relation("p", "b", name) for name in ("Sit_on", "sit on", "sit  on", "ride")]
    (entry,) = convert(task(1, "a.jpg", PERSON, BIKE, *spelled))
    assert len(entry["hoi_annotation"]) == 2
    words = load_vocabulary(tmp_path / "out/vocabulary.json")
    assert words.verbs == ("ride", "sit on") and words.verb_ings == ("riding", "sitting on")


def test_labels_are_matched_to_an_existing_vocabulary(convert, tmp_path):
    result = [PERSON, BIKE, relation("p", "b", "riding"), relation("p", "b", "No interaction")]
    convert(task(1, "a.jpg", *result), vocabulary=Path("hico-det"))
    dataset = open_dataset(tmp_path / "out")
    verbs = [dataset.vocabulary.verbs[row[2]] for row in dataset.load("train").annotations[0].hois]
    assert sorted(verbs) == ["no_interaction", "ride"]
    with pytest.raises(InputError, match=r"a\.jpg.*teleport"):
        result[2]["labels"] = ["teleport"]
        convert(task(1, "a.jpg", *result), vocabulary=Path("hico-det"), overwrite=True)


def test_an_existing_dataset_is_not_overwritten(convert, tmp_path):
    convert(task(1, "a.jpg", *RIDES))
    before = (tmp_path / "out/dataset.toml").read_bytes()
    with pytest.raises(InputError, match=r"dataset\.toml"):
        convert(task(1, "a.jpg", *RIDES))
    assert (tmp_path / "out/dataset.toml").read_bytes() == before


def test_ing_forms_are_those_of_published_vocabularies():
    vocabulary = load_vocabulary("hico-det")
    right = [
        _ing(verb) == ing for verb, ing in zip(vocabulary.verbs, vocabulary.verb_ings, strict=True)
    ]
    assert sum(right) >= 0.98 * len(right)
    assert _ing("jumping over") == "jumping over"
