import numpy as np
import pytest

from pipeline.types import Detections
from student.inference.postprocess import SelectionConfig

pytest.importorskip("trackers", reason="the extra video is not installed")

from student.inference.tracking import PairTracker


@pytest.fixture
def track(toy):
    """`track(frames, ...)` tracks frames, each a list of (verb, object or None, score, human box,
    object box), and returns the tracked detections."""

    def run(frames, threshold=0.3, smooth=0.0, top=10, lost_frames=5):
        tracker = PairTracker(toy, SelectionConfig(threshold, top), smooth, lost_frames)
        found = []
        for rows in frames:
            boxes, labels, hois = [], [], []
            for row, (verb, name, _, human, target) in enumerate(rows):
                boxes += [human, target]
                labels += [toy.person, toy.objects.index(name or "ball")]
                place = 2 * row + 1 if name else -1
                hois.append((2 * row, place, toy.verbs.index(verb)))
            found.append(
                tracker.update(
                    Detections(
                        image_id="frame",
                        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
                        labels=np.array(labels, dtype=np.int64),
                        hois=np.array(hois, dtype=np.int64).reshape(-1, 3),
                        scores=np.array([row[2] for row in rows], dtype=np.float32),
                    )
                )
            )
        return found

    return run


def moved(box, shift):
    return [box[0] + shift, box[1], box[2] + shift, box[3]]


ADA, BEN = [0, 0, 20, 60], [200, 0, 220, 60]
ADAS_BALL, BENS_BALL = [20, 20, 30, 30], [220, 20, 230, 30]


def hold(score, person=ADA, ball=ADAS_BALL, name="ball", verb="hold"):
    return (verb, name, score, person, ball)


def ids(tracked, vocabulary):
    """{box name and id: left edge} of a frame."""
    names = [vocabulary.objects[label] for label in tracked.detections.labels]
    return {
        f"{name} {number}": box[0]
        for name, number, box in zip(names, tracked.ids, tracked.detections.boxes, strict=True)
    }


def test_ids_stay_with_moving_people_and_objects(track, toy):
    """Two people walk towards and past each other, at different heights."""
    low = [[200, 30, 220, 90], [220, 50, 230, 60]]
    found = track(
        [
            [
                hold(0.8, moved(ADA, 5 * t), moved(ADAS_BALL, 5 * t)),
                hold(0.9, moved(low[0], -5 * t), moved(low[1], -5 * t)),
            ][:: 1 if t % 2 else -1]
            for t in range(40)
        ]
    )
    for t, tracked in enumerate(found):
        assert ids(tracked, toy) == {
            "person 1": 200 - 5 * t,
            "person 2": 5 * t,
            "ball 3": 220 - 5 * t,
            "ball 4": 20 + 5 * t,
        }
        assert len(set(tracked.slots.values())) == 2
        assert {tracked.ids[pair[0]]: slot for pair, slot in tracked.slots.items()} == {1: 0, 2: 1}


def test_objects_of_different_classes_never_share_an_id(track, toy):
    """The detector changes its mind about an object, and gives it two classes at once."""
    found = track(
        [
            [hold(0.8, name="ball" if t % 4 else "box")] + [hold(0.6, name="dog")] * (t % 3 == 0)
            for t in range(12)
        ]
    )
    labels = {}
    for tracked in found:
        for label, number in zip(tracked.detections.labels, tracked.ids, strict=True):
            assert labels.setdefault(number, label) == label
    names = sorted(toy.objects[label] for label in labels.values())
    assert names == ["ball", "box", "dog", "person"]


def test_a_person_of_several_interactions_has_one_box(track):
    (tracked,) = track(
        [[hold(0.8), hold(0.5, moved(ADA, 1), [20, 40, 40, 60], "dog"), hold(0.4, moved(ADA, 2))]]
    )
    detections = tracked.detections
    assert len(detections.boxes) == 3
    boxes = detections.boxes[detections.hois[:, :2]].tolist()
    assert boxes == [[ADA, ADAS_BALL], [ADA, [20, 40, 40, 60]]]
    assert detections.scores == pytest.approx([0.8, 0.5])


def test_people_are_objects_of_others_with_the_same_id(track, toy):
    frame = [
        hold(0.8),
        hold(0.7, BEN, moved(ADA, 1), "person"),
        # One person as both sides.
        hold(0.9, BEN, moved(BEN, 1), "person"),
    ]
    for tracked in track([frame] * 3):
        assert ids(tracked, toy) == {"person 1": 0, "person 2": 200, "ball 3": 20}
        assert tracked.ids[tracked.detections.hois[:, :2]].tolist() == [[1, 3], [2, 1]]


def test_verbs_without_object_have_a_person_alone(track):
    for tracked in track([[("hold", None, 0.8, ADA, ADAS_BALL)]] * 2):
        assert tracked.ids.tolist() == [1]
        assert tracked.detections.hois[:, :2].tolist() == [[0, -1]]
        assert tracked.slots == {(0, -1): 0}


def test_scores_are_smoothed(track):
    raw = [0.8, 0.4, 0.6, None, 0.5]
    # The other action shows that both boxes are there in the frame where "hold" is missing.
    frames = [[hold(0.9, verb="carry")] + ([] if score is None else [hold(score)]) for score in raw]
    smoothed, expected = None, []
    for score in raw:
        new = score or 0.0
        smoothed = new if smoothed is None else 0.75 * smoothed + 0.25 * new
        expected.append(smoothed)
    found = track(frames, smooth=0.75)
    assert [tracked.detections.scores[1] for tracked in found] == pytest.approx(expected)
    assert [tracked.raw_scores[1] for tracked in found] == pytest.approx(
        [score or 0.0 for score in raw]
    )
    plain = track(frames, smooth=0.0)
    assert [tracked.detections.scores[1:].tolist() for tracked in plain] == [
        pytest.approx([] if score is None else [score]) for score in raw
    ]


def test_the_threshold_applies_to_smoothed_scores(track):
    """A single high score is not enough for a pair that had low ones, and a single low score does
    not end one that had high ones."""
    carried = hold(0.9, verb="carry")
    rising = track([[carried, hold(score)] for score in (0.2, 0.2, 0.45, 0.2)], smooth=0.75)
    assert [len(tracked.detections.scores) for tracked in rising] == [1, 1, 1, 1]
    falling = track([[carried, hold(score)] for score in (0.9, 0.2, 0.9)], smooth=0.75)
    assert [len(tracked.detections.scores) for tracked in falling] == [2, 2, 2]


def test_the_best_are_kept_in_order(track):
    (tracked,) = track(
        [[hold(0.5), hold(0.9, verb="carry"), hold(0.7, BEN, BENS_BALL), hold(0.2, BEN)]], top=2
    )
    assert tracked.detections.scores == pytest.approx([0.9, 0.7])
    assert len(tracked.detections.boxes) == 4


def test_a_lost_person_keeps_the_id_for_a_while(track):
    def frames(gap):
        return [[hold(0.8)]] * 3 + [[]] * gap + [[hold(0.8)]]

    assert track(frames(4), lost_frames=5)[-1].ids.tolist() == [1, 2]
    assert track(frames(7), lost_frames=5)[-1].ids.tolist() == [3, 4]


def test_low_scores_continue_a_track_and_begin_none(track):
    """ByteTrack's second stage."""
    scores = [0.8, 0.8, *[0.15] * 12, 0.8]
    found = track(
        [[hold(s, moved(ADA, 6 * t), moved(ADAS_BALL, t))] for t, s in enumerate(scores)],
        lost_frames=5,
    )
    assert [tracked.ids.tolist() for tracked in found] == [
        [1, 2] if score > 0.3 else [] for score in scores
    ]
    assert not any(len(tracked.ids) for tracked in track([[hold(0.2)]] * 5))


def test_ended_tracks_are_forgotten(track):
    """Every ten frames other people come, far away; the numbers of their pairs are used again."""
    frames = [
        [hold(0.8, moved(ADA, 100 * (t // 10)), moved(ADAS_BALL, 100 * (t // 10)))]
        for t in range(300)
    ]
    found = track(frames, smooth=0.5, lost_frames=3)
    assert found[-1].ids.tolist() == [59, 60]
    assert max(slot for tracked in found for slot in tracked.slots.values()) <= 1


def test_no_threshold_and_empty_frames(track):
    found = track([[], [hold(0.0)], [], [hold(0.001)]], threshold=0.0, smooth=0.5)
    assert [tracked.ids.tolist() for tracked in found] == [[], [1, 2], [], [1, 2]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_boxes_that_are_not_finite_have_no_track(track, toy, value):
    frames = [[hold(0.9)], [hold(0.9), hold(0.8, [value] * 4, [value] * 4)], [hold(0.9)]]
    for found in track(frames):
        assert ids(found, toy).keys() == {"person 1", "ball 2"}


def test_no_interaction_continues_a_track_but_is_no_result(track, toy):
    """Also where smoothing would keep its score."""
    frames = [[hold(0.9, moved(ADA, row), moved(ADAS_BALL, row))] for row in range(3)]
    frames[1] = [hold(0.9, moved(ADA, 1), moved(ADAS_BALL, 1), verb="no_interaction")]
    first, between, last = track(frames)
    assert not len(between.detections.hois) and not len(between.ids)
    assert first.ids.tolist() == last.ids.tolist() == [1, 2]
    hold_verb = toy.verbs.index("hold")
    for smoothed in track(frames, smooth=0.9):
        assert smoothed.detections.hois[:, 2].tolist() == [hold_verb]
