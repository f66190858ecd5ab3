import copy
import json
import pickle

import pytest

from pipeline.utils.errors import InputError
from pipeline.vocabulary import (
    find_names,
    find_verbs,
    load_vocabulary,
    object_text,
    vocabulary_from_dict,
)

MINE = {
    "name": "mine",
    "objects": [{"name": "person", "id": 1}, {"name": "cup", "id": 47}],
    "verbs": [{"name": "lift", "ing": "lifting"}, {"name": "wave", "ing": "waving"}],
    "interactions": [[0, 1]],
}


@pytest.mark.parametrize(
    ("name", "verbs", "objects", "interactions", "rare"),
    [
        ("hico-det", 117, 80, 600, 138),
        ("vcoco", 29, 80, 468, 0),
        ("swig-hoi", 407, 1000, 14130, 11377),
        ("toy", 11, 9, 50, 9),
    ],
)
def test_builtin_vocabularies(name, verbs, objects, interactions, rare):
    vocabulary = load_vocabulary(name)
    assert vocabulary.name == name and vocabulary.source
    assert vocabulary.num_verbs == len(vocabulary.verbs) == len(vocabulary.verb_ings) == verbs
    assert vocabulary.num_objects == len(set(vocabulary.category_ids)) == objects
    assert vocabulary.num_interactions == interactions == vocabulary.valid.sum()
    assert len(vocabulary.rare) == rare
    for index, (verb, label) in enumerate(vocabulary.interactions):
        assert vocabulary.interaction_ids[verb, label] == index
    assert (vocabulary.interaction_ids[~vocabulary.valid] == -1).all()
    assert vocabulary.objects[vocabulary.person] == "person"
    labels = [vocabulary.label_by_category_id[i] for i in vocabulary.category_ids]
    assert labels == list(range(objects))
    assert vocabulary_from_dict(json.loads(json.dumps(vocabulary.to_dict())), name) == vocabulary
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


def test_hico_det_has_coco_ids_and_ing_forms(hico):
    assert hico.category_ids[0] == 1 and max(hico.category_ids) == 90
    assert {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}.isdisjoint(hico.category_ids)
    ing = dict(zip(hico.verbs, hico.verb_ings, strict=True))
    assert (ing["ride"], ing["sit_on"], ing["cut_with"]) == ("riding", "sitting on", "cutting with")
    bench = hico.interaction_ids[hico.verbs.index("sit_on"), 13]
    assert hico.interaction_name(bench) == "sit on bench"
    assert hico.verbs[hico.no_interaction] == "no_interaction"
    assert hico.valid[hico.no_interaction].sum() == 80


def test_vcoco_has_a_verb_per_role(vcoco, hico):
    assert vcoco.objects == hico.objects and vcoco.category_ids == hico.category_ids
    assert len(vcoco.roles) == 26
    named = [verb for action in vcoco.roles for verb in action["verbs"]]
    assert named == list(vcoco.verbs)
    expected = [
        f"{action['action']}_{role}" if role else action["action"]
        for action in vcoco.roles
        for role in action["roles"] or [""]
    ]
    assert named == expected
    assert [a["action"] for a in vcoco.roles if len(a["roles"]) == 2] == ["hit", "eat", "cut"]
    assert vcoco.no_interaction is None


def test_swig_hoi_has_the_benchmarks_groups():
    swig = load_vocabulary("swig-hoi")
    unseen, rare, non_rare = map(set, (swig.splits["swig"]["unseen"], swig.rare, swig.non_rare))
    evaluated = set(swig.evaluated)
    assert unseen | rare | non_rare == set(range(14130))
    assert [len(group) for group in (unseen, rare, non_rare)] == [1391, 11377, 1362]
    assert [len(group & evaluated) for group in (unseen, rare, non_rare)] == [1391, 2841, 1307]
    assert (swig.person, swig.category_ids) == (0, tuple(range(1000)))
    assert swig.interaction_names[0] == ("injecting", "syringe")


def test_objects_of_swig_hoi_that_share_a_name_have_the_wordnet_id():
    names = load_vocabulary("swig-hoi").objects
    assert {"mouse_n03793489", "mouse_n02330245", "vacuum_cleaner"} <= set(names)
    assert len(names) - len(set(map(object_text, names))) == 37
    assert object_text("wooden_spoon_n04597913") == "wooden spoon" == object_text("wooden spoon")


def test_vocabulary_file(tmp_path):
    path = tmp_path / "cups.json"
    path.write_text(json.dumps({key: MINE[key] for key in MINE if key != "name"}))
    vocabulary = load_vocabulary(path)
    assert vocabulary.name == "cups"
    assert vocabulary.interactions == ((0, 1),)
    assert not vocabulary.valid[1].any()
    assert (vocabulary.rare, vocabulary.splits, vocabulary.roles) == ((), {}, ())


def test_digest_depends_on_the_tables():
    other = copy.deepcopy(MINE)
    other["verbs"][1]["ing"] = "waving at"
    named = {**MINE, "name": "other", "source": "elsewhere"}
    digests = [vocabulary_from_dict(value, "x").digest() for value in (MINE, named, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", ["coco", "none.json"])
def test_unknown_vocabulary_error_lists_known_names(name):
    with pytest.raises(
        InputError, match=f"{name}: no such vocabulary; .* hico-det, vcoco, swig-hoi"
    ):
        load_vocabulary(name)


SPLIT = {"unseen": [0], "distilled": "all_verbs"}
ROLE = {"action": "lift", "roles": ["obj"], "verbs": ["lift"]}
CUP = {"name": "cup", "id": 1}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objects", [], "objects: expected"),
        ("objects", [CUP], "objects: expected an object named person"),
        ("objects", MINE["objects"] * 2, "objects, name: .*person 2 times"),
        ("objects", [{**CUP, "name": "person"}, CUP], "objects, id: expected.*found 1 2 times"),
        ("verbs", ["lift"], r"verbs\[0\]: expected"),
        ("verbs", [{"name": "lift", "ing": " "}], r"verbs\[0\].ing: expected"),
        (
            "verbs",
            [{"name": "li\nft", "ing": "a"}],
            r"verbs\[0\].name: expected a text of one line",
        ),
        ("objects", [{**CUP, "name": "cu\0p"}], r"objects\[0\].name: expected a text of one line"),
        ("verbs", MINE["verbs"] * 2, "verbs, name: .*lift 2 times"),
        ("interactions", [[0, 2]], r"interactions\[0\]: expected \[verb below 2, object below 2\]"),
        ("interactions", [[0, 1], [0, 1]], "interactions: expected"),
        ("rare", [1], "rare: expected interaction numbers from 0 to 0, found 1"),
        ("rare", [0, 0], "rare: expected"),
        ("non_rare", [-1], "non_rare: expected"),
        ("evaluated", [1], "evaluated: expected"),
        ("splits", {"full": SPLIT}, "splits: expected"),
        (
            "splits",
            {"a": {**SPLIT, "distilled": "some"}},
            "splits.a.distilled: .*all_verbs, unseen",
        ),
        ("splits", {"a": {**SPLIT, "unseen": [7]}}, "splits.a.unseen: expected"),
        ("roles", [{**ROLE, "roles": ["obj", "instr"]}], r"roles\[0\].verbs: expected"),
        ("roles", [{**ROLE, "verbs": ["drop"]}], r"roles\[0\].verbs: expected"),
    ],
)
def test_wrong_vocabulary_files_name_the_field(save_json, changed, key, value, message):
    path = save_json(changed(MINE, [key], value), "mine.json")
    with pytest.raises(InputError, match=f"mine.json: {message}"):
        load_vocabulary(path)


@pytest.mark.parametrize("names", [["Crown", "crown", "hot_dog"], ["crown", "Crown", "hot_dog"]])
def test_the_same_name_comes_before_another_spelling(names):
    wanted = ["crown", "Crown", "Hot  dog", "hot_dog", "dog", ""]
    found = find_names(wanted, names)
    assert [names[index] for index in found[:4]] == ["crown", "Crown", "hot_dog", "hot_dog"]
    assert found[4:] == [-1, -1]


def test_verbs_are_found_by_name_or_form():
    toy = load_vocabulary("toy")
    ride, jump = (toy.verbs.index(name) for name in ("ride", "jump"))
    assert find_verbs(["Ride", "leap", "x"], ["", "jumping over", "y"], toy) == [ride, jump, -1]
