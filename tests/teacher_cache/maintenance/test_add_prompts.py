import json
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
from commands import run_command

from pipeline.utils.errors import InputError
from pipeline.utils.files import write_json
from teacher_cache.cli import main
from teacher_cache.maintenance.add_prompts import (
    create_prompts_file,
    parse_action,
)
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import MANIFEST, TEACHER
from teacher_cache.reader.prompts_file import read_prompts_file

ALL_OBJECTS = ["horse", "dog", "bike", "ball", "box", "umbrella", "skateboard", "chair"]


@pytest.fixture
def add(finished, tmp_path):
    """`add(*added, **changes)` writes a prompts file to `tmp_path / "new.h5"`."""

    def run(*added, **changes):
        given = {"cache": finished, "out": tmp_path / "new.h5", "added": added, "device": "cpu"}
        return create_prompts_file(**{**given, **changes})

    return run


@pytest.mark.parametrize(
    ("text", "verb", "ing", "objects"),
    [
        ("throwing a picture", "throwing_a_picture", "throwing a picture", ALL_OBJECTS),
        ("kicking:dog, chair", "kick", "kicking", ["dog"]),
        ("Riding", "ride", "Riding", ["dog", "ball", "box", "umbrella", "chair"]),
        ("leap=jumping over:box", "leap", "jumping over", ["box"]),
        ("sitting_on:dog", "sit_on", "sitting_on", ["dog"]),
        ("lean on = pushing:box,Horse", "lean_on", "pushing", ["horse", "box"]),
        ("KICK=kicking:dog", "kick", "kicking", ["dog"]),
    ],
)
def test_parse_action(vocabulary, text, verb, ing, objects):
    if verb == "kick":
        kick = vocabulary.verbs.index("kick")
        assert vocabulary.valid[kick, vocabulary.objects.index("chair")]
    assert parse_action(text, vocabulary) == [(verb, ing, name) for name in objects]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--add: expected"),
        (":box", "--add: expected"),
        ("a=b=c", "--add: expected"),
        ("throwing:box:dog", "--add: expected"),
        ("juggling:piano", r"--add: expected.*found 'piano'"),
        ("juggling:", "--add: expected"),
        ("kicking:ball", r"--add: expected.*found 'kicking:ball'"),
        ("kick=booting", r"kick: expected.*found 'booting'"),
        ("KICK=booting:box", r"kick: expected.*found 'booting'"),
        (" =kicking:box", "--add: expected"),
    ],
)
def test_invalid_actions(vocabulary, text, message):
    with pytest.raises(InputError, match=message):
        parse_action(text, vocabulary)


def test_prompts_and_embeddings_equal_those_of_the_cache(add, finished, tmp_path):
    made = add("kick=kicking:dog,horse", "hoist=carrying:box", "jumping over:horse")
    cache = open_cache(finished)
    found = read_prompts_file(tmp_path / "new.h5")
    assert found.text_model == cache.text_model
    assert found.verbs == ("kick", "hoist", "jump")
    assert found.prompts[0] == ("a picture of person kicking horse",)
    assert found.objects == ("horse", "dog", "box", "horse")
    assert found.actions.tolist() == [0, 0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, rtol=1e-5)
    # The cache contains the prompt about carrying a box; its embedding must be the same.
    row = cache.prompt_embeddings.prompts.index(("a picture of person carrying box",))
    np.testing.assert_allclose(
        found.embeddings[2], cache.prompt_embeddings.embeddings[row], atol=1e-5
    )
    assert made.digest() == found.digest()


def test_a_synonym_is_named_without_a_warning(add, messages, capsys):
    messages.clear()
    add("drag=pulling:horse")
    assert 'drag: horse; "a picture of person pulling horse", which scores like pull' in (
        capsys.readouterr().out
    )
    assert messages == []


def test_interactions_of_a_wider_vocabulary_are_added(add, vocabulary, tmp_path, messages):
    value = vocabulary.to_dict()
    value["verbs"].append({"name": "lift", "ing": "throwing carrying"})
    value["objects"].append({"name": "piano", "id": 99})
    value["interactions"] += [[11, 4], [0, 2], [11, 9]]
    write_json(tmp_path / "wider.json", {**value, "splits": {}})
    messages.clear()
    found = add(vocabulary=str(tmp_path / "wider.json"))
    assert [found.verbs[row] for row in found.actions] == ["lift", "ride"]
    assert found.objects == ("ball", "dog")
    assert "1 interaction left out" in messages[0] and messages[0].endswith("cache: piano")


def test_new_objects(add, vocabulary, tmp_path, messages):
    made = add("kicking:dog,riding horse", new_objects=True)
    assert made.objects == ("dog", "riding_horse") and made.verbs == ("kick",)
    assert made.prompts[1] == ("a picture of person kicking riding horse",)
    value = vocabulary.to_dict()
    value["objects"].append({"name": "throwing", "id": 99})
    value["interactions"].append([0, 9])
    write_json(tmp_path / "wider.json", {**value, "splits": {}})
    messages.clear()
    made = add(vocabulary=str(tmp_path / "wider.json"), new_objects=True, overwrite=True)
    assert made.objects == ("throwing",) and not messages
    with pytest.raises(InputError, match=r"--add: expected .* or --new-objects, found 'piano'"):
        parse_action("riding:piano", vocabulary)
    with pytest.raises(InputError, match="--add: expected"):
        parse_action("riding:piano,", vocabulary, new_objects=True)


def test_spellings_of_a_new_class_are_one(add, vocabulary, tmp_path):
    made = add("Hoist=pulling:no ball,No_ball", "hoist=pulling:NO BALL,dog", new_objects=True)
    assert made.verbs == ("Hoist",) and made.objects == ("no_ball", "dog")
    value = vocabulary.to_dict()
    for one in (*value["objects"], *value["verbs"]):
        one["name"] = one["name"].replace("b", "B")
    dog, kick = vocabulary.objects.index("dog"), vocabulary.verbs.index("kick")
    value |= {"interactions": [*value["interactions"], [kick, dog]], "splits": {}, "rare": []}
    (tmp_path / "capitals.json").write_text(json.dumps(value))
    made = add(vocabulary=str(tmp_path / "capitals.json"), new_objects=True, overwrite=True)
    assert (made.verbs, made.objects) == (("kick",), ("dog",))


def test_objects_that_differ_in_case_only(vocabulary):
    """SWIG-HOI has "Crown" and "crown"."""
    objects = ("Crown", *vocabulary.objects[1:-1], "crown")
    known = replace(vocabulary, objects=objects)
    for name in ("Crown", "crown"):
        assert parse_action(f"juggling: {name}", known) == [("juggling", "juggling", name)]


def test_several_templates_are_averaged(add, dataset, build):
    templates = ("a photo of person {ing} {object}", "person {ing} {object}")
    made = add("kicking:dog", cache=build(dataset, templates=templates).path)
    assert made.prompts == (("a photo of person kicking dog", "person kicking dog"),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"added": ()}, "expected --add or --vocabulary with an action that is new, found none"),
        ({"vocabulary": "toy", "added": ()}, "an action that is new, found none"),
        ({"templates": ("{ing} {object}",)}, "--template: expected"),
        ({"added": ("juggling:dog",)}, "juggling"),
        ({"added": ("hug=kicking:dog", "hug=pulling:dog")}, "hug: expected"),
    ],
)
def test_bad_input_leaves_no_file(add, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        add(**{"added": ("kicking:dog",), **changes})
    assert not (tmp_path / "new.h5").exists()


def test_another_clip_is_refused(add, copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["parts"]["clip.weights"] = "0" * 64
    manifest["fingerprint"] = compute_fingerprint(manifest["parts"])
    with h5py.File(copy / TEACHER, "a") as file:
        file.attrs["fingerprint"] = manifest["fingerprint"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="--clip-model: expected"):
        add("kicking:dog", cache=copy)


def test_the_command(finished, tmp_path):
    args = ("prompts", finished, "--add", "kicking:dog", "--out", tmp_path / "new.h5")
    run = partial(run_command, main, "eoid-cache", *args, "--device", "cpu")
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'kick: dog; "a picture of person kicking dog"\n'
    done = run()
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "exists; give --overwrite" in done.stderr
    assert run("--overwrite").returncode == 0
