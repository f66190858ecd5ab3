"""Prompt templates, and text embeddings averaged over templates (EoID section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.cache import PromptEmbeddings

# Per interaction, one sentence for each template.
Prompts = tuple[tuple[str, ...], ...]
# The published prompt.
DEFAULT_TEMPLATE = "a picture of person {ing} {object}"
# Embeddings of one sentence in batches of different sizes differ by less than this.
SAME_EMBEDDING_TOLERANCE = 1e-5
# Groups of indistinguishable actions that the warning lists.
MAX_LISTED = 5


def interaction_prompts(
    vocabulary: Vocabulary, templates: Sequence[str] = (DEFAULT_TEMPLATE,)
) -> Prompts:
    """The prompts of all H interactions, with underscores replaced by spaces.

    Args:
        templates: sentences with the fields `{ing}` ("sitting on") and `{object}`.

    Returns:
        H tuples of one prompt per template.

    Raises:
        InputError: a template lacks a field or has others.
    """
    for template in templates:
        _check_template(template)
    return tuple(
        fill_templates(templates, vocabulary.verb_ings[verb], vocabulary.objects[label])
        for verb, label in vocabulary.interactions
    )


def fill_templates(templates: Sequence[str], ing: str, object_name: str) -> tuple[str, ...]:
    """One prompt per template for a verb's "-ing" form and an object."""
    return tuple(
        template.format(ing=ing, object=object_name).replace("_", " ").strip()
        for template in templates
    )


def embed_prompts(
    prompts: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """(H, D) float32: the normalised mean of the embeddings of each interaction's prompts.

    Args:
        prompts: H groups of T sentences, one per template.
        encode: N sentences -> (N, D) normalised embeddings.
    """
    sentences = [sentence for group in prompts for sentence in group]
    embeddings = encode(sentences)
    means = embeddings.reshape(len(prompts), -1, embeddings.shape[1]).mean(axis=1)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def indistinguishable_actions(
    actions: Sequence[tuple[str, str]], text: PromptEmbeddings | None
) -> str:
    """A warning about interactions of one object with equal prompt embeddings; empty without any.

    Embeddings are equal where verbs share their "-ing" form, or where sentences differ only after
    the text encoder's context length.

    Args:
        actions: verb and object name of H interactions.
        text: their prompts; None for a teacher without a text encoder.
    """
    if text is None:
        return ""
    # Verbs with equal embeddings -> the first row of each object for which this is so.
    rows_by_verbs: dict[tuple[str, ...], list[int]] = {}
    for object_name in dict.fromkeys(name for _, name in actions):
        indices = np.array([row for row, (_, name) in enumerate(actions) if name == object_name])
        embeddings = text.embeddings[indices]
        distances = (np.abs(embeddings - each).max(axis=1) for each in embeddings)
        is_equal = (each <= SAME_EMBEDDING_TOLERANCE for each in distances)
        for equal in dict.fromkeys(tuple(indices[each].tolist()) for each in is_equal):
            if len(equal) > 1:
                verbs = tuple(actions[row][0] for row in equal)
                rows_by_verbs.setdefault(verbs, []).append(equal[0])
    groups = []
    for verbs, rows in rows_by_verbs.items():
        more = f" and {len(rows) - 1} more objects" if len(rows) > 1 else ""
        sentence = text.prompts[rows[0]][0]
        groups.append(f'{", ".join(verbs)} with {actions[rows[0]][1]}{more} ("{sentence}")')
    if not groups:
        return ""
    further = f"; and {len(groups) - MAX_LISTED} more" if len(groups) > MAX_LISTED else ""
    return (
        "the teacher cannot distinguish actions whose prompts have equal embeddings: "
        + "; ".join(groups[:MAX_LISTED])
        + further
    )


def _check_template(template: str) -> None:
    message = f"--template: expected a sentence with {{ing}} and {{object}}, found {template!r}"
    try:
        filled = template.format(ing="\0", object="\1")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise InputError(message) from None
    if "\0" not in filled or "\1" not in filled:
        raise InputError(message)
