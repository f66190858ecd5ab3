"""Writes a prompts file: embedded prompts of new actions and objects for text-based heads.

A student whose heads compare queries with text embeddings can score classes that its cache does not
contain. Encoding their prompts once lets it do so without loading CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes, refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary, find_names, load_vocabulary, normalise_name
from teacher_cache.reader.cache import PromptEmbeddings, TeacherCache, open_cache
from teacher_cache.reader.fingerprint import teacher_parts
from teacher_cache.reader.prompts_file import ActionPrompts
from teacher_cache.teachers.prompts import (
    DEFAULT_TEMPLATE,
    PromptClass,
    class_prompts,
    classes_without_sentences,
    embed_prompts,
    indistinguishable_actions,
    interaction_prompts,
    prompt_classes,
)
from teacher_cache.writer.settings import read_settings
from teacher_cache.writer.shard import write_prompts_file

logger = get_logger(__name__)

# [NAME=]PHRASE[:OBJECT,OBJECT...]
ACTION_PATTERN = re.compile(r"(?:(?P<name>[^=:,]+)=)?(?P<ing>[^=:,]+)(?::(?P<objects>[^=:]*))?")


def create_prompts_file(
    cache: Path,
    out: Path,
    added: Sequence[str] = (),
    vocabulary: str | None = None,
    templates: Sequence[str] = (),
    clip_model: str | None = None,
    clip_weights: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    teacher: str | None = None,
    teacher_settings: Sequence[str] = (),
    sentences: Path | None = None,
    new_objects: bool = False,
) -> ActionPrompts:
    """Embeds the prompts of new interactions with a cache's CLIP, and writes the prompts file.

    Args:
        cache: folder of the cache whose CLIP model, templates and objects are used.
        out: the prompts file to write.
        added: actions such as "jumping over", "jumping over:bench,box" or
            "jump=jumping over:bench,box", see `parse_action`.
        vocabulary: name or file of a vocabulary whose further interactions are added.
        templates: the cache's prompt templates; empty to take them from its settings.
        clip_model, clip_weights: the cache's CLIP model; None for the one in its settings.
        device: device of CLIP.
        overwrite: whether an existing file may be replaced.
        teacher, teacher_settings: see `load_text_encoder`.
        sentences: sentences of the new actions, see `class_prompts`; the file may also have those
            of the cache's actions, which have no effect.
        new_objects: accept objects that the cache lacks.

    Raises:
        InputError: the input is bad, there is no new interaction, or templates or CLIP model are
            not the cache's.
    """
    refuse_existing(out, overwrite)
    cached = open_cache(cache)
    known = cached.vocabulary
    new = [interaction for text in added for interaction in parse_action(text, known, new_objects)]
    own_verbs = _unify([verb for verb, *_ in new], known.verbs)
    own_objects = _unify([name for *_, name in new], known.objects)
    new = [
        (verb, ing, name)
        for verb, (_, ing, _), name in zip(own_verbs, new, own_objects, strict=True)
    ]
    if vocabulary is not None:
        new += _missing_interactions(load_vocabulary(vocabulary), known, vocabulary, new_objects)
    if not new:
        raise InputError("expected --add or --vocabulary with an action that is new, found none")
    templates = _resolve_templates(cached, templates)
    if cached.text_model is None:
        raise InputError(f"{cache}: expected the name of the CLIP model of its prompts")
    # A dict without values serves as an ordered set.
    new = list(dict.fromkeys(new))
    forms: dict[str, str] = {}
    for verb, ing, _ in new:
        if forms.setdefault(verb, ing) != ing:
            raise InputError(f"{verb}: expected one form in prompts, found {forms[verb]} and {ing}")
    verbs = list(forms)
    prompts = class_prompts(new, templates, sentences, prompt_classes(known))
    encode = load_text_encoder(cached, clip_model, clip_weights, device, teacher, teacher_settings)
    action_prompts = ActionPrompts(
        text_model=cached.text_model,
        verbs=tuple(verbs),
        verb_ings=tuple(forms.values()),
        actions=np.array([verbs.index(verb) for verb, *_ in new], dtype=np.int64),
        objects=tuple(name for *_, name in new),
        prompts=prompts,
        embeddings=embed_prompts(prompts, encode),
    )
    write_prompts_file(out, action_prompts)
    text = cached.prompt_embeddings
    # An action with the sentence of a known one is a synonym, which is intended: it is named below.
    known_verbs = dict(
        zip(text.prompts, (verb for verb, _ in known.interaction_names), strict=True)
    )
    fresh = [row for row, group in enumerate(prompts) if group not in known_verbs]
    names = [*known.interaction_names, *((new[row][0], new[row][2]) for row in fresh)]
    embeddings = np.concatenate([text.embeddings, action_prompts.embeddings[fresh]])
    all_prompts = (*text.prompts, *(prompts[row] for row in fresh))
    joined = PromptEmbeddings(all_prompts, embeddings, text.logit_scale)
    if line := classes_without_sentences(new, sentences, prompt_classes(known)):
        logger.warning(line)
    if line := indistinguishable_actions(names, joined):
        logger.warning(line)
    for index, verb in enumerate(verbs):
        rows = np.flatnonzero(action_prompts.actions == index)
        objects = ", ".join(action_prompts.objects[row] for row in rows)
        same = dict.fromkeys(
            known_verbs[prompts[row]] for row in rows if prompts[row] in known_verbs
        )
        synonym = f", which scores like {', '.join(same)}" if same else ""
        print(f'{verb}: {objects}; "{prompts[rows[0]][0]}"{synonym}')
    return action_prompts


def parse_action(text: str, known: Vocabulary, new_objects: bool = False) -> list[PromptClass]:
    """The new interactions of an `--add` option.

    Without objects the action is combined with all objects that have an interaction. An action of
    the vocabulary is combined only with objects with which it has no interaction yet.

    Args:
        text: `[NAME=]PHRASE[:OBJECT,OBJECT...]`; without a name the phrase is the name.
        known: the cache's vocabulary.
        new_objects: accept objects that are not in the vocabulary.

    Raises:
        InputError: the text has another form, an object is not in the vocabulary and not accepted,
            or no interaction is new.
    """
    parts = ACTION_PATTERN.fullmatch(text)
    if parts is None or not parts["ing"].strip() or not (parts["name"] or "-").strip():
        raise InputError(f"--add: expected [NAME=]PHRASE[:OBJECT,OBJECT...], found {text!r}")
    ing = " ".join(parts["ing"].split())
    verb = "_".join((parts["name"] or ing).split())
    (index,) = [-1] if parts["name"] else find_names([ing], known.verb_ings)
    if index < 0:
        (index,) = find_names([verb], known.verbs)
    selected, added = known.valid.any(axis=0), list[str]()
    if parts["objects"] is not None:
        names = [name.strip() for name in parts["objects"].split(",")]
        selected = np.zeros(known.num_objects, dtype=bool)
        for name, label in zip(names, find_names(names, known.objects), strict=True):
            if label >= 0:
                selected[label] = True
            elif new_objects and name:
                added.append("_".join(name.split()))
            else:
                more = ", ..." if known.num_objects > 20 else ""
                raise InputError(
                    f"--add: expected objects of the cache ({', '.join(known.objects[:20])}{more})"
                    f" or --new-objects, found {name!r}"
                )
    if index >= 0:
        verb, form = known.verbs[index], known.verb_ings[index]
        if normalise_name(form) != normalise_name(ing):
            raise InputError(f"--add: {verb}: expected the cache's form {form!r}, found {ing!r}")
        selected = selected & ~known.valid[index]
    objects = [*(known.objects[label] for label in np.flatnonzero(selected)), *added]
    if not objects:
        raise InputError(f"--add: expected an action that the cache lacks, found {text!r}")
    return [(verb, ing, name) for name in objects]


def _unify(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names, of which those that are not known have the spelling of the first of their kind."""
    first: dict[str, str] = {}
    return [
        name if name in known else first.setdefault(normalise_name(name), name) for name in names
    ]


def _missing_interactions(
    wider: Vocabulary, known: Vocabulary, file: str, new_objects: bool
) -> list[PromptClass]:
    """Interactions of a wider vocabulary that the cache's lacks, with objects that it has, or with
    all."""
    verbs, objects = (
        [name if index < 0 else theirs[index] for name, index in zip(ours, found, strict=True)]
        for ours, theirs, found in (
            (wider.verbs, known.verbs, find_names(wider.verbs, known.verbs)),
            (wider.objects, known.objects, find_names(wider.objects, known.objects)),
        )
    )
    existing = set(known.interaction_names)
    new = [
        (verbs[verb], wider.verb_ings[verb], objects[label])
        for verb, label in wider.interactions
        if (verbs[verb], objects[label]) not in existing
    ]
    missing = [name for *_, name in new if name not in known.objects]
    if new_objects:
        return new
    if missing:
        logger.warning(
            f"{file}: {count_noun(len(missing), 'interactions')} left out without --new-objects,"
            " with objects that are not in the cache:"
            f" {', '.join(list(dict.fromkeys(missing))[:5])}"
        )
    return [interaction for interaction in new if interaction[2] in known.objects]


def _resolve_templates(cache: TeacherCache, templates: Sequence[str]) -> Sequence[str]:
    """The given templates, or by default those in the cache's settings.

    Raises:
        InputError: they do not give the cache's prompts.
    """
    settings = read_settings(cache.path, cache.manifest)
    templates = templates or settings.get("templates") or [DEFAULT_TEMPLATE]
    # The templates of a cache with sentences from a file cannot be compared with its prompts.
    is_from_file = settings.get("sentences") is not None
    if (
        not is_from_file
        and interaction_prompts(cache.vocabulary, templates) != cache.prompt_embeddings.prompts
    ):
        raise InputError(
            f"--template: expected the templates of {cache.path}, with prompts such as"
            f" {cache.prompt_embeddings.prompts[0][0]!r}, found {templates[0]!r}"
        )
    return templates


def resolve_clip(
    cache: TeacherCache, model: str | None, weights: str | None
) -> tuple[str | None, str | None]:
    """The given CLIP model and weights, or by default those in the cache's settings."""
    if model is not None:
        return model, weights
    settings = read_settings(cache.path, cache.manifest)
    return settings.get("clip_model"), settings.get("clip_weights")


def load_text_encoder(
    cache: TeacherCache,
    model: str | None,
    weights: str | None,
    device: str,
    teacher: str | None = None,
    teacher_settings: Sequence[str] = (),
) -> Callable[[Sequence[str]], np.ndarray]:
    """Loads the cache's teacher; returns a function from N sentences to (N, D) embeddings.

    Args:
        cache: the cache, whose fingerprint contains the digest of the teacher's weights.
        model, weights: a model of open_clip, see `ClipConfig`; None for the one in the cache's
            settings.
        device: name of a torch device, or "auto".
        teacher, teacher_settings: the cache's teacher, if it is a user's class, and its settings;
            empty for those in the cache's settings.

    Raises:
        InputError: the teacher is not known, cannot be loaded, or is not the cache's.
    """
    from pipeline.utils.devices import configure_device, resolve_device
    from pipeline.utils.plugins import confirm_class
    from teacher_cache.teachers.load import TeacherConfig, load_teacher
    from teacher_cache.teachers.text_image import TextImageTeacher

    settings = read_settings(cache.path, cache.manifest)
    parts = cache.manifest["parts"]
    name = confirm_class("--teacher", settings.get("teacher"), teacher)
    if name is None:
        model, weights = resolve_clip(cache, model, weights)
        if model is None:
            raise InputError(
                "--clip-model: expected the cache's CLIP model for new prompts, found none"
            )
        values = {"model": model, **({} if weights is None else {"weights": weights})}
        config = TeacherConfig(settings=tuple(values.items()))
        expected = {"clip.weights": parts.get("clip.weights")}
    else:
        texts = teacher_settings or settings.get("teacher_settings", ())
        config = TeacherConfig.resolve(name, texts)
        expected = teacher_parts(parts)
    loaded = load_teacher(config, configure_device(resolve_device(device), "float32"))
    found = loaded.fingerprint_parts()
    changes = describe_changes(expected, {part: found.get(part) for part in expected})
    if changes:
        own = "--clip-model: expected the cache's own CLIP"
        if name is not None:
            own = "--teacher-set: expected the cache's own teacher"
        raise InputError(f"{own}, found another ({changes})")
    assert isinstance(loaded, TextImageTeacher), "other caches have no text embeddings"
    return loaded.embed_sentences
