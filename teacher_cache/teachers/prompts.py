"""Prompts: templates filled with class names (EoID section 3.3), or sentences from a file, and
their text embeddings, averaged over the sentences of a class."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json
from pipeline.utils.schema import Text, convert
from pipeline.vocabulary import NO_INTERACTION, Vocabulary, normalise_name, object_text
from teacher_cache.reader.cache import PromptEmbeddings

# Per interaction, one sentence for each template, or those of a file.
Prompts = tuple[tuple[str, ...], ...]
# The published prompt.
DEFAULT_TEMPLATE = "a picture of person {ing} {object}"
# Embeddings of one sentence in batches of different sizes differ by less than this.
SAME_EMBEDDING_TOLERANCE = 1e-5
# Groups of indistinguishable actions, and classes without sentences, that warnings list.
MAX_LISTED = 5
OTHER_FIELD = re.compile(r"\{(?!object\})\w*\}")
# Verb, its "-ing" form and object.
PromptClass = tuple[str, str, str]
# Sentences of verbs and of interactions ("ride horse"), by normalised name.
Sentences = dict[str, tuple[str, ...]]
SentenceList = Annotated[list[Text], Meta(min_length=1, description="a non-empty list of texts")]


def interaction_prompts(
    vocabulary: Vocabulary,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    sentences: Path | None = None,
) -> Prompts:
    """The prompts of all H interactions; see `class_prompts`.

    Raises:
        InputError: a template lacks a field or has others, or the file of sentences is wrong.
    """
    for template in templates:
        _check_template(template)
    return class_prompts(prompt_classes(vocabulary), templates, sentences)


def prompt_classes(vocabulary: Vocabulary) -> list[PromptClass]:
    """The H interactions of a vocabulary."""
    return [
        (vocabulary.verbs[verb], vocabulary.verb_ings[verb], vocabulary.objects[label])
        for verb, label in vocabulary.interactions
    ]


def class_prompts(
    classes: Sequence[PromptClass],
    templates: Sequence[str],
    sentences: Path | None = None,
    others: Sequence[PromptClass] = (),
) -> Prompts:
    """The prompts of interactions, with underscores replaced by spaces, without WordNet ids.

    Args:
        classes: verb, its "-ing" form and object of every interaction.
        templates: sentences with the fields `{ing}` ("sitting on") and `{object}`.
        sentences: a file of sentences for verbs and interactions, which are used in place of the
            templates; those of an interaction in place of those of its verb.
        others: further interactions for which the file may have sentences.

    Returns:
        A tuple of prompts for each interaction.

    Raises:
        InputError: the file is wrong, or has sentences for others than these classes.
    """
    given = {} if sentences is None else _read_sentences(sentences, [*classes, *others])
    return tuple(
        _class_sentences(given, verb, name) or fill_templates(templates, ing, name)
        for verb, ing, name in classes
    )


def classes_without_sentences(
    classes: Sequence[PromptClass], sentences: Path | None, others: Sequence[PromptClass] = ()
) -> str:
    """A warning that names the interactions without sentences in a file; empty without any.

    The arguments are those of `class_prompts`.
    """
    if sentences is None:
        return ""
    given = _read_sentences(sentences, [*classes, *others])
    actions = [(verb, name) for verb, _, name in classes if verb != NO_INTERACTION]
    missing = [
        f"{verb} {name}" for verb, name in actions if not _class_sentences(given, verb, name)
    ]
    if not missing:
        return ""
    listed = ", ".join(missing[:MAX_LISTED]) + (", ..." if len(missing) > MAX_LISTED else "")
    return (
        f"{sentences}: no sentences for {len(missing)} of {len(actions)} interactions, which have"
        f" the templates' prompts: {listed}"
    )


def _read_sentences(file: Path, classes: Sequence[PromptClass]) -> Sentences:
    """Reads `{verb or interaction: [sentence, ...]}` and checks the names."""
    known = {normalise_name(verb): verb for verb, *_ in classes}
    known |= {normalise_name(f"{verb} {name}"): f"{verb} {name}" for verb, _, name in classes}
    read = convert(read_json(file, unique_names=True), dict[str, SentenceList], file)
    if not read:
        raise bad_field(file, "names", "at least one verb or interaction", "none")
    given = {normalise_name(name): tuple(texts) for name, texts in read.items()}
    unknown = [name for name in read if normalise_name(name) not in known]
    if unknown:
        similar = get_close_matches(normalise_name(unknown[0]), known) or list(known)
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        expected = f"verbs and interactions, such as {', '.join(similar[:3])}"
        listed = ", ".join(name or "''" for name in unknown[:MAX_LISTED])
        raise bad_field(file, "names", expected, f"{listed}{more}")
    if len(given) < len(read):
        raise bad_field(file, "names", "every class once", f"{len(read) - len(given)} repeated")
    for name, texts in read.items():
        for text in texts:
            # Those of templates, which a text encoder would take as words.
            if field := OTHER_FIELD.search(text):
                raise bad_field(file, name, "sentences with no field but {object}", field[0])
    return given


def _class_sentences(sentences: Sentences, verb: str, name: str) -> tuple[str, ...]:
    """Sentences of an interaction, otherwise of its verb with `{object}` filled in; or none."""
    own = sentences.get(normalise_name(f"{verb} {name}")) or sentences.get(normalise_name(verb), ())
    return tuple(text.replace("{object}", object_text(name)).strip() for text in own)


def fill_templates(templates: Sequence[str], ing: str, object_name: str) -> tuple[str, ...]:
    """One prompt per template for a verb's "-ing" form and an object."""
    return tuple(
        template.format(ing=ing, object=object_text(object_name)).replace("_", " ").strip()
        for template in templates
    )


def embed_prompts(
    prompts: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """(H, D) float32: the normalised mean of the embeddings of each interaction's prompts.

    Args:
        prompts: H groups of sentences, at least one.
        encode: N sentences -> (N, D) normalised embeddings.
    """
    sentences = [sentence for group in prompts for sentence in group]
    embeddings = encode(sentences)
    offsets = np.cumsum([0, *map(len, prompts)])
    means = np.stack([embeddings[start:end].mean(axis=0) for start, end in pairwise(offsets)])
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
