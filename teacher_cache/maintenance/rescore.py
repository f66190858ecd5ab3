"""Asks stored regions new questions: other prompts, words or temperature, and no image opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import Progress
from pipeline.vocabulary import Vocabulary, load_vocabulary
from teacher_cache.maintenance.add_prompts import TextEncoder, load_text_encoder, resolve_clip
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
    embed_prompts,
    indistinguishable_actions,
    interaction_prompts,
)
from teacher_cache.writer.lock import lock_folder
from teacher_cache.writer.manifest import write_manifest
from teacher_cache.writer.plan import BuildPlan, check_folder, claim_folder
from teacher_cache.writer.settings import read_settings, to_settings
from teacher_cache.writer.shard import is_finished_shard, write_shard_arrays, write_teacher_file

logger = get_logger(__name__)


@dataclass(frozen=True)
class RescoreConfig:
    """What to ask anew.

    Attributes:
        cache: with region embeddings.
        out: the new cache folder, or of an interrupted rescoring of the same settings.
        templates: sentences to ask with; none keeps the cache's.
        vocabulary: a shipped name or a file, with all of the cache's objects; None keeps it.
        temperature: inverse of the factor on cosine similarities; None keeps it.
        clip_model, clip_weights: the same CLIP as the cache's, for its texts; None looks where the
            cache was built from.
        device: where CLIP runs.
    """

    cache: Path
    out: Path
    templates: tuple[str, ...] = ()
    vocabulary: str | None = None
    temperature: float | None = None
    clip_model: str | None = None
    clip_weights: str | None = None
    device: str = "auto"


def rescore_cache(config: RescoreConfig) -> None:
    """Writes a cache of the same pairs and regions with new outputs.

    Raises:
        InputError: bad input, a cache without embeddings, or another CLIP than the cache's.
    """
    reworded = bool(config.templates) or config.vocabulary is not None
    if not reworded and config.temperature is None:
        raise InputError(
            "expected --template, --vocabulary or --temperature, found nothing to change"
        )
    cache = open_cache(config.cache)
    if not cache.has_embeddings:
        raise InputError(
            f"{cache.path}: expected region embeddings, found none (it was built with"
            " --no-embeddings); only a new build can ask anew"
        )
    config = _resolve_config(config, cache)
    vocabulary = cache.vocabulary
    prompts = cache.prompt_embeddings.prompts
    labels = np.arange(vocabulary.num_objects)
    if config.vocabulary is not None:
        vocabulary = load_vocabulary(config.vocabulary)
        labels = map_object_labels(cache.vocabulary, vocabulary, config.vocabulary)
    if reworded:
        prompts = interaction_prompts(vocabulary, config.templates)
    text = _encode_prompts(cache, prompts, config)
    parts = {
        **cache.manifest["parts"],
        "vocabulary": vocabulary.digest(),
        "prompts": sha256_of_json(prompts),
        # Half precision embeddings give outputs that a fresh build's equal to about 1e-2.
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
    with lock_folder(config.out) as held:
        claim_folder(config.out, plan)
        held.remove_temporary_files()
        write_teacher_file(config.out / TEACHER, plan.fingerprint, text)
        with Progress(len(cache), "Asking anew", "images") as progress:
            for shard in range(cache.num_shards):
                path = config.out / SHARDS / shard_name(shard)
                if not is_finished_shard(path, plan.fingerprint):
                    _rescore_shard(cache, shard, path, plan.fingerprint, text, vocabulary, labels)
                progress.update(len(cache.shard_layout(shard).images))
        completion = write_manifest(config.out)
    assert completion.counts is not None
    print(f"{config.out}: {completion.counts['pairs']} pairs of {len(cache)} images asked anew")


def map_object_labels(old: Vocabulary, new: Vocabulary, file: str) -> np.ndarray:
    """(O,) the new number of every object of the old vocabulary, by name.

    Raises:
        InputError: the new vocabulary lacks one; names `file`.
    """
    lost = [name for name in old.objects if name not in new.objects]
    if lost:
        raise InputError(
            f"{file}: objects: expected all of the cache's, found none named {', '.join(lost[:5])}"
        )
    return np.array([new.objects.index(name) for name in old.objects], dtype=np.int64)


def _resolve_config(config: RescoreConfig, cache: TeacherCache) -> RescoreConfig:
    """What is not told is as it was when the cache was made."""
    model, weights = resolve_clip(cache, config.clip_model, config.clip_weights)
    config = replace(config, clip_model=model, clip_weights=weights)
    settings = read_settings(config.cache, cache.manifest)
    return replace(config, templates=config.templates or tuple(settings.get("templates", ())))


def _encode_prompts(
    cache: TeacherCache, prompts: Prompts, config: RescoreConfig
) -> PromptEmbeddings:
    """Embeds the sentences that the cache does not hold yet."""
    held = cache.prompt_embeddings
    known = dict(zip(held.prompts, held.embeddings, strict=True))
    fresh = [group for group in dict.fromkeys(prompts) if group not in known]
    if fresh:
        known |= zip(fresh, embed_prompts(fresh, _load_encoder(cache, config)), strict=True)
    scale = held.logit_scale if config.temperature is None else 1 / config.temperature
    return PromptEmbeddings(prompts, np.stack([known[group] for group in prompts]), scale)


def _load_encoder(cache: TeacherCache, config: RescoreConfig) -> TextEncoder:
    return load_text_encoder(cache, config.clip_model, config.clip_weights, config.device)


def _rescore_shard(
    cache: TeacherCache,
    shard: int,
    path: Path,
    fingerprint: str,
    text: PromptEmbeddings,
    vocabulary: Vocabulary,
    object_labels: np.ndarray,
) -> None:
    layout, arrays = cache.shard_layout(shard), dict(cache.shard_arrays(shard))
    labels = object_labels[arrays["pairs/object_label"]]
    probabilities = np.zeros((0, vocabulary.num_verbs), dtype=np.float32)
    if layout.num_pairs:
        embeddings = arrays[REGION_EMBEDDING].astype(np.float32)
        logits = text.logit_scale * embeddings @ text.embeddings.T
        probabilities = action_probabilities(logits[arrays["pairs/region"]], labels, vocabulary)
    arrays["pairs/object_label"], arrays["pairs/action_probabilities"] = labels, probabilities
    write_shard_arrays(path, fingerprint, layout.images, layout.failed, arrays)
