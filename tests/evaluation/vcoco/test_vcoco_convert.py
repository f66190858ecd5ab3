import numpy as np
import pytest

from evaluation.vcoco.detections import to_vcoco_detections
from pipeline.annotations.vcoco import VcocoAction
from pipeline.types import Detections
from pipeline.vocabulary import load_vocabulary

ACTIONS = (
    VcocoAction("hold", ("obj",)),
    VcocoAction("stand", ()),
    VcocoAction("hit", ("instr", "obj")),
)
BALL, RACKET = 32, 38


@pytest.fixture(scope="module")
def vcoco():
    return load_vocabulary("vcoco")


@pytest.fixture
def detect(vcoco):
    """Detections of people 0 and 1, ball 2 and racket 3: `detect((person, object, verb, score))`"""

    def build(*rows, image_id="a.jpg"):
        return Detections(
            image_id,
            np.arange(16, dtype=np.float32).reshape(4, 4),
            np.array([vcoco.person, vcoco.person, BALL, RACKET]),
            np.array(
                [(person, thing, vcoco.verbs.index(verb)) for person, thing, verb, _ in rows],
                dtype=np.int64,
            ).reshape(-1, 3),
            np.array([row[3] for row in rows], dtype=np.float32),
        )

    return build


def entries(found):
    """The entries as dicts of what is not NaN."""
    table = []
    for row in range(len(found)):
        entry = {
            name: np.round(column[row], 6).tolist()
            for name, column in found.columns.items()
            if not np.isnan(column[row]).all() and not np.isnan(np.atleast_1d(column[row])[-1])
        }
        table.append((int(found.image_ids[row]), int(found.person_boxes[row, 0]), entry))
    return table


def test_nothing(detect, vcoco):
    assert len(to_vcoco_detections([], [], vcoco, ACTIONS)) == 0
    assert len(to_vcoco_detections([detect()], [5], vcoco, ACTIONS)) == 0


def test_a_person_with_one_object_a_role_is_one_entry(detect, vcoco):
    item = detect(
        (0, 2, "hit_obj", 0.5),
        (0, 3, "hit_instr", 0.75),
        (0, -1, "stand", 0.25),
        (1, 2, "run", 0.5),
    )
    first, second = entries(to_vcoco_detections([item], [5], vcoco, ACTIONS))
    assert first == (
        5,
        0,
        {
            "stand_agent": 0.25,
            "hit_agent": 0.75,
            "hit_instr": [12, 13, 14, 15, 0.75],
            "hit_obj": [8, 9, 10, 11, 0.5],
        },
    )
    # The annotations know no running.
    assert second == (5, 4, {})


def test_further_objects_get_entries_that_are_silent_about_the_agent(detect, vcoco):
    item = detect((0, 2, "hold_obj", 0.25), (0, 3, "hold_obj", 0.5), (0, -1, "hold_obj", 0.125))
    found = entries(to_vcoco_detections([item], [5], vcoco, ACTIONS))
    assert found == [
        (5, 0, {"hold_agent": 0.5, "hold_obj": [12, 13, 14, 15, 0.5]}),
        (5, 0, {"hold_obj": [8, 9, 10, 11, 0.25]}),
        (5, 0, {"hold_obj": [0, 0, 0, 0, 0.125]}),
    ]


def test_images_keep_apart(detect, vcoco):
    items = [
        detect((1, 2, "hold_obj", 0.5)),
        detect(image_id="b.jpg"),
        detect((0, 3, "hold_obj", 0.5), (1, 3, "stand", 0.5), image_id="c.jpg"),
    ]
    found = entries(to_vcoco_detections(items, [5, 6, 7], vcoco, ACTIONS))
    assert [(image, person) for image, person, _ in found] == [(5, 4), (7, 0), (7, 4)]
    assert found[2][2] == {"stand_agent": 0.5}


def test_subjects_that_are_no_person_are_left_out(detect, vcoco):
    assert len(to_vcoco_detections([detect((2, 3, "hold_obj", 0.5))], [5], vcoco, ACTIONS)) == 0
