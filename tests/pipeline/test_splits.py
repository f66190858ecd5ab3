from dataclasses import replace

import numpy as np
import pytest

from pipeline.splits import load_split, remove_unseen_labels, select_distilled_verbs, split_names
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary

COUNTS = {
    **{f"uc{draw}": 120 for draw in range(5)},
    "rf-uc": 120,
    "nf-uc": 120,
    "uo": 100,
    "ua": 100,
    "uv": 84,
    "rf-uc-138": 138,
    "full": 0,
}


@pytest.fixture
def toml(tmp_path):
    def write(text, name="mine.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_published_splits_of_hico_det(hico, name, count):
    split = load_split(hico, name)
    assert set(split_names(hico)) == set(COUNTS) and split.name == name
    assert len(split.unseen) == count and list(split.unseen) == sorted(set(split.unseen))
    mask = split.unseen_mask(hico.num_interactions)
    assert mask.shape == (600,) and mask.sum() == count
    distilled = split.distilled_verbs
    assert distilled.shape == (117,) and distilled.dtype == bool
    if name in ("ua", "uv"):
        verbs = [i for i, (verb, _) in enumerate(hico.interactions) if distilled[verb]]
        assert distilled.sum() == {"ua": 22, "uv": 20}[name] and list(split.unseen) == verbs
    else:
        without = range(hico.num_verbs) if name == "full" else [hico.no_interaction]
        assert np.flatnonzero(~distilled).tolist() == list(without)


def test_unseen_interactions_of_hico_det(hico):
    assert set(load_split(hico, "rf-uc").unseen) <= set(hico.rare)
    assert set(load_split(hico, "rf-uc-138").unseen) == set(hico.rare)
    assert not set(load_split(hico, "nf-uc").unseen) & set(hico.rare)
    unseen = set(load_split(hico, "uo").unseen)
    objects = {hico.interactions[hoi][1] for hoi in unseen}
    assert len(objects) == 12
    assert {i for i, (_, label) in enumerate(hico.interactions) if label in objects} == unseen


@pytest.mark.parametrize(("name", "unseen"), [("ua", 22), ("uv", 20), ("uc0", 57), ("full", 0)])
def test_distilled_verbs_can_be_selected(hico, name, unseen):
    split = load_split(hico, name)
    assert select_distilled_verbs(split, "split", hico) is split
    found = select_distilled_verbs(split, "unseen", hico)
    verbs = {hico.interactions[hoi][0] for hoi in split.unseen} - {hico.no_interaction}
    assert set(np.flatnonzero(found.distilled_verbs)) == verbs and len(verbs) == unseen
    assert found.unseen == split.unseen and found.name == name
    everything = select_distilled_verbs(split, "all", hico).distilled_verbs
    assert np.flatnonzero(~everything).tolist() == [hico.no_interaction]


def test_splits_of_the_toy_dataset(toy):
    for name in ("ua", "uc", "uo"):
        split = load_split(toy, name)
        assert 0 < len(split.unseen) < toy.num_interactions / 2
        assert not split.distilled_verbs[toy.no_interaction]
    distilled = np.flatnonzero(load_split(toy, "ua").distilled_verbs)
    assert [toy.verbs[verb] for verb in distilled] == ["carry", "kick", "push"]
    seen = set(range(toy.num_interactions)) - set(load_split(toy, "uc").unseen)
    verbs, objects = zip(*(toy.interactions[hoi] for hoi in seen), strict=True)
    assert set(verbs) == set(range(toy.num_verbs))
    assert set(objects) == set(range(toy.num_objects)) - {toy.person}


def test_unknown_split_error_lists_known_splits(hico, tmp_path):
    with pytest.raises(InputError, match=r"uc9: no such split of hico-det; .*full.* uc0.*ua, uv"):
        load_split(hico, "uc9")
    with pytest.raises(InputError, match=r"none\.toml: no such"):
        load_split(hico, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "unseen", "distilled"),
    [
        ('unseen_verbs = ["carry"]', 6, ["carry"]),
        ('unseen_verbs = ["sit on", "carry"]', 9, ["sit_on", "carry"]),
        ('unseen_objects = ["horse"]', 6, "all"),
        ('unseen_interactions = [["ride", "horse"], ["sit on", "box"]]', 2, "all"),
        ('unseen_verbs = ["carry"]\nunseen_objects = ["horse"]', 12, "all"),
        ('unseen_verbs = ["carry"]\nunseen_interactions = [["carry", "box"]]', 6, "all"),
    ],
)
def test_split_files(toy, toml, text, unseen, distilled):
    split = load_split(toy, toml(text))
    assert split.name == "mine"
    assert len(split.unseen) == unseen
    verbs = set(toy.verbs) - {"no_interaction"} if distilled == "all" else set(distilled)
    assert {toy.verbs[verb] for verb in np.flatnonzero(split.distilled_verbs)} == verbs


def test_a_verb_with_seen_interactions_is_not_an_unseen_one(toy):
    splits = {"mine": {"unseen": [0], "distilled": "unseen_verbs"}}
    assert not load_split(replace(toy, splits=splits), "mine").distilled_verbs.any()


def test_split_file_named_like_a_builtin_split_keeps_its_ending(toy, toml):
    assert load_split(toy, toml('unseen_verbs = ["carry"]', "ua.toml")).name == "ua.toml"
    assert load_split(toy, toml('unseen_verbs = ["carry"]', "ub.toml")).name == "ub"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unseen_verbs = ", "expected TOML"),
        ('unseen = ["carry"]', "unseen: expected"),
        ("unseen_verbs = []", "split: expected"),
        ('unseen_interactions = ["ride"]', r"unseen_interactions\[0\]: expected"),
        ('unseen_verbs = ["fly"]', r"unseen_verbs: expected.*found fly"),
        ('unseen_objects = ["cow"]', r"unseen_objects: expected.*found cow"),
        ('unseen_interactions = [["ride", "ball"]]', r"ride \(horse, bike, skateboard\)"),
        (f"unseen_verbs = {list(load_vocabulary('toy').verbs)}", "at least one seen interaction"),
    ],
)
def test_wrong_split_files_name_the_field(toml, text, message):
    with pytest.raises(InputError, match=f"mine.toml: {message}|mine.toml: .*{message}"):
        load_split(load_vocabulary("toy"), toml(text))


def annotation(vocabulary, objects, hois):
    """Boxes of a person and of `objects`; `hois` as (human, object, verb name)."""
    labels = [vocabulary.objects.index(name) for name in ("person", *objects)]
    rows = [(human, target, vocabulary.verbs.index(verb)) for human, target, verb in hois]
    boxes = np.arange(4 * len(labels), dtype=np.float32).reshape(-1, 4)
    return Annotation(
        "a.jpg", boxes, np.array(labels), np.array(rows, dtype=np.int64).reshape(-1, 3)
    )


@pytest.mark.parametrize(
    ("objects", "hois", "boxes", "left"),
    [
        ([], [], [], []),
        (["box"], [(0, 1, "carry")], [], []),
        (
            ["box", "bike", "horse"],
            [(0, 1, "carry"), (0, 2, "ride"), (0, 3, "push"), (0, 3, "ride")],
            [0, 2, 3],
            [[0, 1, "ride"], [0, 2, "ride"]],
        ),
    ],
)
def test_unseen_labels_and_their_boxes_are_removed(toy, objects, hois, boxes, left):
    before = annotation(toy, objects, hois)
    after = remove_unseen_labels(before, load_split(toy, "ua"), toy)
    np.testing.assert_array_equal(after.boxes, before.boxes[boxes].reshape(-1, 4))
    np.testing.assert_array_equal(after.labels, before.labels[boxes])
    assert [[*row[:2], toy.verbs[row[2]]] for row in after.hois.tolist()] == left
    assert after.hois.shape == (len(left), 3)
    assert len(before.hois) == len(hois) and after.image_id == "a.jpg"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('unseen_verbs = ["hold_obj"]', [(0, -1, "stand")]),
        ('unseen_objects = ["cup"]', [(0, -1, "stand"), (0, -1, "hold_obj")]),
        ('unseen_objects = ["kite"]', [(0, -1, "stand"), (0, 1, "hold_obj"), (0, -1, "hold_obj")]),
    ],
)
def test_labels_without_object_are_removed_if_the_verb_is_unseen(vcoco, toml, text, left):
    hois = [(0, -1, "stand"), (0, 1, "hold_obj"), (0, -1, "hold_obj")]
    after = remove_unseen_labels(
        annotation(vcoco, ["cup"], hois), load_split(vcoco, toml(text)), vcoco
    )
    assert [(human, target, vcoco.verbs[verb]) for human, target, verb in after.hois] == left
    assert len(after.boxes) == 1 + any(target == 1 for _, target, _ in left)
