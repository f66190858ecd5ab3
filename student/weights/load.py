"""Opening trained detectors: run folders, student checkpoints, published EoID and CDN checkpoints.

A student with a text head can be given further actions or objects by sentence embeddings of the
same CLIP (`add_actions`), without any training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.splits import FULL, Split, load_split
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.text import count_noun
from pipeline.utils.weights import read_checkpoint
from pipeline.vocabulary import (
    BUILTIN_VOCABULARIES,
    Vocabulary,
    find_names,
    find_verbs,
    load_vocabulary,
)
from student.config import Recipe, get_preset
from student.data.text_embeddings import build_text_embeddings
from student.models.detector import HOIDetector
from student.models.text_head import TextObjectHead, TextVerbHead
from student.weights.checkpoint_file import (
    build_model,
    is_student_checkpoint,
    parse_checkpoint,
)
from student.weights.published import model_from_published
from student.weights.zoo import find_checkpoint
from teacher_cache.reader.prompts_file import ActionPrompts, read_prompts_file

PROMPTS_SUFFIX = "+prompts"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A detector with the settings of its training, as far as its file records them.

    Attributes:
        model: in eval mode.
        recipe: its settings; for a published checkpoint only the model's sizes are read from the
            file, and the rest is the preset "published".
        vocabulary: names of its classes, in the order of its outputs.
        split: the split it was trained on; "full" for a published checkpoint, which records none.
        is_published: whether the file has the published form, so that the training split and the
            training settings are unknown.
        sources, limit: extra training datasets, and `training_limit`; see
            `evaluation.results.Results`.
    """

    model: HOIDetector
    recipe: Recipe
    vocabulary: Vocabulary
    split: Split
    is_published: bool
    sources: tuple[dict[str, Any], ...] = ()
    limit: int | None = None


def load_student(
    file: Path,
    vocabulary: Vocabulary | None = None,
    num_heads: int | None = None,
    prompts: Path | None = None,
) -> LoadedModel:
    """Opens a detector and, given prompts, adds their actions.

    A published checkpoint does not name its classes. It is accepted for a vocabulary with the same
    numbers of objects and verbs.

    Args:
        file: the checkpoint.
        vocabulary: the dataset's vocabulary, which the detector has to match, or which a detector
            with prompts takes over; None takes the checkpoint's, or for a published one the shipped
            vocabulary of the same size.
        num_heads: attention heads of a published checkpoint whose `args` do not name them.
        prompts: see `add_actions`; None adds no actions.

    Raises:
        InputError: the file is not a detector's checkpoint, its vocabulary is another one, or the
            prompts do not fit it.
    """
    if prompts is not None:
        return add_actions(load_student(file, None, num_heads), file, prompts, vocabulary)
    content = read_checkpoint(file)
    if is_student_checkpoint(content):
        checkpoint = parse_checkpoint(content, file)
        trained, state = checkpoint.vocabulary, checkpoint.state
        plan = state.get("plan", {})
        if vocabulary is not None and trained.digest() != vocabulary.digest():
            raise InputError(
                f"{file}: expected a student of the vocabulary {vocabulary.name}, found"
                f" {trained.name}"
            )
        return LoadedModel(
            build_model(checkpoint, file),
            checkpoint.recipe,
            trained,
            checkpoint.split,
            is_published=False,
            # `best.pt` has no plan, only these two of its entries.
            sources=tuple(state.get("sources", plan.get("extra_data", ()))),
            limit=state.get("limit", plan.get("limit")),
        )
    model = model_from_published(content, file, num_heads)
    vocabulary = vocabulary or _shipped_vocabulary(model, file)
    counts = vocabulary.num_objects, vocabulary.num_verbs
    if not _matches_class_counts(model, vocabulary):
        found = model.config.num_objects, model.config.num_verbs
        raise InputError(
            f"{file}: expected {count_noun(counts[0], 'objects')} and"
            f" {count_noun(counts[1], 'verbs')}, as {vocabulary.name} has,"
            f" found {found[0]} and {found[1]}"
        )
    recipe = get_preset("published", *counts, vocabulary.person)
    return LoadedModel(
        model,
        replace(recipe, model=model.config),
        vocabulary,
        load_split(vocabulary, FULL),
        is_published=True,
    )


def _matches_class_counts(model: HOIDetector, vocabulary: Vocabulary) -> bool:
    """Whether a published model's class counts are those of a vocabulary."""
    # Published V-COCO models have an additional object class, "the verb has no object".
    extra = model.config.num_objects - vocabulary.num_objects
    return model.config.num_verbs == vocabulary.num_verbs and 0 <= extra <= bool(vocabulary.roles)


def _shipped_vocabulary(model: HOIDetector, file: Path) -> Vocabulary:
    """The shipped vocabulary with a published model's class counts."""
    shipped = [load_vocabulary(name) for name in BUILTIN_VOCABULARIES]
    for vocabulary in shipped:
        if _matches_class_counts(model, vocabulary):
            return vocabulary
    known = ", ".join(f"{v.num_objects} and {v.num_verbs} ({v.name})" for v in shipped)
    raise InputError(
        f"{file}: expected the numbers of objects and verbs of a shipped vocabulary, {known}, found"
        f" {model.config.num_objects} and {model.config.num_verbs}; give a vocabulary file"
    )


def add_actions(
    loaded: LoadedModel, file: Path, prompts: Path, target: Vocabulary | None = None
) -> LoadedModel:
    """Adds actions to a student with a text verb head, and objects to one with a text object head;
    the added interactions are unseen.

    Args:
        loaded: in eval mode; its model is changed in place.
        file: the student's checkpoint, named in errors.
        prompts: prompts file of `eoid-cache prompts`, with the embedding of every new sentence.
        target: vocabulary of a dataset that replaces the student's. Each of its verbs has to occur
            in the student's vocabulary or in the prompts, by name or by "-ing" form, and each of
            its objects by name. A linear head keeps its classes and their order.

    Returns:
        The student with the extended vocabulary, or with `target`, and the matching split.

    Raises:
        InputError: the student's heads are linear, or the head of a class that the prompts add; the
            prompts are of another CLIP; or a verb or object of `target` occurs in neither.
    """
    heads = loaded.model.text_heads
    if not heads:
        raise InputError(
            f"{file}: expected a student trained with --verb-head text or --object-head text for"
            " --prompts, found linear heads"
        )
    new = read_prompts_file(prompts)
    if new.text_model != loaded.model.config.text_model:
        raise InputError(
            f"{prompts}: expected sentences embedded by the CLIP that {file} was trained with"
            f" ({loaded.model.config.text_model[:12]}), found another's ({new.text_model[:12]})"
        )
    old = loaded.vocabulary
    trained = heads[0].texts[: old.num_interactions].cpu().numpy()
    if new.embeddings.shape[1] != trained.shape[1]:
        expected, found = (f"size {each.shape[1]}" for each in (trained, new.embeddings))
        raise bad_field(prompts, "embeddings", expected, found)
    vocabulary, embeddings = _extend_vocabulary(old, trained, new)
    _check_linear_heads(loaded.model, old, vocabulary, file, prompts)
    has_sentence = None
    unseen = {*loaded.split.unseen, *range(old.num_interactions, vocabulary.num_interactions)}
    if target is not None:
        _check_linear_heads(loaded.model, old, target, file, prompts)
        rows, labels = _class_rows(vocabulary, target, prompts)
        sentences = build_text_embeddings(vocabulary, embeddings, prompts)
        texts = sentences.texts[sentences.rows[labels, rows]]
        ids = vocabulary.interaction_ids[rows, labels]
        has_sentence = ids >= 0
        unseen = {hoi for hoi, known in enumerate(ids.tolist()) if known < 0 or known in unseen}
        vocabulary, embeddings = target, texts.numpy()
    made = build_text_embeddings(vocabulary, embeddings, prompts, has_sentence)
    for head in heads:
        head.set_texts(made)
    loaded.model.config = replace(
        loaded.model.config,
        num_objects=vocabulary.num_objects,
        num_verbs=vocabulary.num_verbs,
        num_texts=len(made.texts),
    )
    distilled = dict(zip(old.verbs, loaded.split.distilled_verbs.tolist(), strict=True))
    split = Split(
        loaded.split.name + PROMPTS_SUFFIX,
        tuple(sorted(unseen)),
        np.array([distilled.get(verb, False) for verb in vocabulary.verbs], dtype=bool),
    )
    return replace(loaded, vocabulary=vocabulary, split=split)


def _extend_vocabulary(
    old: Vocabulary, old_embeddings: np.ndarray, new: ActionPrompts
) -> tuple[Vocabulary, np.ndarray]:
    """The student's vocabulary followed by the new actions and objects, and the embeddings of all
    sentences.

    `old_embeddings` are (H, D), of the sentences of its interactions.
    """
    known = find_names(new.objects, old.objects)
    names = [
        name if label < 0 else old.objects[label]
        for name, label in zip(new.objects, known, strict=True)
    ]
    objects = list(dict.fromkeys([*old.objects, *names]))
    # Ids of annotation files, which the added objects have none of.
    first = max(old.category_ids) + 1
    ids = range(first, first + len(objects) - old.num_objects)
    verbs, ings = list(old.verbs), list(old.verb_ings)
    numbers = find_names(new.verbs, old.verbs)
    for row in [row for row, number in enumerate(numbers) if number < 0]:
        numbers[row] = len(verbs)
        verbs.append(new.verbs[row])
        ings.append(new.verb_ings[row])
    # A dict without values serves as an ordered set.
    pairs, kept = dict.fromkeys(old.interactions), []
    labels = {name: label for label, name in enumerate(objects)}
    for row, (action, name) in enumerate(zip(new.actions.tolist(), names, strict=True)):
        pair = numbers[action], labels[name]
        # An interaction of the training keeps the sentence that it was trained with.
        if pair not in pairs:
            pairs[pair] = None
            kept.append(row)
    vocabulary = replace(
        old,
        name=old.name + PROMPTS_SUFFIX,
        verbs=tuple(verbs),
        verb_ings=tuple(ings),
        objects=tuple(objects),
        category_ids=(*old.category_ids, *ids),
        interactions=tuple(pairs),
        splits={},
    )
    return vocabulary, np.concatenate([old_embeddings, new.embeddings[kept]])


def _check_linear_heads(
    model: HOIDetector, old: Vocabulary, wanted: Vocabulary, file: Path, prompts: Path
) -> None:
    """Checks that linear heads keep the classes that they were trained with, in their order.

    Raises:
        InputError: names the head and the first class that differs.
    """
    for head, kind, trained, names in (
        (model.verb_head, TextVerbHead, old.verbs, wanted.verbs),
        (model.object_head, TextObjectHead, old.objects, wanted.objects),
    ):
        if isinstance(head, kind) or trained == names:
            continue
        name = "verb" if kind is TextVerbHead else "object"
        differing = [one for one in names if one not in trained] or ["fewer or another order"]
        raise InputError(
            f"{prompts}: expected {name}s that {file} was trained with, because its {name} head is"
            f" linear, found {differing[0]}"
        )


def _class_rows(
    extended: Vocabulary, target: Vocabulary, prompts: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(H,) for each interaction of `target`, the indices of its verb and of its object in the
    extended vocabulary."""
    indices = find_verbs(target.verbs, target.verb_ings, extended)
    places = find_names(target.objects, extended.objects)
    for kind, names, found in (
        ("actions", target.verbs, indices),
        ("objects", target.objects, places),
    ):
        unknown = [name for name, index in zip(names, found, strict=True) if index < 0]
        if unknown:
            raise InputError(
                f"{prompts}: expected sentences for all {kind} of {target.name} that the student"
                f" was not trained on, found none for {', '.join(unknown[:5])}"
            )
    rows = [(indices[verb], places[label]) for verb, label in target.interactions]
    verbs, objects = np.array(rows, dtype=np.int64).T
    return verbs, objects


def load_model(path: Path | str) -> HOIDetector:
    """Opens a detector in eval mode.

    Args:
        path: a run folder, a student checkpoint, one in the published EoID/CDN form, or the name
            of weights of the package, "toy" or "toy-text".

    Raises:
        InputError: the file is none of these.
    """
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    if not is_student_checkpoint(content):
        return model_from_published(content, file)
    return build_model(parse_checkpoint(content, file), file)
