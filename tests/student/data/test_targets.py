from dataclasses import replace

import numpy as np
import pytest
import torch
from training import make_targets

from pipeline.splits import load_split
from pipeline.toy.scene import draw_scene
from pipeline.types import Annotation, Pairs
from student.config import TargetConfig
from student.data.targets import Targets, build_targets, label_cached_pairs


def make(count, found=0):
    """Targets of an image with seen pairs and detected boxes."""
    boxes, labels = torch.rand(found, 4), torch.arange(found)
    images = torch.zeros(found, dtype=torch.int64)
    fields = {"proposal_boxes": boxes, "proposal_labels": labels, "proposal_images": images}
    return make_targets([True] * count, region_embeddings=torch.zeros(count, 0), **fields)


def test_collated_images_are_padded_and_their_proposal_boxes_concatenated():
    targets = [make(1, found=2), make(3), make(0, found=3)]
    batch = Targets.collate(targets)
    assert batch.num_pairs.tolist() == [[1], [3], [0]] and len(batch) == 3
    assert batch.pair_mask.sum(1).tolist() == [1, 3, 0]
    for padded in (batch.seen, batch.interactive, batch.verb_labels.any(-1)):
        assert torch.equal(padded, batch.pair_mask)
    assert torch.equal(batch.teacher_probs[1], targets[1].teacher_probs)
    assert batch.teacher_probs[0, 1:].sum() == 0
    assert batch.proposal_images.tolist() == [0, 0, 2, 2, 2]
    assert torch.equal(batch.proposal_boxes[2:], targets[2].proposal_boxes)
    assert batch.proposal_labels.tolist() == [0, 1, 0, 1, 2]
    assert Targets.collate([make(0), make(0)]).human_boxes.shape == (2, 0, 4)


SPLITS = ("ua", "uc", "uo", "full")
ANNOTATED = TargetConfig(candidates="annotated")


def join(vocabulary, annotation, pairs, probabilities, split="full", config=None, *protocol):
    """Targets of an image with numpy arrays in place of tensors."""
    split, config = load_split(vocabulary, split), config or TargetConfig()
    made = build_targets(annotation, pairs, probabilities, split, vocabulary, config, *protocol)
    return made.map(torch.Tensor.numpy)


def box_rows(humans, objects):
    """(human and object) boxes of pairs as a set of rows."""
    rows = np.concatenate([humans, objects], axis=1)
    return {tuple(row) for row in rows.astype(np.float32).tolist()}


@pytest.fixture(scope="module")
def examples(make_teacher_outputs, vocabulary):
    """`examples(split)`: of 40 scenes the annotation, the toy teacher's outputs, and the boxes of
    pairs with a seen label, and with an unseen one."""

    def make(split, **options):
        for index in range(40):
            annotation = draw_scene(5, "train", index)[1]
            humans, things, verbs = annotation.hois.T
            hois = vocabulary.interaction_ids[verbs, annotation.labels[things]]
            unseen = np.isin(hois, load_split(vocabulary, split).unseen)
            seen_pairs, unseen_pairs = (
                box_rows(annotation.boxes[humans[rows]], annotation.boxes[things[rows]])
                for rows in (~unseen, unseen)
            )
            outputs = make_teacher_outputs(annotation, **options)
            yield annotation, outputs, seen_pairs, unseen_pairs

    return make


@pytest.fixture(scope="module")
def targets_of(vocabulary):
    """Targets of an annotation under a split, with outputs of the toy teacher."""

    def make(annotation, outputs, *arguments):
        return join(vocabulary, annotation, outputs.pairs, outputs.probabilities, *arguments)

    return make


def candidates(targets):
    return box_rows(targets.human_boxes[~targets.seen], targets.object_boxes[~targets.seen])


def proposed(outputs):
    rows = outputs.pairs.sources == 1
    return outputs.pairs.human_boxes[rows], outputs.pairs.object_boxes[rows]


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_those_of_seen_pairs_or_of_the_detector(examples, targets_of, split):
    left_out = 0
    for annotation, outputs, seen_pairs, unseen_pairs in examples(split):
        targets = targets_of(annotation, outputs, split)
        seen = targets.seen
        assert box_rows(targets.human_boxes[seen], targets.object_boxes[seen]) == seen_pairs
        assert candidates(targets) <= box_rows(*proposed(outputs))
        detected = {*map(tuple, np.concatenate(proposed(outputs)).tolist())}
        labelled = {box for pair in seen_pairs for box in (pair[:4], pair[4:])}
        learned = {*map(tuple, targets.proposal_boxes.tolist())}
        assert detected <= learned <= detected | labelled
        left_out += len(unseen_pairs - seen_pairs)
    assert (left_out > 0) == (split != "full")


@pytest.mark.parametrize("split", SPLITS[:3])
def test_unseen_pairs_have_no_effect_on_targets(examples, targets_of, split):
    """Annotations and cache with other boxes and outputs for unseen pairs give the same targets."""
    random = np.random.default_rng(0)
    changed = 0
    for annotation, outputs, seen_pairs, _ in examples(split):
        before = targets_of(annotation, outputs, split)
        boxes = annotation.boxes.copy()
        in_seen_pairs = {box for row in seen_pairs for box in (row[:4], row[4:])}
        alone = np.array([tuple(box) not in in_seen_pairs for box in boxes.tolist()], dtype=bool)
        boxes[alone] = random.uniform(0, 128, (alone.sum(), 4))
        pairs = outputs.pairs
        rows = np.concatenate([pairs.human_boxes, pairs.object_boxes], axis=1).tolist()
        unseen = np.array([tuple(row) not in seen_pairs for row in rows], dtype=bool)
        unseen &= pairs.sources == 0

        def drawn(values, unseen=unseen):
            return np.where(unseen[:, None], random.random(values.shape, np.float32), values)

        humans, objects = drawn(pairs.human_boxes), drawn(pairs.object_boxes)
        pairs = replace(pairs, human_boxes=humans, object_boxes=objects)
        other = replace(outputs, pairs=pairs, probabilities=drawn(outputs.probabilities))
        after = targets_of(replace(annotation, boxes=boxes), other, split)
        for name, value in vars(before).items():
            np.testing.assert_array_equal(value, getattr(after, name))
        changed += unseen.sum()
    assert changed > 10


def test_annotated_candidates(examples, targets_of):
    """From a cache of a detector's boxes, the unseen pairs; from one of annotated boxes all pairs
    of boxes but seen pairs, unseen or unlabelled."""
    taken = unlabelled = unseen = 0
    for annotation, outputs, seen_pairs, unseen_pairs in examples("ua"):
        found = candidates(targets_of(annotation, outputs, "ua", ANNOTATED))
        assert found <= unseen_pairs - seen_pairs
        taken += len(found)
    for annotation, outputs, seen_pairs, unseen_pairs in examples("ua", spread=0):
        found = candidates(targets_of(annotation, outputs, "ua", ANNOTATED, "annotated"))
        assert found <= box_rows(*proposed(outputs)) - seen_pairs
        unlabelled += len(found - seen_pairs - unseen_pairs)
        unseen += len(found & unseen_pairs)
    assert taken > 5 and unlabelled > 5 and unseen > 5


@pytest.mark.parametrize("config", [TargetConfig(), ANNOTATED])
@pytest.mark.parametrize("split", SPLITS)
def test_teacher_probs_are_those_of_distilled_verbs(
    examples, targets_of, vocabulary, split, config
):
    distilled, taught = load_split(vocabulary, split).distilled_verbs, 0
    for annotation, outputs, _, _ in examples(split):
        targets, pairs = targets_of(annotation, outputs, split, config), outputs.pairs
        places = np.concatenate([pairs.human_boxes, pairs.object_boxes], axis=1)
        boxes = np.concatenate([targets.human_boxes, targets.object_boxes], axis=1)
        cached = (boxes[:, None] == places).all(-1).argmax(1)
        expected = outputs.probabilities[cached] * (distilled & ~targets.verb_labels)
        np.testing.assert_array_equal(targets.teacher_probs, expected)
        taught += targets.teacher_probs.any()
    assert taught > 10 or split == "full"


def person_and(vocabulary, *objects, hois):
    """An annotation with a person on the left and the named objects in a row to the right."""
    boxes = [[0, 0, 20, 60], *([30 + 30 * i, 10, 50 + 30 * i, 40] for i in range(len(objects)))]
    labels = [vocabulary.person, *(vocabulary.objects.index(name) for name in objects)]
    rows = [(0, thing, vocabulary.verbs.index(verb)) for thing, verb in hois]
    return Annotation(
        "a.jpg",
        np.array(boxes, dtype=np.float32),
        np.array(labels),
        np.array(rows, dtype=np.int64).reshape(-1, 3),
    )


def proposals(vocabulary, *found):
    """Proposed pairs from (human box, object box, object name), with equal probabilities."""
    pairs = Pairs(
        human_boxes=np.array([row[0] for row in found], dtype=np.float32).reshape(-1, 4),
        object_boxes=np.array([row[1] for row in found], dtype=np.float32).reshape(-1, 4),
        object_labels=np.array([vocabulary.objects.index(row[2]) for row in found], dtype=np.int64),
        human_scores=np.full(len(found), 0.9, dtype=np.float32),
        object_scores=np.full(len(found), 0.9, dtype=np.float32),
        sources=np.ones(len(found), dtype=np.uint8),
    )
    return pairs, np.full((len(found), vocabulary.num_verbs), 0.1, dtype=np.float32)


def test_an_image_without_labels_and_pairs(vocabulary):
    annotation = person_and(vocabulary, hois=[])
    pairs, outputs = proposals(vocabulary)
    for config in (TargetConfig(), ANNOTATED):
        targets = join(vocabulary, annotation, pairs, outputs, "ua", config)
        assert targets.verb_labels.shape == targets.teacher_probs.shape == (0, vocabulary.num_verbs)
        assert targets.human_boxes.shape == targets.proposal_boxes.shape == (0, 4)


PERSON, BALL = [0, 0, 20, 60], [30, 10, 50, 40]


@pytest.mark.parametrize(
    ("human", "thing", "name", "kept"),
    [
        (PERSON, BALL, "ball", False),  # the seen pair itself
        ([0, 0, 20, 31], [30, 10, 50, 26], "ball", False),  # both overlap by just over a half
        ([0, 0, 20, 29], BALL, "ball", True),  # the person by less than a half
        (PERSON, [30, 10, 50, 24], "ball", True),  # the object by less than a half
        (PERSON, BALL, "box", True),  # another object in the same place
    ],
)
def test_candidates_that_overlap_a_seen_pair_are_removed(vocabulary, human, thing, name, kept):
    annotation = person_and(vocabulary, "ball", hois=[(1, "throw")])
    pairs, outputs = proposals(vocabulary, (human, thing, name))
    targets = join(vocabulary, annotation, pairs, outputs)
    assert targets.seen.tolist() == ([True, False] if kept else [True])


def test_a_pair_labelled_no_interaction_is_not_interactive(vocabulary):
    annotation = person_and(
        vocabulary, "ball", "box", hois=[(1, "no_interaction"), (2, "push"), (2, "point")]
    )
    pairs, outputs = proposals(vocabulary, ([60, 60, 80, 99], [90, 60, 99, 80], "dog"))
    targets = join(vocabulary, annotation, pairs, outputs)
    assert targets.seen.tolist() == [True, True, False]
    assert targets.interactive.tolist() == [False, True, True]
    assert targets.verb_labels.sum(1).tolist() == [1, 2, 0]


def test_a_verb_without_object_has_an_empty_box(vocabulary):
    annotation = person_and(vocabulary, "ball", hois=[(1, "throw"), (-1, "jump"), (-1, "point")])
    pairs, outputs = proposals(vocabulary, (PERSON, BALL, "ball"))
    targets = join(vocabulary, annotation, pairs, outputs)
    (objectless,) = np.flatnonzero((targets.object_boxes == 0).all(1))
    assert len(targets.seen) == 2 and targets.seen.all()
    np.testing.assert_array_equal(targets.human_boxes[objectless], annotation.boxes[0])
    assert targets.object_labels[objectless] == vocabulary.num_objects
    verbs = [vocabulary.verbs[verb] for verb in np.flatnonzero(targets.verb_labels[objectless])]
    assert sorted(verbs) == ["jump", "point"]


def test_proposal_boxes_are_confident_and_unique(vocabulary):
    annotation = person_and(vocabulary, hois=[])
    things = (BALL, "ball"), ([60, 10, 90, 40], "dog"), ([70, 0, 90, 60], "person")
    pairs, outputs = proposals(vocabulary, *((PERSON, *thing) for thing in things))
    pairs = replace(pairs, object_scores=np.array([0.9, 0.2, 0.9], dtype=np.float32))
    unsure = replace(pairs, human_scores=np.full(3, 0.2, dtype=np.float32))
    assert join(vocabulary, annotation, unsure, outputs).proposal_boxes.tolist() == [BALL]
    targets = join(vocabulary, annotation, pairs, outputs)
    found = sorted(
        (vocabulary.objects[label], box)
        for label, box in zip(targets.proposal_labels, targets.proposal_boxes.tolist(), strict=True)
    )
    assert found == [("ball", BALL), ("person", PERSON)]
    assert targets.proposal_boxes.dtype == np.float32 and targets.proposal_labels.dtype == np.int64


def test_the_proposal_head_learns_labelled_boxes_that_the_detector_missed(vocabulary):
    """Each once; a box of the same class with enough overlap stands for it."""
    near, far = [PERSON[0] + 1, *PERSON[1:]], [0, 60, 20, 90]
    person, ball, dog = map(vocabulary.objects.index, ("person", "ball", "dog"))
    kick = vocabulary.verbs.index("kick")
    annotation = Annotation(
        "a.png",
        np.array([near, far, BALL], dtype=np.float32),
        np.array([person, person, ball]),
        np.array([[0, 2, kick], [1, 2, kick]]),
    )
    pairs, outputs = proposals(vocabulary, (PERSON, BALL, "dog"))
    targets = join(vocabulary, annotation, pairs, outputs)
    found = zip(targets.proposal_labels.tolist(), targets.proposal_boxes.tolist(), strict=True)
    expected = [(person, PERSON), (dog, BALL), (person, far), (ball, BALL)]
    assert sorted(found) == sorted(expected)
    assert targets.proposal_boxes.dtype == np.float32


def test_labels_of_cached_pairs(vocabulary):
    """Split ua: push is unseen, and so a pair with this label alone is none to train on."""
    annotation = person_and(
        vocabulary, "ball", "box", hois=[(1, "throw"), (1, "hold"), (1, "kick"), (2, "push")]
    )
    box = annotation.boxes[2].tolist()
    pairs, _ = proposals(
        vocabulary,
        *((PERSON, BALL, "ball"), (PERSON, box, "box")),
        # Proposed: the seen pair, both boxes by a half, one by less, another object, the unseen
        # pair.
        *((PERSON, BALL, "ball"), ([0, 0, 20, 31], [30, 10, 50, 26], "ball")),
        *((PERSON, [30, 10, 50, 24], "ball"), (PERSON, BALL, "box"), (PERSON, box, "box")),
    )
    pairs = replace(pairs, sources=np.array([0, 0, 1, 1, 1, 1, 1], dtype=np.uint8))
    split = load_split(vocabulary, "ua")
    labels, used = label_cached_pairs(annotation, pairs, split, vocabulary, 0.5)
    names = [{vocabulary.verbs[verb] for verb in np.flatnonzero(row)} for row in labels]
    seen, none = {"throw", "hold"}, set()
    assert names == [seen, none, seen, seen, none, none, none]
    assert used.tolist() == [True, False, True, True, True, True, True]
    # A pair that overlaps several annotated pairs has the labels of all.
    both = person_and(vocabulary, "ball", "ball", hois=[(1, "throw"), (2, "hold")])
    near = replace(both, boxes=both.boxes[[0, 1, 1]] + [[0], [0], [1]])
    labels, _ = label_cached_pairs(near, pairs, split, vocabulary, 0.5)
    assert {vocabulary.verbs[verb] for verb in np.flatnonzero(labels[2])} == seen
    nothing = replace(annotation, hois=annotation.hois[:0])
    labels, used = label_cached_pairs(nothing, pairs, split, vocabulary, 0.5)
    assert not labels.any() and used.tolist() == [False, False, *[True] * 5]
