"""Encodes sentences about new actions, once, for students that read."""

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
from pipeline.vocabulary import Vocabulary, load_vocabulary
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

ACTION_PATTERN = re.compile(r"(?:(?P<name>[^=:,]+)=)?(?P<ing>[^=:,]+)(?::(?P<objects>[^=:]*))?")
# Verb, its form in sentences, object.
NewInteraction = tuple[str, str, str]


@dataclass(frozen=True)
class AddPromptsConfig:
    """Which actions to add.

    Attributes:
        cache: whose CLIP, sentences and objects to use.
        out: the file to write.
        added: "jumping over", "jumping over:bench,box" or "jump=jumping over:bench,box".
        vocabulary: a shipped name or a file whose further actions are added; None for none.
        templates: sentences as the cache's were made of; none takes them from its settings.
        clip_model, clip_weights: the cache's CLIP; None looks where the cache was built from.
        device: where CLIP runs.
        overwrite: replace the file.
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
    """Writes the file.

    Raises:
        InputError: bad input, nothing that the cache does not know already, sentences that are not
            like the cache's, or another CLIP than the cache's.
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
        raise InputError(f"{cache.path}: expected the name of the CLIP that read its texts")
    verbs = dict.fromkeys((verb, ing) for verb, ing, _ in added)
    _check_verb_forms(verbs)
    added = list(dict.fromkeys(added))
    prompts: Prompts = tuple(fill_templates(templates, ing, thing) for _, ing, thing in added)
    model = resolve_clip(cache, config.clip_model, config.clip_weights)
    encode = load_text_encoder(cache, *model, config.device)
    numbers = {verb: number for number, verb in enumerate(verbs)}
    made = ActionPrompts(
        text_model=cache.text_model,
        verbs=tuple(verb for verb, _ in verbs),
        verb_ings=tuple(ing for _, ing in verbs),
        actions=np.array([numbers[verb, ing] for verb, ing, _ in added], dtype=np.int64),
        objects=tuple(thing for _, _, thing in added),
        prompts=prompts,
        embeddings=embed_prompts(prompts, encode),
    )
    write_prompts_file(config.out, made)
    held = cache.prompt_embeddings
    names = [*known.interaction_names, *((verb, thing) for verb, _, thing in added)]
    embeddings = np.concatenate([held.embeddings, made.embeddings])
    text = PromptEmbeddings((*held.prompts, *prompts), embeddings, held.logit_scale)
    if line := indistinguishable_actions(names, text):
        logger.warning(line)
    for number, verb in enumerate(made.verbs):
        own = np.flatnonzero(made.actions == number)
        things = ", ".join(made.objects[row] for row in own)
        print(f'{verb}: {things}; "{prompts[own[0]][0]}"')
    return made


def parse_action(text: str, known: Vocabulary) -> list[NewInteraction]:
    """The interactions that an `--add` asks for.

    Without objects the action goes with all that some action of the vocabulary goes with. An
    action that the vocabulary has gets the objects that it does not go with yet.

    Args:
        text: `[NAME=]PHRASE[:OBJECT,OBJECT...]`; without a name the phrase is the name.
        known: the cache's vocabulary.

    Raises:
        InputError: another form, an object that is not in the vocabulary, or nothing new.
    """
    parts = ACTION_PATTERN.fullmatch(text)
    if parts is None or not parts["ing"].strip():
        raise InputError(f"--add: expected [NAME=]PHRASE[:OBJECT,OBJECT...], found {text!r}")
    ing = " ".join(parts["ing"].split())
    verb = _find_verb(known, ing) or ing.replace(" ", "_")
    if parts["name"] is not None:
        verb = "_".join(parts["name"].split())
    things = known.valid.any(axis=0)
    if parts["objects"] is not None:
        things = np.zeros(known.num_objects, dtype=bool)
        things[[_object_index(known, name) for name in parts["objects"].split(",")]] = True
    if verb in known.verbs:
        number = known.verbs.index(verb)
        if _normalise_name(known.verb_ings[number]) != _normalise_name(ing):
            form = known.verb_ings[number]
            raise InputError(f"--add: {verb}: expected {form!r}, its form so far, found {ing!r}")
        things = things & ~known.valid[number]
    if not things.any():
        raise InputError(f"--add: expected an action that the cache lacks, found {text!r}")
    return [(verb, ing, known.objects[label]) for label in np.flatnonzero(things)]


def _missing_interactions(wanted: Vocabulary, known: Vocabulary, file: str) -> list[NewInteraction]:
    """The interactions of a vocabulary that another one lacks, as far as it has their objects."""
    have = {
        (_normalise_name(known.verbs[verb]), known.objects[label])
        for verb, label in known.interactions
    }
    named = [
        (wanted.verbs[verb], wanted.verb_ings[verb], wanted.objects[label])
        for verb, label in wanted.interactions
    ]
    new = [
        interaction
        for interaction in named
        if (_normalise_name(interaction[0]), interaction[2]) not in have
    ]
    fitting = [interaction for interaction in new if interaction[2] in known.objects]
    if len(fitting) < len(new):
        lost = dict.fromkeys(
            interaction[2] for interaction in new if interaction[2] not in known.objects
        )
        logger.warning(
            f"{file}: {len(new) - len(fitting)} interactions left out, with objects that the cache"
            f" does not know: {', '.join(list(lost)[:5])}"
        )
    return fitting


def _resolve_templates(cache: TeacherCache, config: AddPromptsConfig) -> Sequence[str]:
    held = read_settings(cache.path, cache.manifest).get("templates") or [DEFAULT_TEMPLATE]
    templates = config.templates or tuple(held)
    if interaction_prompts(cache.vocabulary, templates) != cache.prompt_embeddings.prompts:
        raise InputError(
            f"--template: expected the sentences that {cache.path} was asked with"
            f" ({cache.prompt_embeddings.prompts[0][0]!r}), found {templates[0]!r}"
        )
    return templates


def _check_verb_forms(verbs: dict[tuple[str, str], None]) -> None:
    for name in dict.fromkeys(verb for verb, _ in verbs):
        forms = [ing for verb, ing in verbs if verb == name]
        if len(forms) > 1:
            raise InputError(f"{name}: expected one form in sentences, found {' and '.join(forms)}")


def _find_verb(known: Vocabulary, ing: str) -> str | None:
    forms = [_normalise_name(form) for form in known.verb_ings]
    return known.verbs[forms.index(_normalise_name(ing))] if _normalise_name(ing) in forms else None


def _object_index(known: Vocabulary, name: str) -> int:
    names = [_normalise_name(one) for one in known.objects]
    if _normalise_name(name) not in names:
        some = ", ".join(known.objects[:20]) + (", ..." if known.num_objects > 20 else "")
        raise InputError(f"--add: expected objects of the cache ({some}), found {name.strip()!r}")
    return names.index(_normalise_name(name))


def _normalise_name(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


TextEncoder = Callable[[Sequence[str]], np.ndarray]


def resolve_clip(
    cache: TeacherCache, model: str | None, weights: str | None
) -> tuple[str | None, str | None]:
    """Model and weights as told, or as they were named when the cache was made."""
    if model is not None:
        return model, weights
    settings: dict[str, Any] = read_settings(cache.path, cache.manifest)
    return settings.get("clip_model"), settings.get("clip_weights")


def load_text_encoder(
    cache: TeacherCache, model: str | None, weights: str | None, device: str
) -> TextEncoder:
    """Opens the cache's own CLIP and gives what turns N sentences into (N, D) embeddings.

    Args:
        model, weights: where it is, see `ClipConfig`.

    Raises:
        InputError: nobody says which it was, it is not there, or it is another one.
    """
    from pipeline.utils.devices import configure_device, resolve_device
    from teacher_cache.teachers.clip import ClipConfig, ClipTeacher

    if model is None:
        raise InputError("--clip-model: expected the cache's CLIP for new sentences, found none")
    where = configure_device(resolve_device(device), "float32")
    clip = ClipTeacher(ClipConfig(model, weights), where)
    held = {"clip.weights": cache.manifest["parts"].get("clip.weights")}
    changes = describe_changes(held, {"clip.weights": clip.weights_digest})
    if changes:
        raise InputError(f"--clip-model: expected the cache's own CLIP, found another ({changes})")
    return clip.encode_texts
