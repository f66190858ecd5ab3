from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.splits import load_split
from pipeline.toy.scene import draw_scene
from student.data.few_shot import list_few_shot, select_few_shot


def labelled(annotations, vocabulary):
    """Number of labels of every interaction."""
    return Counter(
        int(vocabulary.interaction_ids[verb, one.labels[object_row]])
        for one in annotations
        for _, object_row, verb in one.hois.tolist()
    )


def taught(images, vocabulary):
    """Number of label targets of every interaction."""
    found = Counter()
    for index in range(len(images)):
        targets = images.targets(index)
        for pair, verb in zip(*np.nonzero(targets.verb_labels.numpy()), strict=True):
            found[int(vocabulary.interaction_ids[verb, targets.object_labels[pair]])] += 1
    return found


@pytest.mark.parametrize(
    ("name", "count"), [("ua", 0), ("ua", 1), ("ua", 2), ("uc", 1000), ("uc", 0), ("full", 1)]
)
def test_the_number_of_targets_of_every_unseen_interaction(
    make_images, annotations, vocabulary, name, count
):
    split, everything = load_split(vocabulary, name), annotations.annotations
    images = make_images(split, None)
    images.few_shot_rows = select_few_shot(everything, split, vocabulary, count, seed=4)
    found, there = taught(images, vocabulary), labelled(everything, vocabulary)
    for hoi in range(vocabulary.num_interactions):
        expected = min(count, there[hoi]) if hoi in split.unseen else there[hoi]
        assert found[hoi] == expected, vocabulary.interaction_name(hoi)
    listed = list_few_shot(everything, images.few_shot_rows, vocabulary)
    names = Counter(entry["interaction"] for entry in listed)
    assert names == {
        vocabulary.interaction_name(hoi): min(count, there[hoi])
        for hoi in split.unseen
        if min(count, there[hoi])
    }


def test_a_few_shot_label_changes_only_the_targets_of_its_pair(
    make_images, annotations, vocabulary
):
    split = load_split(vocabulary, "ua")
    images = make_images(split, None)
    before = [images.targets(index) for index in range(len(images))]
    images.few_shot_rows = select_few_shot(annotations.annotations, split, vocabulary, 1, seed=0)
    for index, without_shots in enumerate(before):
        targets = images.targets(index)
        rows = images.few_shot_rows.get(index, [])
        assert targets.verb_labels.sum() - without_shots.verb_labels.sum() == len(rows)
        assert not targets.teacher_probs[targets.verb_labels].any()
        for human, object_row, verb in annotations.annotations[index].hois[rows].tolist():
            boxes = annotations.annotations[index].boxes
            same = (targets.human_boxes == boxes[human]).all(1)
            same &= (targets.object_boxes == boxes[object_row]).all(1)
            assert targets.verb_labels[same & targets.seen][:, verb].all()


def test_selections_depend_on_the_seed_and_are_nested(vocabulary):
    split = load_split(vocabulary, "ua")
    everything = [draw_scene(5, "train", index)[1] for index in range(80)]
    selections = [
        select_few_shot(everything, split, vocabulary, count, seed=1) for count in (1, 2, 2, 3)
    ]
    rows = [
        {(image, row) for image, image_rows in selection.items() for row in image_rows}
        for selection in selections
    ]
    assert rows[1] == rows[2] and rows[0] < rows[1] < rows[3]
    others = [select_few_shot(everything, split, vocabulary, 1, seed=seed) for seed in range(5)]
    assert any(other != others[0] for other in others)


def test_no_shots_or_no_unseen_interactions_select_nothing(annotations, vocabulary):
    full = load_split(vocabulary, "full")
    assert select_few_shot(annotations.annotations, full, vocabulary, 3, seed=0) == {}
    nothing = np.zeros((0, 3), np.int64)
    empty = replace(annotations.annotations[0], hois=nothing)
    assert select_few_shot([empty], load_split(vocabulary, "ua"), vocabulary, 3, seed=0) == {}
