"""Writes a prompts file: embedded prompts of new actions for a text-based verb head.

A student whose verb head compares queries with text embeddings can score actions that its cache
does not contain. Encoding their prompts once lets it do so without loading CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.utils.errors import InputError
from pipeline.utils.files import describe_changes, refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary, load_vocabulary, normalise_name
from teacher_cache.reader.cache import PromptEmbeddings, TeacherCache, open_cache
from teacher_cache.reader.prompts_file import ActionPrompts
from teacher_cache.teachers.prompts import (
    DEFAULT_TEMPLATE,
    Prompts,
    embed_prompts,
    fill_templates,
    indistinguishable_actions,
    interaction_prompts,
)
from teacher_cache.writer.settings import read_settings
from teacher_cache.writer.shard import write_prompts_file

logger = get_logger(__name__)

# [NAME=]PHRASE[:OBJECT,OBJECT...]
ACTION_PATTERN = re.compile(r"(?:(?P<name>[^=:,]+)=)?(?P<ing>[^=:,]+)(?::(?P<objects>[^=:]*))?")
# Verb, its form in prompts, object.
NewInteraction = tuple[str, str, str]


@dataclass(frozen=True)
class AddPromptsConfig:
    """Which actions to add, and how to embed them.

    Attributes:
        cache: folder of the cache whose CLIP model, templates and objects are used.
        out: the prompts file to write.
        added: actions such as "jumping over", "jumping over:bench,box" or
            "jump=jumping over:bench,box", see `parse_action`.
        vocabulary: name or file of a vocabulary whose further interactions are added, or None.
        templates: the cache's prompt templates; empty to take them from its settings.
        clip_model, clip_weights: the cache's CLIP model; None for the one in its settings.
        device: device of CLIP.
        overwrite: whether an existing file may be replaced.
    """

    cache: Path
    out: Path
    added: tuple[str, ...] = ()
    vocabulary: str | None = None
    templates: tuple[str, ...] = ()
    clip_model: str | None = None
    clip_weights: str | None = None
    device: str = "auto"
    overwrite: bool = False


def create_prompts_file(config: AddPromptsConfig) -> ActionPrompts:
    """Embeds the prompts of new interactions with the cache's CLIP, and writes the prompts file.

    Raises:
        InputError: the input is bad, there is no new interaction, or templates or CLIP model are
            not the cache's.
    """
    refuse_existing(config.out, config.overwrite)
    cache = open_cache(config.cache)
    known = cache.vocabulary
    added = [interaction for text in config.added for interaction in parse_action(text, known)]
    if config.vocabulary is not None:
        added += _missing_interactions(load_vocabulary(config.vocabulary), known, config.vocabulary)
    if not added:
        raise InputError("expected --add or --vocabulary with an action that is new, found none")
    templates = _resolve_templates(cache, config)
    if cache.text_model is None:
        raise InputError(f"{cache.path}: expected the name of the CLIP model of its prompts")
    # Dicts without values serve as ordered sets.
    verbs = dict.fromkeys((verb, ing) for verb, ing, _ in added)
    _check_verb_forms(verbs)
    added = list(dict.fromkeys(added))
    prompts: Prompts = tuple(fill_templates(templates, ing, name) for _, ing, name in added)
    model, weights = resolve_clip(cache, config.clip_model, config.clip_weights)
    encode = load_text_encoder(cache, model, weights, config.device)
    verb_indices = {verb: index for index, verb in enumerate(verbs)}
    action_prompts = ActionPrompts(
        text_model=cache.text_model,
        verbs=tuple(verb for verb, _ in verbs),
        verb_ings=tuple(ing for _, ing in verbs),
        actions=np.array([verb_indices[verb, ing] for verb, ing, _ in added], dtype=np.int64),
        objects=tuple(name for _, _, name in added),
        prompts=prompts,
        embeddings=embed_prompts(prompts, encode),
    )
    write_prompts_file(config.out, action_prompts)
    cached = cache.prompt_embeddings
    names = [*known.interaction_names, *((verb, name) for verb, _, name in added)]
    embeddings = np.concatenate([cached.embeddings, action_prompts.embeddings])
    text = PromptEmbeddings((*cached.prompts, *prompts), embeddings, cached.logit_scale)
    if line := indistinguishable_actions(names, text):
        logger.warning(line)
    for index, verb in enumerate(action_prompts.verbs):
        rows = np.flatnonzero(action_prompts.actions == index)
        objects = ", ".join(action_prompts.objects[row] for row in rows)
        print(f'{verb}: {objects}; "{prompts[rows[0]][0]}"')
    return action_prompts


def parse_action(text: str, known: Vocabulary) -> list[NewInteraction]:
    """The new interactions of an `--add` option.

    Without objects the action is combined with all objects that have an interaction. An action of
    the vocabulary is combined only with objects with which it has no interaction yet.

    Args:
        text: `[NAME=]PHRASE[:OBJECT,OBJECT...]`; without a name the phrase is the name.
        known: the cache's vocabulary.

    Raises:
        InputError: the text has another form, an object is not in the vocabulary, or no
            interaction is new.
    """
    parts = ACTION_PATTERN.fullmatch(text)
    if parts is None or not parts["ing"].strip():
        raise InputError(f"--add: expected [NAME=]PHRASE[:OBJECT,OBJECT...], found {text!r}")
    ing = " ".join(parts["ing"].split())
    verb = _find_verb(known, ing) or ing.replace(" ", "_")
    if parts["name"] is not None:
        verb = "_".join(parts["name"].split())
    selected = known.valid.any(axis=0)
    if parts["objects"] is not None:
        selected = np.zeros(known.num_objects, dtype=bool)
        selected[[_object_index(known, name) for name in parts["objects"].split(",")]] = True
    if verb in known.verbs:
        index = known.verbs.index(verb)
        form = known.verb_ings[index]
        if normalise_name(form) != normalise_name(ing):
            raise InputError(f"--add: {verb}: expected the cache's form {form!r}, found {ing!r}")
        selected = selected & ~known.valid[index]
    if not selected.any():
        raise InputError(f"--add: expected an action that the cache lacks, found {text!r}")
    return [(verb, ing, known.objects[label]) for label in np.flatnonzero(selected)]


def _missing_interactions(wider: Vocabulary, known: Vocabulary, file: str) -> list[NewInteraction]:
    """Interactions of a wider vocabulary that the cache's lacks, with objects that it has."""
    existing = {
        (normalise_name(known.verbs[verb]), known.objects[label])
        for verb, label in known.interactions
    }
    interactions = [
        (wider.verbs[verb], wider.verb_ings[verb], wider.objects[label])
        for verb, label in wider.interactions
    ]
    new = [
        (verb, ing, name)
        for verb, ing, name in interactions
        if (normalise_name(verb), name) not in existing
    ]
    supported = [interaction for interaction in new if interaction[2] in known.objects]
    if len(supported) < len(new):
        missing = dict.fromkeys(name for _, _, name in new if name not in known.objects)
        logger.warning(
            f"{file}: {len(new) - len(supported)} interactions left out, with objects that are not"
            f" in the cache: {', '.join(list(missing)[:5])}"
        )
    return supported


def _resolve_templates(cache: TeacherCache, config: AddPromptsConfig) -> Sequence[str]:
    """The cache's templates.

    Raises:
        InputError: the templates of the configuration or of the settings do not give its prompts.
    """
    stored = read_settings(cache.path, cache.manifest).get("templates") or [DEFAULT_TEMPLATE]
    templates = config.templates or tuple(stored)
    if interaction_prompts(cache.vocabulary, templates) != cache.prompt_embeddings.prompts:
        raise InputError(
            f"--template: expected the templates of {cache.path}, with prompts such as"
            f" {cache.prompt_embeddings.prompts[0][0]!r}, found {templates[0]!r}"
        )
    return templates


def _check_verb_forms(verbs: dict[tuple[str, str], None]) -> None:
    for name in dict.fromkeys(verb for verb, _ in verbs):
        forms = [ing for verb, ing in verbs if verb == name]
        if len(forms) > 1:
            raise InputError(f"{name}: expected one form in prompts, found {' and '.join(forms)}")


def _find_verb(known: Vocabulary, ing: str) -> str | None:
    forms = [normalise_name(form) for form in known.verb_ings]
    return known.verbs[forms.index(normalise_name(ing))] if normalise_name(ing) in forms else None


def _object_index(known: Vocabulary, name: str) -> int:
    names = [normalise_name(known_name) for known_name in known.objects]
    if normalise_name(name) not in names:
        examples = ", ".join(known.objects[:20]) + (", ..." if known.num_objects > 20 else "")
        raise InputError(
            f"--add: expected objects of the cache ({examples}), found {name.strip()!r}"
        )
    return names.index(normalise_name(name))


TextEncoder = Callable[[Sequence[str]], np.ndarray]


def resolve_clip(
    cache: TeacherCache, model: str | None, weights: str | None
) -> tuple[str | None, str | None]:
    """The given CLIP model and weights, or by default those in the cache's settings."""
    if model is not None:
        return model, weights
    settings: dict[str, Any] = read_settings(cache.path, cache.manifest)
    return settings.get("clip_model"), settings.get("clip_weights")


def load_text_encoder(
    cache: TeacherCache, model: str | None, weights: str | None, device: str
) -> TextEncoder:
    """Loads the cache's CLIP model; returns a function from N sentences to (N, D) embeddings.

    Args:
        cache: the cache, which contains the digest of the model's weights.
        model, weights: the model, see `ClipConfig`.
        device: name of a torch device, or "auto".

    Raises:
        InputError: no model is given, it cannot be loaded, or it is not the cache's.
    """
    from pipeline.utils.devices import configure_device, resolve_device
    from teacher_cache.teachers.clip import ClipConfig, ClipTeacher

    if model is None:
        raise InputError(
            "--clip-model: expected the cache's CLIP model for new prompts, found none"
        )
    torch_device = configure_device(resolve_device(device), "float32")
    clip = ClipTeacher(ClipConfig(model, weights), torch_device)
    expected = {"clip.weights": cache.manifest["parts"].get("clip.weights")}
    changes = describe_changes(expected, {"clip.weights": clip.weights_digest})
    if changes:
        raise InputError(f"--clip-model: expected the cache's own CLIP, found another ({changes})")
    return clip.encode_texts
