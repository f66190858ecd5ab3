import builtins
import json

import numpy as np
import pytest
from PIL import Image

from evaluation.drawing.canvas import UNSEEN_COLOUR
from pipeline.types import Detections
from pipeline.utils.errors import InputError
from student.inference.results import select_top

PICTURE = Image.new("RGB", (600, 400), (120, 120, 120))
BOXES = [[10, 20, 110.123, 220], [150, 30, 260, 140], [300, 100, 400, 300], [420, 50, 500, 90]]
KEPT = {"threshold": 0.0, "top": 100}


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
def ride(vocabulary):
    """The interaction "ride horse"."""
    return int(
        vocabulary.interaction_ids[
            vocabulary.verbs.index("ride"), vocabulary.objects.index("horse")
        ]
    )


@pytest.fixture
def found(detect, vocabulary, ride):
    rows = [(0, 1, "ride", 0.9), (2, 3, "kick", 0.75), (0, 1, "pull", 0.25)]
    return select_top(detect(*rows), (600, 400), vocabulary, {ride}, PICTURE, **KEPT)


@pytest.fixture
def empty_result(detect, vocabulary):
    return select_top(detect(), (600, 400), vocabulary, {1}, PICTURE, **KEPT)


def test_empty_result(empty_result):
    assert len(empty_result) == 0 and empty_result.actions == () and empty_result.names == ()
    assert (
        empty_result.boxes.shape
        == empty_result.human_boxes.shape
        == empty_result.object_boxes.shape
        == (0, 4)
    )
    assert empty_result.to_dict()["boxes"] == empty_result.to_dict()["interactions"] == []
    assert empty_result.draw().getcolors() == [(600 * 400, (120, 120, 120))]


def test_names_and_shapes(found):
    assert found.image == "a.jpg" and found.size == (600, 400) and len(found) == 3
    assert found.names == ("person", "horse", "person", "ball")
    assert found.actions == ("ride horse", "kick ball", "pull horse")
    assert found.unseen.tolist() == [True, False, False]
    assert found.pairs.tolist() == [[0, 1], [2, 3], [0, 1]]
    np.testing.assert_array_equal(found.human_boxes, np.float32(BOXES)[[0, 2, 0]])
    np.testing.assert_array_equal(found.object_boxes, np.float32(BOXES)[[1, 3, 1]])
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_results_are_frozen(found):
    with pytest.raises(AttributeError):
        found.size = (1, 1)


@pytest.mark.parametrize(
    ("threshold", "top", "actions", "names"),
    [
        (0.75, 10, ("ride horse", "kick ball"), ("person", "horse", "person", "ball")),
        (0.0, 1, ("ride horse",), ("person", "horse")),
        (0.8, 5, ("ride horse",), ("person", "horse")),
        (1.0, 5, (), ()),
    ],
)
def test_select_top_keeps_the_best_and_their_boxes(
    detect, vocabulary, threshold, top, actions, names
):
    rows = [(0, 1, "ride", 0.9), (2, 3, "kick", 0.75), (0, 1, "pull", 0.25)]
    kept = select_top(detect(*rows), (600, 400), vocabulary, (), PICTURE, threshold, top)
    assert (kept.actions, kept.names) == (actions, names)


def test_boxes_are_renumbered(detect, vocabulary):
    kept = select_top(detect((2, 3, "kick", 0.5)), (600, 400), vocabulary, (), PICTURE, **KEPT)
    assert kept.pairs.tolist() == [[0, 1]]
    np.testing.assert_array_equal(kept.boxes, np.float32(BOXES)[2:])


def test_a_verb_without_object(detect, vocabulary):
    rows = [(0, 1, "ride", 0.9), (2, -1, "jump", 0.5)]
    kept = select_top(detect(*rows), (600, 400), vocabulary, (), PICTURE, **KEPT)
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


def test_unseen_actions_are_starred_and_explained(found, detect, vocabulary):
    drawn = found.draw()
    assert yellow(drawn) > 500
    # The legend is below the image.
    assert drawn.width == 600 and drawn.height > 400
    seen = select_top(
        detect((0, 1, "ride", 0.9)), (600, 400), vocabulary, (), PICTURE, **KEPT
    ).draw()
    assert yellow(seen) == 0 and seen.size == (600, 400)


def test_no_interaction_is_not_drawn(detect, vocabulary):
    rows = [(0, 1, "no_interaction", 0.9)]
    kept = select_top(detect(*rows), (600, 400), vocabulary, set(range(50)), PICTURE, **KEPT)
    assert kept.actions == ("no interaction horse",) and kept.unseen.all()
    assert kept.draw().getcolors() == [(600 * 400, (120, 120, 120))]


def test_drawing_a_missing_file(detect, vocabulary, tmp_path):
    kept = select_top(detect(), (600, 400), vocabulary, (), tmp_path / "gone.jpg", **KEPT)
    with pytest.raises(InputError, match=r"gone\.jpg: no such"):
        kept.draw()


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
    assert boxes.data["action"].tolist() == ["ride horse 0.90"] * 2 + ["kick ball 0.75"] * 2
    listed = [
        (action, round(score, 2), unseen) for action, score, unseen in boxes.data["actions"][0]
    ]
    assert listed == [("ride horse", 0.9, True), ("pull horse", 0.25, False)]
    # Filtering rows keeps their data.
    people = boxes[boxes.data["role"] == "person"]
    assert len(people) == 2 and people.data["pair"].tolist() == [0, 1]
    drawn = supervision.BoxAnnotator().annotate(PICTURE.copy(), people)
    assert np.asarray(drawn).std() > 0


def test_empty_result_as_supervision(empty_result):
    pytest.importorskip("supervision", reason="supervision is not installed")
    boxes = empty_result.to_supervision()
    assert len(boxes) == 0 and boxes.xyxy.shape == (0, 4)


def test_without_supervision(found, monkeypatch):
    real = builtins.__import__

    def refuse(name, *others, **more):
        if name.startswith("supervision"):
            raise ImportError(name)
        return real(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="pip install supervision") as caught:
        found.to_supervision()
    assert "\n" not in str(caught.value)


def test_near_duplicates_are_returned_but_drawn_once(detect, vocabulary):
    """The third box is moved to the place of the first."""
    rows = detect((0, 1, "ride", 0.9), (2, 1, "ride", 0.8))
    rows.boxes[2] = rows.boxes[0] + 1
    kept = select_top(rows, (600, 400), vocabulary, (), PICTURE, **KEPT)
    once = select_top(detect((0, 1, "ride", 0.9)), (600, 400), vocabulary, (), PICTURE, **KEPT)
    assert len(kept) == len(kept.to_dict()["interactions"]) == 2
    assert kept.draw().tobytes() == once.draw().tobytes()
