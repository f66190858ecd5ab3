import numpy as np
import pytest

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.teachers.prompts import (
    embed_prompts,
    fill_templates,
    indistinguishable_actions,
    interaction_prompts,
)


def test_the_published_prompts():
    hico = load_vocabulary("hico-det")
    prompts = interaction_prompts(hico)
    assert len(prompts) == 600
    names = [hico.interaction_name(index) for index in range(600)]
    assert prompts[names.index("ride bicycle")] == ("a picture of person riding bicycle",)
    assert prompts[names.index("sit at dining table")] == (
        "a picture of person sitting at dining table",
    )
    assert not any("_" in prompt for group in prompts for prompt in group)


def test_prompts_leave_out_wordnet_ids(tmp_path):
    swig = load_vocabulary("swig-hoi")
    file = tmp_path / "sentences.json"
    file.write_text('{"feeding mouse_n02330245": ["a {object} in a hand"]}')
    prompts = interaction_prompts(swig, ["a photo of a person {ing} {object}"], file)
    number = swig.interaction_names.index(("feeding", "mouse_n02330245"))
    assert prompts[number] == ("a mouse in a hand",)
    other = next(row for row, (_, name) in enumerate(swig.interaction_names) if "n03793489" in name)
    assert prompts[other] == (f"a photo of a person {swig.interaction_names[other][0]} mouse",)


@pytest.mark.parametrize(
    "template",
    ["", "a person", "{ing}", "{object}", "{ing} {object} {verb}", "{} {ing} {object}", "{ing"],
)
def test_templates_with_missing_or_unknown_fields(vocabulary, template):
    assert interaction_prompts(vocabulary, ["{object}, {ing}"])[0] == ("horse, riding",)
    with pytest.raises(InputError, match="--template: expected"):
        interaction_prompts(vocabulary, [template])


def test_embeddings_are_normalised_means():
    vectors = {"a": [1, 0], "b": [0, 1], "c": [0.6, 0.8], "d": [0.6, 0.8]}
    found = embed_prompts(
        [["a", "b"], ["c", "d"]], lambda texts: np.array([vectors[text] for text in texts])
    )
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [0.6, 0.8]], rtol=1e-6)
    assert found.dtype == np.float32


def truncating_encoder(num_words):
    """A text encoder whose embeddings depend only on the first words of a text."""
    known = {}

    def encode(texts):
        rng = np.random.default_rng(0)
        heads = [" ".join(text.split()[:num_words]) for text in texts]
        for head in heads:
            known.setdefault(head, len(known))
        vectors = rng.standard_normal((len(known), 8)).astype(np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[[known[h] for h in heads]]

    return encode


@pytest.mark.parametrize(
    ("ings", "num_words", "verbs"),
    [
        (("holding", "throwing", "holding"), 99, ("use", "hold")),
        (("slowly holding", "slowly holding back", "carrying"), 6, ("use", "throw")),
        (("holding", "throwing", "carrying"), 99, None),
    ],
)
def test_indistinguishable_actions(ings, num_words, verbs):
    names = [(verb, name) for name in ("cup", "ball") for verb in ("use", "throw", "hold")]
    forms = dict(zip(("use", "throw", "hold"), ings, strict=True))
    template = ["a picture of person {ing} {object}"]
    prompts = tuple(fill_templates(template, forms[verb], name) for verb, name in names)
    text = PromptEmbeddings(prompts, embed_prompts(prompts, truncating_encoder(num_words)), 10.0)
    line = indistinguishable_actions(names, text)
    if verbs is None:
        assert line == ""
    else:
        assert ", ".join(verbs) in line and "cup" in line and "\n" not in line
        assert prompts[0][0] in line and "1 more" in line
