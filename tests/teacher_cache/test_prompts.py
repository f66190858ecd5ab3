import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.prompts import embed_prompts, interaction_prompts


def test_the_published_sentence():
    hico = load_vocabulary("hico-det")
    prompts = interaction_prompts(hico)
    assert len(prompts) == 600
    names = [hico.interaction_name(index) for index in range(600)]
    assert prompts[names.index("ride bicycle")] == ("a picture of person riding bicycle",)
    assert prompts[names.index("sit at dining table")] == (
        "a picture of person sitting at dining table",
    )
    assert not any("_" in prompt for group in prompts for prompt in group)


def test_several_templates(vocabulary):
    prompts = interaction_prompts(vocabulary, ["{ing} a {object}", "{object}, {ing}"])
    assert prompts[0] == ("riding a horse", "horse, riding")


@pytest.mark.parametrize(
    "template",
    ["", "a person", "{ing}", "{object}", "{ing} {object} {verb}", "{} {ing} {object}", "{ing"],
)
def test_templates_without_their_places(vocabulary, template):
    with pytest.raises(InputError, match="--template: expected a sentence"):
        interaction_prompts(vocabulary, [template])


def test_no_template(vocabulary):
    with pytest.raises(InputError, match="found none"):
        interaction_prompts(vocabulary, [])


def test_embeddings_are_normalised_means():
    vectors = {"a": [1, 0], "b": [0, 1], "c": [0.6, 0.8], "d": [0.6, 0.8]}
    found = embed_prompts(
        [["a", "b"], ["c", "d"]], lambda texts: np.array([vectors[text] for text in texts])
    )
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [0.6, 0.8]], rtol=1e-6)
    assert found.dtype == np.float32
