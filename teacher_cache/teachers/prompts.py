"""Prompt templates and their averaged text embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.cache import PromptEmbeddings

# Per interaction, one sentence for each template.
Prompts = tuple[tuple[str, ...], ...]
# Equal sentences in different batches are embedded this equally.
SAME_EMBEDDING_TOLERANCE = 1e-5
MAX_LISTED = 5
DEFAULT_TEMPLATE = "a picture of person {ing} {object}"


def interaction_prompts(
    vocabulary: Vocabulary, templates: Sequence[str] = (DEFAULT_TEMPLATE,)
) -> Prompts:
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
        _check_template(template)
    return tuple(
        fill_templates(templates, vocabulary.verb_ings[verb], vocabulary.objects[label])
        for verb, label in vocabulary.interactions
    )


def fill_templates(templates: Sequence[str], ing: str, thing: str) -> tuple[str, ...]:
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


def indistinguishable_actions(actions: Sequence[tuple[str, str]], text: PromptEmbeddings) -> str:
    """Which actions the teacher cannot tell apart, for people; empty where it can all.

    Sentences are alike where verbs share a form, or where they differ behind the text tower's
    context length only.

    Args:
        actions: names of verb and object of H interactions.
        text: their sentences.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    for thing in dict.fromkeys(thing for _, thing in actions):
        rows = [row for row, (_, own) in enumerate(actions) if own == thing]
        while rows:
            first, *others = rows
            apart = np.abs(text.embeddings[others] - text.embeddings[first]).max(axis=1, initial=0)
            alike = [
                row
                for row, distance in zip(others, apart, strict=True)
                if distance <= SAME_EMBEDDING_TOLERANCE
            ]
            if alike:
                found.setdefault(tuple(actions[row][0] for row in (first, *alike)), []).append(
                    first
                )
            rows = [row for row in others if row not in alike]
    told = []
    for verbs, rows in found.items():
        more = f" and {len(rows) - 1} more objects" if len(rows) > 1 else ""
        sentence = text.prompts[rows[0]][0]
        told.append(f'{", ".join(verbs)} with {actions[rows[0]][1]}{more} ("{sentence}")')
    if not told:
        return ""
    further = f"; and {len(told) - MAX_LISTED} more" if len(told) > MAX_LISTED else ""
    return (
        "warning: the teacher cannot tell these actions apart, whose sentences it reads alike: "
        + "; ".join(told[:MAX_LISTED])
        + further
    )


def _check_template(template: str) -> None:
    wrong = f"--template: expected a sentence with {{ing}} and {{object}}, found {template!r}"
    try:
        filled = template.format(ing="\0", object="\1")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise InputError(wrong) from None
    if "\0" not in filled or "\1" not in filled:
        raise InputError(wrong)
