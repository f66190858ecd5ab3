"""The sentences that the teacher is asked with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary

# Per interaction, one sentence for each template.
Prompts = tuple[tuple[str, ...], ...]
TEMPLATE = "a picture of person {ing} {object}"


def interaction_prompts(vocabulary: Vocabulary, templates: Sequence[str] = (TEMPLATE,)) -> Prompts:
    """One sentence per interaction and template, underscores as spaces.

    Args:
        vocabulary: the H interactions.
        templates: sentences with the places `{ing}` ("sitting on") and `{object}`.

    Returns:
        H tuples with one prompt for each template.

    Raises:
        InputError: no template, or one without both places or with others.
    """
    if not templates:
        raise InputError("--template: expected at least one sentence, found none")
    for template in templates:
        _check(template)
    return tuple(
        fill(templates, vocabulary.verb_ings[verb], vocabulary.objects[label])
        for verb, label in vocabulary.interactions
    )


def fill(templates: Sequence[str], ing: str, thing: str) -> tuple[str, ...]:
    """The sentences about one verb, in its prompt form, with one object."""
    return tuple(
        template.format(ing=ing, object=thing).replace("_", " ").strip() for template in templates
    )


def embed_prompts(
    prompts: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """(H, D) float32: the normalised mean of the embeddings of each interaction's prompts.

    Args:
        prompts: H groups of equally many sentences.
        encode: sentences to normalised (N, D) embeddings.
    """
    sentences = [sentence for group in prompts for sentence in group]
    embeddings = encode(sentences)
    means = embeddings.reshape(len(prompts), -1, embeddings.shape[1]).mean(axis=1)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def _check(template: str) -> None:
    wrong = f"--template: expected a sentence with {{ing}} and {{object}}, found {template!r}"
    try:
        filled = template.format(ing="\0", object="\1")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise InputError(wrong) from None
    if "\0" not in filled or "\1" not in filled:
        raise InputError(wrong)
