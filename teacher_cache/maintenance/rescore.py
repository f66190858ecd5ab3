"""Computes a cache's action probabilities again from its stored region embeddings.

Prompts, vocabulary and temperature can change; no image is read and CLIP's image encoder is not
run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.cluster.lock import lock_folder
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.logging import get_logger
from pipeline.utils.plugins import format_settings
from pipeline.utils.progress import track
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.maintenance.add_prompts import load_text_encoder, resolve_clip
from teacher_cache.reader.cache import PromptEmbeddings, TeacherCache, open_cache
from teacher_cache.reader.format import (
    REGION_EMBEDDING,
    SHARDS,
    TEACHER,
    shard_name,
    vocabulary_to_dict,
)
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.prompts import (
    Prompts,
    classes_without_sentences,
    embed_prompts,
    indistinguishable_actions,
    interaction_prompts,
    prompt_classes,
)
from teacher_cache.writer.manifest import write_manifest
from teacher_cache.writer.plan import BuildPlan, check_folder, claim_folder
from teacher_cache.writer.settings import read_settings, to_settings
from teacher_cache.writer.shard import is_finished_shard, write_shard_arrays, write_teacher_file

logger = get_logger(__name__)


@dataclass(frozen=True)
class RescoreConfig:
    """Which cache to rescore, and what to change.

    Attributes:
        cache: the cache folder; it must contain region embeddings.
        out: the new cache folder, or that of an interrupted run with the same settings.
        templates: prompt templates; empty for the cache's own.
        vocabulary: name or file of a vocabulary with all objects of the cache; None for its own.
        temperature: inverse of the factor on cosine similarities; None for the cache's own.
        clip_model, clip_weights: the cache's CLIP model, which encodes new prompts; None for the
            one named in the cache's settings.
        device: device of CLIP.
        teacher, teacher_settings: see `load_text_encoder`.
        sentences: see `class_prompts`; None for the cache's own file, unless there are `templates`.
    """

    cache: Path
    out: Path
    templates: tuple[str, ...] = ()
    vocabulary: str | None = None
    temperature: float | None = None
    clip_model: str | None = None
    clip_weights: str | None = None
    device: str = "auto"
    teacher: str | None = None
    teacher_settings: tuple[str, ...] = ()
    sentences: Path | None = None


def rescore_cache(config: RescoreConfig) -> None:
    """Writes a cache with the same pairs and regions and new probabilities.

    Raises:
        InputError: the input is bad, the cache contains no embeddings, or the CLIP model is not
            the cache's.
    """
    new_prompts = bool(config.templates or config.sentences or config.vocabulary)
    if not new_prompts and config.temperature is None:
        raise InputError(
            "expected --template, --sentences, --vocabulary or --temperature, found nothing to"
            " change"
        )
    cache = open_cache(config.cache)
    prompts = cache.prompt_embeddings.prompts
    if not cache.has_embeddings:
        raise InputError(
            f"{cache.path}: expected region embeddings, found none (it was built with"
            " --no-embeddings); build the cache again"
        )
    # The settings in the new cache do not depend on those of the old one.
    model, weights = resolve_clip(cache, config.clip_model, config.clip_weights)
    settings, named_teacher = read_settings(cache.path, cache.manifest), config.teacher
    if config.teacher_settings:
        if named_teacher is None:
            raise InputError(
                f"--teacher-set: expected --teacher as well, found {config.teacher_settings[0]}"
            )
        from teacher_cache.teachers.load import TeacherConfig

        teacher = TeacherConfig.resolve(named_teacher, config.teacher_settings)
        config = replace(config, teacher_settings=format_settings(teacher.settings))
    if not config.templates and config.sentences is None and settings.get("sentences"):
        config = replace(config, sentences=Path(settings["sentences"]))
    config = replace(
        config,
        clip_model=model,
        clip_weights=weights,
        templates=config.templates or tuple(settings.get("templates", ())),
        teacher=config.teacher or settings.get("teacher"),
        teacher_settings=config.teacher_settings or tuple(settings.get("teacher_settings", ())),
    )
    vocabulary = cache.vocabulary
    if config.vocabulary is not None:
        vocabulary = load_vocabulary(config.vocabulary)
    object_map = map_object_labels(cache.vocabulary, vocabulary, str(config.vocabulary))
    if new_prompts:
        prompts = interaction_prompts(vocabulary, config.templates, config.sentences)
        if line := classes_without_sentences(prompt_classes(vocabulary), config.sentences):
            logger.warning(line)
    text = _encode_prompts(cache, prompts, config, named_teacher)
    parts = {
        **cache.manifest["parts"],
        "vocabulary": vocabulary.digest(),
        "prompts": sha256_of_json(prompts),
        # The probabilities differ from those of a new build by up to about 1e-2, because the
        # stored embeddings have half precision; so the fingerprints must differ, too.
        "rescored_from": cache.fingerprint,
    }
    if config.temperature is not None:
        parts["logit_scale"] = text.logit_scale
    plan = BuildPlan(
        parts=parts,
        layout=cache.manifest.get("layout", {}),
        num_images=len(cache) + len(cache.failed),
        settings=to_settings("rescore", config),
        vocabulary=vocabulary_to_dict(vocabulary),
    )
    if check_folder(config.out, plan):
        logger.info(f"{config.out}: was finished before; nothing to do")
        return
    if line := indistinguishable_actions(vocabulary.interaction_names, text):
        logger.warning(line)
    with lock_folder(config.out) as lock:
        claim_folder(config.out, plan)
        lock.remove_temporary_files()
        write_teacher_file(config.out / TEACHER, plan.fingerprint, text)
        for shard in track(range(cache.num_shards), cache.num_shards, "Rescoring", "shards"):
            path = config.out / SHARDS / shard_name(shard)
            if is_finished_shard(path, plan.fingerprint):
                continue
            layout, arrays = cache.shard_layout(shard), dict(cache.shard_arrays(shard))
            labels = object_map[arrays["pairs/object_label"]]
            probabilities = np.zeros((0, vocabulary.num_verbs), dtype=np.float32)
            # A shard without pairs may contain no embeddings.
            if layout.num_pairs:
                embeddings = arrays[REGION_EMBEDDING].astype(np.float32)
                logits = (text.logit_scale * embeddings @ text.embeddings.T)[arrays["pairs/region"]]
                probabilities = action_probabilities(logits, labels, vocabulary)
            arrays |= {"pairs/object_label": labels, "pairs/action_probabilities": probabilities}
            write_shard_arrays(path, plan.fingerprint, layout.images, layout.failed, arrays)
        status = write_manifest(config.out)
    assert status.counts is not None
    print(
        f"{config.out}: rescored {count_noun(status.counts['pairs'], 'pairs')} of"
        f" {count_noun(len(cache), 'images')}"
    )


def map_object_labels(old: Vocabulary, new: Vocabulary, file: str) -> np.ndarray:
    """(O,) label in the new vocabulary of each object of the old one, by name.

    Raises:
        InputError: the new vocabulary, read from `file`, lacks an object.
    """
    missing = [name for name in old.objects if name not in new.objects]
    if missing:
        names = ", ".join(missing[:5])
        raise InputError(
            f"{file}: objects: expected all objects of the cache, found none named {names}"
        )
    return np.array([new.objects.index(name) for name in old.objects], dtype=np.int64)


def _encode_prompts(
    cache: TeacherCache, prompts: Prompts, config: RescoreConfig, named_teacher: str | None
) -> PromptEmbeddings:
    """Prompt embeddings; CLIP is loaded only for prompts that the cache does not contain."""
    cached = cache.prompt_embeddings
    embeddings = dict(zip(cached.prompts, cached.embeddings, strict=True))
    new = [group for group in dict.fromkeys(prompts) if group not in embeddings]
    if new:
        encode = load_text_encoder(
            cache,
            config.clip_model,
            config.clip_weights,
            config.device,
            named_teacher,
            config.teacher_settings,
        )
        embeddings |= zip(new, embed_prompts(new, encode), strict=True)
    scale = cached.logit_scale if config.temperature is None else 1 / config.temperature
    return PromptEmbeddings(prompts, np.stack([embeddings[group] for group in prompts]), scale)
