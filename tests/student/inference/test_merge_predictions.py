import dataclasses

import pytest

from evaluation.hico.average_precision import evaluate
from pipeline.utils.errors import InputError
from student.inference.predict import merge_predictions


def test_nothing():
    assert merge_predictions([], []) == []
    assert merge_predictions([[], []], []) == []


@pytest.fixture
def found(detect):
    return [detect(f"{i}.jpg", *[("kick", "ball", 0.9 - i / 10)] * i) for i in range(5)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_any_number_of_processes_gives_the_same_list(found, ranks):
    ids = [item.image_id for item in found]
    parts = [found[rank::ranks] for rank in range(ranks)]
    assert merge_predictions(reversed(parts), ids) == found


def test_an_image_of_two_processes_counts_once(found, annotate, toy):
    ids = [item.image_id for item in found]
    truth = [annotate(name, ("kick", "ball")) for name in ids]
    copy = dataclasses.replace(found[1], boxes=found[1].boxes.copy())
    merged = merge_predictions([found[:3], [*found[3:], copy]], ids)
    assert merged == found
    once, twice = evaluate(truth, merged, toy), evaluate(truth, found, toy)
    assert once.mean_ap() == twice.mean_ap()


@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_predictions_that_differ_are_refused(found, field):
    other = dataclasses.replace(found[2], **{field: getattr(found[2], field) * 0.5})
    with pytest.raises(InputError, match=r"2\.jpg: expected"):
        merge_predictions([found, [other]], [item.image_id for item in found])


def test_an_image_left_out_is_named(found):
    ids = [item.image_id for item in found]
    with pytest.raises(InputError, match=r"all 5 images, found none for 2, the first being 1\.jpg"):
        merge_predictions([found[:1], found[3:4], found[4:], found[2:2], found[3:]], ids)


def test_an_image_nobody_asked_for_is_named(found):
    with pytest.raises(InputError, match=r"found 1 others, the first being 4\.jpg"):
        merge_predictions([found], [item.image_id for item in found[:4]])
