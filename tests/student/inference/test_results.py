import json
import sys

import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.canvas import UNSEEN_COLOUR
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from student.inference.results import build_result

PICTURE = Image.new("RGB", (600, 400), (120, 120, 120))
GREY = [(600 * 400, (120, 120, 120))]
BOXES = [[10, 20, 110.123, 220], [150, 30, 260, 140], [300, 100, 400, 300], [420, 50, 500, 90]]
ROWS = [(0, 1, "ride", 0.9), (2, 3, "kick", 0.75), (0, 1, "pull", 0.25)]


@pytest.fixture
def detect(vocabulary):
    """`detect((person, object, verb, score), ...)` with boxes of person, horse, person, ball."""

    def make(*rows):
        labels = [vocabulary.objects.index(name) for name in ("person", "horse", "person", "ball")]
        return Detections(
            image_id="a.jpg",
            boxes=np.array(BOXES, dtype=np.float32),
            labels=np.array(labels),
            hois=np.array(
                [[p, o, vocabulary.verbs.index(verb)] for p, o, verb, _ in rows], dtype=np.int64
            ).reshape(-1, 3),
            scores=np.array([row[3] for row in rows], dtype=np.float32),
        )

    return make


@pytest.fixture
def result(detect, vocabulary):
    """`result(row, ..., unseen=)` gives the result of detections."""

    def make(*rows, unseen=(), image=PICTURE):
        return build_result(detect(*rows), (600, 400), vocabulary, unseen, image)

    return make


@pytest.fixture
def found(result, vocabulary):
    """Three interactions of two pairs; riding a horse is unseen."""
    ride = vocabulary.verbs.index("ride"), vocabulary.objects.index("horse")
    return result(*ROWS, unseen={int(vocabulary.interaction_ids[ride])})


def test_names_and_shapes(found):
    assert found.image == "a.jpg" and found.size == (600, 400) and len(found) == 3
    assert found.names == ("person", "horse", "person", "ball")
    assert found.actions == ("ride horse", "kick ball", "pull horse")
    assert found.unseen.tolist() == [True, False, False]
    assert found.pairs.tolist() == [[0, 1], [2, 3], [0, 1]]
    np.testing.assert_array_equal(found.human_boxes, np.float32(BOXES)[[0, 2, 0]])
    np.testing.assert_array_equal(found.object_boxes, np.float32(BOXES)[[1, 3, 1]])
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_a_result_without_interactions(result):
    empty = result(unseen={1})
    assert len(empty) == 0 and empty.actions == () and empty.names == ()
    for boxes in (empty.boxes, empty.human_boxes, empty.object_boxes):
        assert boxes.shape == (0, 4)
    assert empty.to_dict()["boxes"] == empty.to_dict()["interactions"] == []
    assert empty.draw().getcolors() == GREY
    pytest.importorskip("supervision", reason="supervision is not installed")
    boxes = empty.to_supervision()
    assert len(boxes) == 0 and boxes.xyxy.shape == (0, 4)


def test_only_boxes_of_interactions_are_kept_and_renumbered(result):
    kept = result((2, 3, "kick", 0.5))
    assert kept.pairs.tolist() == [[0, 1]] and kept.names == ("person", "ball")
    np.testing.assert_array_equal(kept.boxes, np.float32(BOXES)[2:])


def test_a_verb_without_object(result):
    kept = result((0, 1, "ride", 0.9), (2, -1, "jump", 0.5))
    assert kept.actions == ("ride horse", "jump") and kept.pairs.tolist() == [[0, 1], [2, -1]]
    assert np.isnan(kept.object_boxes).all(axis=1).tolist() == [False, True]
    assert kept.to_dict()["interactions"][1]["object"] is None
    assert kept.draw().size == (600, 400)


def test_json(found):
    value = json.loads(json.dumps(found.to_dict()))
    assert (value["image"], value["width"], value["height"]) == ("a.jpg", 600, 400)
    assert value["boxes"][0] == {"box": [10.0, 20.0, 110.12, 220.0], "label": "person"}
    assert value["interactions"][0] == {
        "person": 0,
        "object": 1,
        "verb": "ride",
        "action": "ride horse",
        "score": 0.9,
        "unseen": True,
    }


def yellow(image):
    return int((np.abs(np.asarray(image, int) - UNSEEN_COLOUR).max(axis=2) <= 20).sum())


def test_unseen_actions_are_starred_and_explained(found, result):
    drawn = found.draw()
    assert yellow(drawn) > 500
    # The legend is below the image.
    assert drawn.width == 600 and drawn.height > 400
    seen = result((0, 1, "ride", 0.9)).draw()
    assert yellow(seen) == 0 and seen.size == (600, 400)


def test_no_interaction_is_not_drawn(result):
    kept = result((0, 1, "no_interaction", 0.9), unseen=set(range(50)))
    assert kept.actions == ("no interaction horse",) and kept.unseen.all()
    assert kept.draw().getcolors() == GREY


def test_drawing_a_missing_file(result, tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg: no such"):
        result(image=tmp_path / "gone.jpg").draw()


def test_near_duplicates_are_returned_but_drawn_once(detect, result, vocabulary):
    """The third box is moved to the place of the first."""
    rows = detect((0, 1, "ride", 0.9), (2, 1, "ride", 0.8))
    rows.boxes[2] = rows.boxes[0] + 1
    kept = build_result(rows, (600, 400), vocabulary, (), PICTURE)
    assert len(kept) == len(kept.to_dict()["interactions"]) == 2
    assert kept.draw().tobytes() == result((0, 1, "ride", 0.9)).draw().tobytes()


def test_supervision(found):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    boxes = found.to_supervision()
    assert isinstance(boxes, supervision.Detections)
    np.testing.assert_array_equal(boxes.xyxy, np.float32(BOXES))
    np.testing.assert_array_equal(boxes.class_id, found.labels)
    np.testing.assert_allclose(boxes.confidence, [0.9, 0.9, 0.75, 0.75])
    assert boxes.data["class_name"].tolist() == ["person", "horse", "person", "ball"]
    assert boxes.data["role"].tolist() == ["person", "object"] * 2
    assert boxes.data["pair"].tolist() == [0, 0, 1, 1]
    assert boxes.data["box"].tolist() == [0, 1, 2, 3]
    assert boxes.data["action"].tolist() == ["ride horse 0.90"] * 2 + ["kick ball 0.75"] * 2
    listed = [
        (action, round(score, 2), unseen) for action, score, unseen in boxes.data["actions"][0]
    ]
    assert listed == [("ride horse", 0.9, True), ("pull horse", 0.25, False)]
    # Filtering rows keeps their data.
    people = boxes[boxes.data["role"] == "person"]
    assert len(people) == 2 and people.data["pair"].tolist() == [0, 1]


def test_a_box_of_several_pairs_in_supervision(result):
    pytest.importorskip("supervision", reason="supervision is not installed")
    boxes = result((0, 1, "ride", 0.9), (0, 3, "kick", 0.75)).to_supervision()
    assert boxes.data["pair"].tolist() == [0, 0, 1, 1]
    assert boxes.data["box"].tolist() == [0, 1, 0, 2]


def test_without_supervision(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision") as caught:
        found.to_supervision()
    assert "\n" not in str(caught.value)


def test_coco_results(found):
    entries = json.loads(json.dumps(found.to_coco(42)))
    names = found.vocabulary.objects
    assert [one["image_id"] for one in entries] == [42] * 4
    assert [one["box"] for one in entries] == [0, 1, 2, 3]
    categories = [found.vocabulary.category_ids[names.index(name)] for name in found.names]
    assert [one["category_id"] for one in entries] == categories
    assert entries[0]["bbox"] == [10, 20, 100.12, 200]
    assert [one["score"] for one in entries] == [0.9, 0.9, 0.75, 0.75]
    listed = [[(one["object"], one["action"]) for one in row["interactions"]] for row in entries]
    assert listed == [[(1, "ride horse"), (1, "pull horse")], [], [(3, "kick ball")], []]
    ride = entries[0]["interactions"][0]
    assert ride == {
        "object": 1,
        "verb": "ride",
        "action": "ride horse",
        "score": 0.9,
        "unseen": True,
    }


def test_coco_results_of_verbs_without_object_and_of_nothing(result):
    assert result().to_coco() == []
    (person,) = result((2, -1, "jump", 0.5)).to_coco()
    assert person["image_id"] == "a.jpg" and person["score"] == 0.5
    assert person["interactions"][0]["object"] is None


def test_coco_results_have_coco_categories():
    """HICO-DET numbers its objects by COCO's 91 categories."""
    vocabulary = load_vocabulary("hico-det")
    labels = [vocabulary.objects.index(name) for name in ("person", "toothbrush")]
    found = Detections(
        image_id="a.jpg",
        boxes=np.float32([[0, 0, 10, 10], [5, 5, 9, 9]]),
        labels=np.array(labels),
        hois=np.array([[0, 1, vocabulary.verbs.index("hold")]]),
        scores=np.float32([0.5]),
    )
    entries = build_result(found, (20, 20), vocabulary, (), PICTURE).to_coco(1)
    assert [one["category_id"] for one in entries] == [1, 90]
    assert entries[1]["bbox"] == [5, 5, 4, 4]
