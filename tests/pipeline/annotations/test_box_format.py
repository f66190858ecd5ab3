"""Boxes and labels in another format are recognised by their values; valid ones are accepted."""

import copy
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from evaluation.predictions import read_predictions
from evaluation.score_hico import score_hico_file
from pipeline.annotations.box_format import CXCYWH, XYWH, XYXY, BoxFormatCheck, BoxFormatError
from pipeline.annotations.load import load_annotations
from pipeline.utils.errors import InputError


@pytest.fixture(scope="module")
def hoia(hico_det_files):
    """HICO-DET's test annotations."""
    return json.loads((hico_det_files / "test_hico.json").read_text())


@pytest.fixture(scope="module")
def instances(hico_det_files):
    """The same annotations in HICO-DET's `instances` format."""
    return json.loads((hico_det_files / "instances_test2015.json").read_text())


# By the form that an error names; boxes are (x1, y1, x2, y2), sizes (width, height).
CHANGES = {
    "0 to 1": lambda box, size: np.divide(box, size * 2).tolist(),
    XYWH: lambda box, _: [box[0], box[1], box[2] - box[0], box[3] - box[1]],
    CXCYWH: lambda box, _: [
        *((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
        *(box[2] - box[0], box[3] - box[1]),
    ],
    None: lambda box, _: box,
}
unchanged = CHANGES[None]
OTHER_SCALES = {
    "thousandths": lambda box, size: (1000 * np.divide(box, size * 2)).tolist(),
    "doubled": lambda box, _: [2 * number for number in box],
}


def percent(box, size):
    return (100 * np.divide(box, size * 2)).tolist()


def wider_by_pixels(box, _):
    return [box[0], box[1], box[2] + 3, box[3] + 3]


def of_hoia(value, first, count, change, sized):
    entries = copy.deepcopy(value[first : first + count])
    for entry in entries:
        size = [entry["width"], entry["height"]]
        for row in entry["annotations"]:
            row["bbox"] = change(row["bbox"], size)
        if not sized:
            del entry["width"], entry["height"]
    return entries


def of_instances(value, first, count, change, sized):
    listed = {"filenames", "annotation", *(["size"] if sized else [])}
    shared = {key: value[key] for key in value.keys() - {"filenames", "annotation", "size"}}
    part = {key: copy.deepcopy(value[key][first : first + count]) for key in listed} | shared
    for entry, size in zip(part["annotation"], value["size"][first:], strict=False):
        for key in ("boxes_h", "boxes_o"):
            entry[key] = [change(box, size) for box in entry[key]]
    return part


@pytest.fixture(params=[of_hoia, of_instances])
def part(request):
    """`part(first, count, change, sized)`: images of the test part, in one of both formats."""
    name = request.param.__name__.removeprefix("of_")
    return partial(request.param, request.getfixturevalue(name))


@pytest.mark.parametrize("form", CHANGES)
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(("first", "count"), [(0, 40), (333, 4)])
def test_format_of_annotations(save_json, hico, part, form, sized, first, count):
    file = save_json(part(first, count, CHANGES[form], sized))
    if form is None:
        assert load_annotations(file, hico, "test").num_labels > 0
        return
    with pytest.raises(BoxFormatError) as caught:
        load_annotations(file, hico, "test")
    line = str(caught.value)
    assert str(file) in line and form in line and "pixels" in line
    lenient = load_annotations(file, hico, "test", lenient=True)
    assert line in lenient.examples.values()


def predictions(entries, change):
    return [
        {
            "file_name": entry["file_name"],
            "predictions": [
                {**row, "bbox": change(row["bbox"], [entry["width"], entry["height"]])}
                for row in entry["annotations"]
            ],
            "hoi_prediction": [{**row, "score": 0.5} for row in entry["hoi_annotation"]],
        }
        for entry in entries
    ]


@pytest.mark.parametrize("form", CHANGES)
@pytest.mark.parametrize("count", [1, 40])
def test_format_of_predictions(save_json, hico, hoia, form, count):
    file = save_json(predictions(hoia[:count], CHANGES[form]), "predictions.json")
    if form is None:
        assert len(read_predictions(file, hico)) == count
        return
    with pytest.raises(InputError) as caught:
        read_predictions(file, hico)
    assert str(file) in str(caught.value) and form in str(caught.value)


@pytest.mark.parametrize("change", OTHER_SCALES.values(), ids=OTHER_SCALES)
def test_annotations_of_another_scale(save_json, hico, part, change):
    file = save_json(part(0, 40, change, True))
    with pytest.raises(BoxFormatError, match=r"\d+ of \d+ boxes outside .* of \d+ x \d+") as caught:
        load_annotations(file, hico, "test")
    assert str(file) in str(caught.value)
    load_annotations(save_json(part(0, 40, wider_by_pixels, True)), hico, "test")


def test_percent(save_json, hico, hoia, part):
    file = save_json(part(0, 40, percent, True))
    with pytest.raises(BoxFormatError, match="0 to 100 ") as caught:
        load_annotations(file, hico, "test")
    assert str(file) in str(caught.value)
    file = save_json(predictions(hoia[:40], percent), "predictions.json")
    truth = save_json(of_hoia(hoia, 0, 40, unchanged, True), "truth.json")
    with pytest.raises(BoxFormatError, match="0 to 100 ") as caught:
        score_hico_file(file, truth, vocabulary="hico-det")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("change", OTHER_SCALES.values(), ids=OTHER_SCALES)
@pytest.mark.parametrize("declared", [True, False])
def test_predictions_of_another_scale(save_json, hico, hoia, change, declared):
    file = save_json(predictions(hoia[:40], change), "predictions.json")
    truth = save_json(of_hoia(hoia, 0, 40, unchanged, declared), "truth.json")
    if not declared:
        score_hico_file(file, truth, vocabulary="hico-det")
        return
    size = f"{hoia[0]['width']} x {hoia[0]['height']}"
    with pytest.raises(
        BoxFormatError, match=f"first {hoia[0]['file_name']}: .* of {size}"
    ) as caught:
        score_hico_file(file, truth, vocabulary="hico-det")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("form", "sized", "named"),
    [
        (CXCYWH, False, f"{XYWH} or {CXCYWH}"),
        (CXCYWH, True, CXCYWH),
        (XYWH, False, XYWH),
        (XYWH, True, XYWH),
    ],
)
def test_error_names_all_formats_that_fit(save_json, hico, hoia, form, sized, named):
    """Without image sizes, boxes given by centres also fit as corner and sides, not vice versa."""
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in hoia[:40]}
    file = save_json(predictions(hoia[:40], CHANGES[form]), "predictions.json")
    with pytest.raises(BoxFormatError, match=re.escape(f"found {named}: ")):
        read_predictions(file, hico, sizes if sized else None)


def swapped(entries, key):
    changed = copy.deepcopy(entries)
    for entry in changed:
        for row in entry[key]:
            row["subject_id"], row["object_id"] = row["object_id"], row["subject_id"]
    return changed


def test_swapped_roles_are_refused(save_json, hico, hoia):
    file = save_json(swapped(hoia[:5], "hoi_annotation"))
    with pytest.raises(BoxFormatError, match="subject and object swapped"):
        load_annotations(file, hico, "test")
    entries = swapped(predictions(hoia[:40], unchanged), "hoi_prediction")
    file = save_json(entries, "predictions.json")
    with pytest.raises(InputError, match="subject and object swapped"):
        read_predictions(file, hico)


def test_format_of_coco_boxes(save_json, hico):
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 300, (30, 2))
    last = np.minimum(first + rng.uniform(20, 300, (30, 2)), [640, 480])
    xywh = np.concatenate([first, last - first], axis=1)
    shares = xywh / [640, 480, 640, 480]
    image = {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}
    for boxes, form in ((np.hstack([first, last]), XYXY), (shares, "0 to 1"), (xywh, None)):
        rows = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes.tolist()]
        file = save_json({"images": [image], "annotations": rows, "categories": []})
        if form is None:
            assert len(load_annotations(file, hico, "train").annotations[0].boxes) == 30
            continue
        with pytest.raises(BoxFormatError, match=re.escape(form)):
            load_annotations(file, hico, "train")


@pytest.mark.parametrize("size", [(12, 12), (1, 1), None])
def test_small_images_and_few_boxes_are_accepted(size):
    """Boxes of tiny images, and single invalid boxes among few."""
    form = BoxFormatCheck(XYXY)
    form.add(np.array([[0, 0, 1, 1]] if size == (1, 1) else [[0, 0, 1, 1], [0, 3, 9, 9]]), size)
    form.check(Path("a.json"), "bbox")
    flawed = BoxFormatCheck(XYXY)
    flawed.add(np.array([[5, 5, 5, 5], [7, 2, 3, 9], [0, 0, 0, 0], [1, 1, 9, 9]]), size)
    flawed.check(Path("a.json"), "bbox")


@pytest.mark.parametrize("form", ["0 to 1", XYWH])
def test_other_format_in_a_part_of_the_images_is_refused(save_json, hico, hoia, form):
    entries = of_hoia(hoia, 0, 30, CHANGES[form], True) + of_hoia(hoia, 30, 70, unchanged, True)
    with pytest.raises(BoxFormatError, match=re.escape(form)):
        load_annotations(save_json(entries), hico, "test")


def test_boxes_without_area_are_accepted(save_json, hico, hoia):
    entries = of_hoia(hoia, 0, 40, unchanged, False)
    for entry in entries[::2]:
        for row in entry["annotations"]:
            row["bbox"][2] = row["bbox"][0]
    assert load_annotations(save_json(entries), hico, "test").num_labels > 0
