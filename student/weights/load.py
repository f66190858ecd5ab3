"""What a student's file tells: a run or checkpoint of ours, or a published EoID or CDN one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.splits import FULL, Split, load_split
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.weights import read_checkpoint
from pipeline.vocabulary import BUILTIN_VOCABULARIES, Vocabulary, load_vocabulary
from student.config import Recipe, get_preset
from student.data.text_embeddings import build_text_embeddings
from student.models.detector import HOIDetector
from student.models.text_head import TextVerbHead
from student.weights.checkpoint_file import (
    build_model,
    checkpoint_path,
    is_own_checkpoint,
    parse_checkpoint,
)
from student.weights.published import model_from_published
from teacher_cache.reader.prompts_file import ActionPrompts, read_prompts_file


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A detector and how it came to be, as far as its file tells.

    Attributes:
        model: in eval mode.
        recipe: its settings; of a published checkpoint only the model's own are known, the others
            are the published ones.
        vocabulary: what its classes mean.
        split: what it was trained on; everything for a published checkpoint, which does not say.
        is_own: trained by this project, so that recipe and split are facts.
        sources: further sources it learned from; see `evaluation.results.Results`.
    """

    model: HOIDetector
    recipe: Recipe
    vocabulary: Vocabulary
    split: Split
    is_own: bool
    sources: tuple[dict[str, Any], ...] = ()


def load_student(
    file: Path, vocabulary: Vocabulary | None = None, num_heads: int | None = None
) -> LoadedModel:
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
    if is_own_checkpoint(content):
        checkpoint = parse_checkpoint(content, file)
        own = checkpoint.vocabulary
        if vocabulary is not None and own.digest() != vocabulary.digest():
            raise InputError(
                f"{file}: expected a student of the vocabulary {vocabulary.name}, found {own.name}"
            )
        model = build_model(checkpoint, file)
        state = checkpoint.state
        # Best weights are kept without a plan.
        sources = tuple(state.get("sources", state.get("plan", {}).get("extra_data", ())))
        return LoadedModel(
            model, checkpoint.recipe, own, checkpoint.split, is_own=True, sources=sources
        )
    model = model_from_published(content, file, num_heads)
    vocabulary = vocabulary or _shipped_vocabulary(model, file)
    counts = vocabulary.num_objects, vocabulary.num_verbs
    if not _matches_class_counts(model, vocabulary):
        found = model.config.num_objects, model.config.num_verbs
        raise InputError(
            f"{file}: expected {counts[0]} objects and {counts[1]} verbs, as {vocabulary.name} has,"
            f" found {found[0]} and {found[1]}"
        )
    recipe = get_preset("published", *counts, vocabulary.person)
    return LoadedModel(
        model,
        replace(recipe, model=model.config),
        vocabulary,
        load_split(vocabulary, FULL),
        is_own=False,
    )


def _matches_class_counts(model: HOIDetector, vocabulary: Vocabulary) -> bool:
    """Whether a published model may be of this vocabulary, by its numbers of classes."""
    # Published V-COCO models have a class of their own for "no object goes with this verb".
    extra = model.config.num_objects - vocabulary.num_objects
    return model.config.num_verbs == vocabulary.num_verbs and 0 <= extra <= bool(vocabulary.roles)


def _shipped_vocabulary(model: HOIDetector, file: Path) -> Vocabulary:
    """The shipped vocabulary of a published model."""
    shipped = [load_vocabulary(name) for name in BUILTIN_VOCABULARIES]
    for one in shipped:
        if _matches_class_counts(model, one):
            return one
    known = ", ".join(f"{v.num_objects} and {v.num_verbs} ({v.name})" for v in shipped)
    raise InputError(
        f"{file}: expected as many objects and verbs as a shipped vocabulary has, {known}, found"
        f" {model.config.num_objects} and {model.config.num_verbs}; name a vocabulary file"
    )


PROMPTS_SUFFIX = "+prompts"


def add_actions(
    loaded: LoadedModel, file: Path, prompts: Path, target: Vocabulary | None = None
) -> LoadedModel:
    """The same student with more actions; those are unseen.

    Args:
        loaded: in eval mode; its model is changed.
        file: the student's, named in errors.
        prompts: what `eoid-cache prompts` wrote.
        target: a dataset's vocabulary whose actions the student gets instead, all of which it or
            the prompts have to know, by their names or by their forms in sentences.

    Raises:
        InputError: a student that does not read, prompts of another CLIP or with objects that the
            student does not know, or an action of the dataset that nobody knows.
    """
    head = loaded.model.verb_head
    if not isinstance(head, TextVerbHead):
        raise InputError(
            f"{file}: expected a student trained with --verb-head text for --prompts, found a"
            " linear one"
        )
    new = read_prompts_file(prompts)
    if new.text_model != loaded.model.config.text_model:
        raise InputError(
            f"{prompts}: expected texts of the CLIP that {file} has learned from"
            f" ({loaded.model.config.text_model[:12]}), found another's ({new.text_model[:12]})"
        )
    old = loaded.vocabulary
    own = head.texts[: old.num_interactions].cpu().numpy()
    vocabulary, embeddings = _extend_vocabulary(old, own, new, prompts)
    unseen = {*loaded.split.unseen, *range(old.num_interactions, vocabulary.num_interactions)}
    if target is not None:
        rows = _verb_rows(vocabulary, target, file, prompts)
        sentences = build_text_embeddings(vocabulary, embeddings, prompts)
        labels = [label for _, label in target.interactions]
        texts = sentences.texts[sentences.rows[labels, rows]]
        ids = vocabulary.interaction_ids[rows, labels]
        unseen = {hoi for hoi, own in enumerate(ids.tolist()) if own < 0 or own in unseen}
        vocabulary, embeddings = target, texts.numpy()
    head.set_texts(build_text_embeddings(vocabulary, embeddings, prompts))
    _update_config(loaded.model, vocabulary)
    asked = dict(zip(old.verbs, loaded.split.distilled_verbs.tolist(), strict=True))
    split = Split(
        loaded.split.name + PROMPTS_SUFFIX,
        tuple(sorted(unseen)),
        np.array([asked.get(verb, False) for verb in vocabulary.verbs], dtype=bool),
    )
    return replace(loaded, vocabulary=vocabulary, split=split)


def load_student_with_prompts(
    file: Path,
    vocabulary: Vocabulary | None,
    num_heads: int | None,
    prompts: Path | None,
) -> LoadedModel:
    """Opens a detector, with new actions where there are prompts.

    Args:
        file, vocabulary, num_heads: see `load_student`.
        prompts: see `add_actions`; None for the detector as it is.

    Raises:
        InputError: see both.
    """
    if prompts is None:
        return load_student(file, vocabulary, num_heads)
    return add_actions(load_student(file, None, num_heads), file, prompts, vocabulary)


def _extend_vocabulary(
    old: Vocabulary, own: np.ndarray, new: ActionPrompts, file: Path
) -> tuple[Vocabulary, np.ndarray]:
    """The student's vocabulary, followed by what is new, and the sentences of all of it.

    Args:
        own: (H, D) sentences of the student's interactions.
    """
    lost = [name for name in new.objects if name not in old.objects]
    if lost:
        raise bad_field(file, "interactions/object", "objects that the student knows", lost[0])
    places = _verb_indices(old)
    verbs, ings, numbers = list(old.verbs), list(old.verb_ings), []
    for verb, ing in zip(new.verbs, new.verb_ings, strict=True):
        number = places.get(_normalise_name(verb))
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
        name=old.name + PROMPTS_SUFFIX,
        verbs=tuple(verbs),
        verb_ings=tuple(ings),
        interactions=tuple(pairs),
        splits={},
    )
    return vocabulary, np.concatenate([own, new.embeddings[kept]])


def _verb_rows(have: Vocabulary, target: Vocabulary, file: Path, prompts: Path) -> np.ndarray:
    """(H,) the verb of ours that the verb of each interaction of a dataset is."""
    if target.objects != have.objects:
        raise InputError(
            f"{file}: expected a student of the objects of {target.name}, found other ones"
        )
    places = _verb_indices(have)
    forms = {_normalise_name(ing): number for number, ing in enumerate(have.verb_ings)}
    found = [
        places.get(_normalise_name(verb), forms.get(_normalise_name(ing)))
        for verb, ing in zip(target.verbs, target.verb_ings, strict=True)
    ]
    unknown = [verb for verb, number in zip(target.verbs, found, strict=True) if number is None]
    if unknown:
        raise InputError(
            f"{prompts}: expected sentences about all actions of {target.name} that the student"
            f" does not know, found none about {', '.join(unknown[:5])}"
        )
    return np.array([found[verb] for verb, _ in target.interactions], dtype=np.int64)


def _update_config(model: HOIDetector, vocabulary: Vocabulary) -> None:
    model.config = replace(
        model.config,
        num_verbs=vocabulary.num_verbs,
        num_texts=vocabulary.num_interactions + vocabulary.num_verbs,
    )


def _verb_indices(vocabulary: Vocabulary) -> dict[str, int]:
    return {_normalise_name(verb): number for number, verb in enumerate(vocabulary.verbs)}


def _normalise_name(name: str) -> str:
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
    if not is_own_checkpoint(content):
        return model_from_published(content, file)
    return build_model(parse_checkpoint(content, file), file)
