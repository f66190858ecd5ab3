"""Gives a student that reads sentences about actions it was never trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.errors import InputError, bad_field
from pipeline.splits import Split
from pipeline.vocabulary import Vocabulary
from student.model import HOIDetector
from student.opened import Opened, open_student
from student.teacher_texts import sentences_for
from student.text_head import TextVerbHead
from teacher_cache.prompt_file import NewPrompts, read_prompts

NAME = "+prompts"


def with_new_actions(
    opened: Opened, file: Path, prompts: Path, wanted: Vocabulary | None = None
) -> Opened:
    """The same student with more actions; those are unseen.

    Args:
        opened: in eval mode; its model is changed.
        file: the student's, named in errors.
        prompts: what `eoid-cache prompts` wrote.
        wanted: a dataset's vocabulary whose actions the student gets instead, all of which it or
            the prompts have to know, by their names or by their forms in sentences.

    Raises:
        InputError: a student that does not read, prompts of another CLIP or with objects that the
            student does not know, or an action of the dataset that nobody knows.
    """
    head = opened.model.verb_head
    if not isinstance(head, TextVerbHead):
        raise InputError(
            f"{file}: expected a student trained with --verb-head text for --prompts, found a"
            " linear one"
        )
    new = read_prompts(prompts)
    if new.text_model != opened.model.config.text_model:
        raise InputError(
            f"{prompts}: expected texts of the CLIP that {file} has learned from"
            f" ({opened.model.config.text_model[:12]}), found another's ({new.text_model[:12]})"
        )
    old = opened.vocabulary
    own = head.texts[: old.num_interactions].cpu().numpy()
    vocabulary, embeddings = _joined(old, own, new, prompts)
    unseen = {*opened.split.unseen, *range(old.num_interactions, vocabulary.num_interactions)}
    if wanted is not None:
        rows = _rows(vocabulary, wanted, file, prompts)
        sentences = sentences_for(vocabulary, embeddings, prompts)
        labels = [label for _, label in wanted.interactions]
        texts = sentences.texts[sentences.rows[labels, rows]]
        ids = vocabulary.interaction_ids[rows, labels]
        unseen = {hoi for hoi, own in enumerate(ids.tolist()) if own < 0 or own in unseen}
        vocabulary, embeddings = wanted, texts.numpy()
    head.tell(sentences_for(vocabulary, embeddings, prompts))
    _resize(opened.model, vocabulary)
    asked = dict(zip(old.verbs, opened.split.asked_verbs.tolist(), strict=True))
    split = Split(
        opened.split.name + NAME,
        tuple(sorted(unseen)),
        np.array([asked.get(verb, False) for verb in vocabulary.verbs], dtype=bool),
    )
    return replace(opened, vocabulary=vocabulary, split=split)


def open_with(
    file: Path,
    vocabulary: Vocabulary | None,
    num_heads: int | None,
    prompts: Path | None,
) -> Opened:
    """Opens a detector, with new actions where there are prompts.

    Args:
        file, vocabulary, num_heads: see `open_student`.
        prompts: see `with_new_actions`; None for the detector as it is.

    Raises:
        InputError: see both.
    """
    if prompts is None:
        return open_student(file, vocabulary, num_heads)
    return with_new_actions(open_student(file, None, num_heads), file, prompts, vocabulary)


def _joined(
    old: Vocabulary, own: np.ndarray, new: NewPrompts, file: Path
) -> tuple[Vocabulary, np.ndarray]:
    """The student's vocabulary, followed by what is new, and the sentences of all of it.

    Args:
        own: (H, D) sentences of the student's interactions.
    """
    lost = [name for name in new.objects if name not in old.objects]
    if lost:
        raise bad_field(file, "interactions/object", "objects that the student knows", lost[0])
    places = _places(old)
    verbs, ings, numbers = list(old.verbs), list(old.verb_ings), []
    for verb, ing in zip(new.verbs, new.ings, strict=True):
        number = places.get(_plain(verb))
        if number is None:
            number = len(verbs)
            verbs.append(verb)
            ings.append(ing)
        numbers.append(number)
    pairs, kept = list(old.interactions), []
    for row, (action, name) in enumerate(zip(new.actions.tolist(), new.objects, strict=True)):
        pair = numbers[action], old.objects.index(name)
        # What the student was trained with stays as it is.
        if pair not in pairs:
            pairs.append(pair)
            kept.append(row)
    vocabulary = replace(
        old,
        name=old.name + NAME,
        verbs=tuple(verbs),
        verb_ings=tuple(ings),
        interactions=tuple(pairs),
        splits={},
    )
    return vocabulary, np.concatenate([own, new.embeddings[kept]])


def _rows(have: Vocabulary, wanted: Vocabulary, file: Path, prompts: Path) -> np.ndarray:
    """(H,) the verb of ours that the verb of each interaction of a dataset is."""
    if wanted.objects != have.objects:
        raise InputError(
            f"{file}: expected a student of the objects of {wanted.name}, found other ones"
        )
    places = _places(have)
    forms = {_plain(ing): number for number, ing in enumerate(have.verb_ings)}
    found = [
        places.get(_plain(verb), forms.get(_plain(ing)))
        for verb, ing in zip(wanted.verbs, wanted.verb_ings, strict=True)
    ]
    unknown = [verb for verb, number in zip(wanted.verbs, found, strict=True) if number is None]
    if unknown:
        raise InputError(
            f"{prompts}: expected sentences about all actions of {wanted.name} that the student"
            f" does not know, found none about {', '.join(unknown[:5])}"
        )
    return np.array([found[verb] for verb, _ in wanted.interactions], dtype=np.int64)


def _resize(model: HOIDetector, vocabulary: Vocabulary) -> None:
    model.config = replace(
        model.config,
        num_verbs=vocabulary.num_verbs,
        num_texts=vocabulary.num_interactions + vocabulary.num_verbs,
    )


def _places(vocabulary: Vocabulary) -> dict[str, int]:
    return {_plain(verb): number for number, verb in enumerate(vocabulary.verbs)}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
