"""What a student's file tells: a run or checkpoint of ours, or a published EoID or CDN one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.splits import FULL, Split, load_split
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.weights import read_checkpoint
from pipeline.vocabulary import SHIPPED, Vocabulary, load_vocabulary
from student.config import Recipe, preset
from student.data.text_embeddings import sentences_for
from student.models.detector import HOIDetector
from student.models.text_head import TextVerbHead
from student.weights.checkpoint_file import checkpoint_from, checkpoint_path, is_ours, restore
from student.weights.published import model_from_published
from teacher_cache.reader.prompts_file import NewPrompts, read_prompts


@dataclass(frozen=True, eq=False)
class Opened:
    """A detector and how it came to be, as far as its file tells.

    Attributes:
        model: in eval mode.
        recipe: its settings; of a published checkpoint only the model's own are known, the others
            are the published ones.
        vocabulary: what its classes mean.
        split: what it was trained on; everything for a published checkpoint, which does not say.
        ours: trained by this project, so that recipe and split are facts.
        sources: further sources it learned from; see `evaluation.results.Results`.
    """

    model: HOIDetector
    recipe: Recipe
    vocabulary: Vocabulary
    split: Split
    ours: bool
    sources: tuple[dict[str, Any], ...] = ()


def open_student(
    file: Path, vocabulary: Vocabulary | None = None, num_heads: int | None = None
) -> Opened:
    """Opens a detector.

    A published checkpoint does not name its classes: as many as a vocabulary has are taken for the
    vocabulary's.

    Args:
        file: the checkpoint.
        vocabulary: a dataset's, which the detector has to be for; None for the checkpoint's own, of
            a published one the shipped one with as many classes.
        num_heads: attention heads of a published checkpoint that does not say.

    Raises:
        InputError: nothing of the kind, or of another vocabulary.
    """
    content = read_checkpoint(file)
    if is_ours(content):
        checkpoint = checkpoint_from(content, file)
        own = checkpoint.vocabulary
        if vocabulary is not None and own.digest() != vocabulary.digest():
            raise InputError(
                f"{file}: expected a student of the vocabulary {vocabulary.name}, found {own.name}"
            )
        model = restore(checkpoint, file)
        state = checkpoint.state
        # Best weights are kept without a plan.
        sources = tuple(state.get("sources", state.get("plan", {}).get("extra", ())))
        return Opened(model, checkpoint.recipe, own, checkpoint.split, ours=True, sources=sources)
    model = model_from_published(content, file, num_heads)
    vocabulary = vocabulary or _shipped(model, file)
    counts = vocabulary.num_objects, vocabulary.num_verbs
    if not _fits(model, vocabulary):
        found = model.config.num_objects, model.config.num_verbs
        raise InputError(
            f"{file}: expected {counts[0]} objects and {counts[1]} verbs, as {vocabulary.name} has,"
            f" found {found[0]} and {found[1]}"
        )
    recipe = preset("published", *counts, vocabulary.person)
    return Opened(
        model,
        replace(recipe, model=model.config),
        vocabulary,
        load_split(vocabulary, FULL),
        ours=False,
    )


def _fits(model: HOIDetector, vocabulary: Vocabulary) -> bool:
    """Whether a published model may be of this vocabulary, by its numbers of classes."""
    # Published V-COCO models have a class of their own for "no object goes with this verb".
    extra = model.config.num_objects - vocabulary.num_objects
    return model.config.num_verbs == vocabulary.num_verbs and 0 <= extra <= bool(vocabulary.roles)


def _shipped(model: HOIDetector, file: Path) -> Vocabulary:
    """The shipped vocabulary of a published model."""
    shipped = [load_vocabulary(name) for name in SHIPPED]
    for one in shipped:
        if _fits(model, one):
            return one
    known = ", ".join(f"{v.num_objects} and {v.num_verbs} ({v.name})" for v in shipped)
    raise InputError(
        f"{file}: expected as many objects and verbs as a shipped vocabulary has, {known}, found"
        f" {model.config.num_objects} and {model.config.num_verbs}; name a vocabulary file"
    )


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


def load_model(path: Path | str) -> HOIDetector:
    """Opens a detector in eval mode.

    Args:
        path: a run folder, a checkpoint of ours, or one in the published EoID/CDN form.

    Raises:
        InputError: nothing of the kind.
    """
    file = checkpoint_path(path)
    content = read_checkpoint(file)
    if not is_ours(content):
        return model_from_published(content, file)
    return restore(checkpoint_from(content, file), file)
