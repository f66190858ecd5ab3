"""Sentences per class from a file: `--sentences` of build, rescore and prompts."""

import json
from functools import partial

import numpy as np
import pytest
from commands import run_command

from pipeline.utils.errors import InputError
from teacher_cache.build import BuildConfig, build_cache
from teacher_cache.cli import main
from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.prompts_file import read_prompts_file
from teacher_cache.teachers.prompts import (
    class_prompts,
    classes_without_sentences,
    interaction_prompts,
    prompt_classes,
)

run = partial(run_command, main, "eoid-cache")


@pytest.fixture
def write(tmp_path):
    """`write(sentences)`: a file of sentences."""

    def write_file(sentences, name="sentences.json"):
        (tmp_path / name).write_text(json.dumps(sentences))
        return tmp_path / name

    return write_file


def test_interactions_come_before_verbs_and_verbs_before_templates(vocabulary, write):
    file = write({"Ride": ["on a {object}", "rider"], "ride_horse": ["horse riding"]})
    prompts = dict(
        zip(
            vocabulary.interaction_names,
            interaction_prompts(vocabulary, sentences=file),
            strict=True,
        )
    )
    assert prompts["ride", "horse"] == ("horse riding",)
    assert prompts["ride", "bike"] == ("on a bike", "rider")
    assert prompts["kick", "ball"] == ("a picture of person kicking ball",)
    warning = classes_without_sentences(prompt_classes(vocabulary), file)
    assert str(file) in warning and "carry box" in warning and "ride" not in warning.split(":")[-1]
    assert "no_interaction" not in warning and "39 of 42 interactions" in warning
    assert classes_without_sentences(prompt_classes(vocabulary), None) == ""


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ({"rides": ["a"]}, "names: expected .*such as ride.*found rides"),
        ({"ride cat": ["a"], "fly": ["b"]}, "found ride cat, fly and 1 more"),
        ({"ride": []}, "ride: expected a non-empty list of texts"),
        ({"ride": [" "]}, "ride"),
        ({"sit_on": ["a"], "sit on": ["b"]}, "every class once"),
        ([], "expected an object"),
        ({}, "names: expected at least one verb or interaction, found none"),
        ({"": ["a"]}, "names: .*, found ''$"),
        ({"ride": ["person {ing} {object}"]}, r"ride: .*no field but {object}, found {ing}"),
        ({"ride": ["{}"]}, r"ride: .*no field but {object}, found {}"),
    ],
)
def test_wrong_files(vocabulary, write, sentences, message):
    with pytest.raises(InputError, match=f"sentences.json: .*{message}"):
        class_prompts(prompt_classes(vocabulary), (), write(sentences))


def test_names_that_are_given_twice(vocabulary, tmp_path):
    file = tmp_path / "sentences.json"
    file.write_text('{"ride": ["a"], "kick": ["b"], "ride": ["c"]}')
    with pytest.raises(InputError, match=r"json: ride: expected one value, found 2 values of this"):
        class_prompts(prompt_classes(vocabulary), (), file)


def test_braces_in_sentences(vocabulary, write):
    file = write({"ride": ["a {person riding} {object}"]})
    assert class_prompts(prompt_classes(vocabulary), (), file)[0] == ("a {person riding} horse",)


def test_a_build_with_the_templates_sentences_has_the_same_outputs(
    finished, shared_dataset, build, contents, write, vocabulary
):
    names = [" ".join(pair) for pair in vocabulary.interaction_names]
    file = write(dict(zip(names, interaction_prompts(vocabulary), strict=True)))
    assert contents(build(shared_dataset, sentences=file).path) == contents(finished)


def test_a_class_may_have_any_number_of_sentences(shared_dataset, build, write, tmp_path):
    texts = ["person riding {object}", "a picture of {object}"]
    cache = build(shared_dataset, sentences=write({"ride": texts}))
    prompts = cache.prompt_embeddings.prompts
    assert {len(group) for group in prompts} == {1, 2}
    assert prompts[0] == ("person riding horse", "a picture of horse")
    new = write({"boot dog": ["picture of dog", "kicking dog"]}, "new.json")
    words = ("prompts", cache.path, "--add", "boot=kicking:dog,chair", "--out", tmp_path / "p.h5")
    done = run(*words, "--sentences", new)
    assert done.returncode == 0 and "1 of 2 interactions" in done.stderr, done.stderr
    read = dict(
        zip(
            *(getattr(read_prompts_file(tmp_path / "p.h5"), n) for n in ("objects", "prompts")),
            strict=True,
        )
    )
    assert read["dog"] == ("picture of dog", "kicking dog") and len(read["chair"]) == 1
    # The cache's own actions may have sentences in the same file.
    done = run(*words, "--overwrite", "--sentences", write({"ride": ["a"]}))
    assert done.returncode == 0 and "2 of 2 interactions" in done.stderr
    done = run(*words, "--overwrite", "--sentences", write({"fly": ["a"]}))
    assert done.returncode == 2 and "found fly" in done.stderr


def test_other_words_change_little_and_wrong_ones_a_lot(dataset_root, vocabulary, write, tmp_path):
    """The toy dataset's trained teacher; its text encoder knows 27 words."""
    config = BuildConfig(dataset_root, tmp_path / "cache", clip_model="toy", candidates="annotated")
    build_cache(config)
    verbs = [name for name in vocabulary.verbs if name != "no_interaction"]
    ings = [vocabulary.verb_ings[vocabulary.verbs.index(name)] for name in verbs]

    def distance(name, shift):
        """Mean total variation distance from the cache's probabilities."""
        texts = {
            verb: [
                f"person {ing} {{object}}",
                f"picture of a person {ing} a {{object}}",
                f"a person {ing} a {{object}}",
            ]
            for verb, ing in zip(verbs, ings[shift:] + ings[:shift], strict=True)
        }
        out, file = tmp_path / name, write(texts, f"{name}.json")
        rescore_cache(RescoreConfig(tmp_path / "cache", out, sentences=file))
        old, new = (
            np.concatenate([cache[image].probabilities for image in cache.image_ids])
            for cache in map(open_cache, (tmp_path / "cache", out))
        )
        return np.abs(old - new).sum(axis=1).mean() / 2

    assert distance("paraphrased", 0) < 0.25 < 0.6 < distance("wrong", 3)
