"""Text embeddings, initial scale and settings of the text heads, from the teacher cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.models.text_head import TextEmbeddings, TextHead
from teacher_cache.reader.cache import TeacherCache
from teacher_cache.reader.soft_targets import action_probabilities

DEFAULT_EMBEDDING_WEIGHT = 1.0
# Number of pairs from which the initial margin is computed; a few hundred give about the same.
MAX_PAIRS = 20_000


def build_text_embeddings(
    vocabulary: Vocabulary,
    embeddings: np.ndarray,
    file: object,
    has_sentence: np.ndarray | None = None,
) -> TextEmbeddings:
    """Text embeddings of every verb with every object.

    A verb and an object that form no interaction have the normalised mean of the verb's
    interactions.

    Args:
        vocabulary: of H interactions.
        embeddings: (H, D) text embeddings of the interactions.
        file: named in errors.
        has_sentence: (H,) bool, False where an embedding is the mean of a verb and so tells nothing
            about the object; None for none.

    Raises:
        InputError: a verb has no interaction, hence no sentence.
    """
    verbs = np.array([verb for verb, _ in vocabulary.interactions])
    missing = [name for verb, name in enumerate(vocabulary.verbs) if verb not in verbs]
    if missing:
        raise InputError(
            f"{file}: expected a sentence for every verb, found none for"
            f" {', '.join(missing[:5])}, which is in no interaction"
        )
    means = np.stack([embeddings[verbs == v].mean(0) for v in range(vocabulary.num_verbs)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    table = vocabulary.interaction_ids
    by_verb = vocabulary.num_interactions + np.arange(vocabulary.num_verbs)[:, None]
    labels = np.full(len(embeddings) + len(means), vocabulary.num_objects)
    labels[: len(embeddings)] = [label for _, label in vocabulary.interactions]
    if has_sentence is not None:
        labels[: len(embeddings)][~has_sentence] = vocabulary.num_objects
    return TextEmbeddings(
        texts=torch.from_numpy(np.concatenate([embeddings, means]).astype(np.float32)),
        rows=torch.from_numpy(np.where(table >= 0, table, by_verb).T.copy()),
        labels=torch.from_numpy(labels),
    )


def text_head_options(
    options: dict[str, Any], cache: TeacherCache, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Fields of the recipe that follow from the cache for a student with a text head.

    None for linear heads; `options` are the fields that the user set.

    Raises:
        InputError: an embedding weight with linear heads or without distillation, or a cache
            without text embeddings, region embeddings or without the name of its CLIP model.
    """
    weight = options.get("embedding_weight")
    heads = [name for name in ("verb_head", "object_head") if options.get(name) == "text"]
    if not heads:
        if weight is not None:
            raise InputError(
                "--embedding-weight: expected --verb-head or --object-head text as well, found none"
            )
        return {}
    distillation = options.get("distillation", True)
    if weight and not distillation:
        raise InputError(f"--embedding-weight: expected 0 with --no-distillation, found {weight:g}")
    if weight is None:
        weight = DEFAULT_EMBEDDING_WEIGHT if distillation else 0.0
    if cache.text_model is None:
        raise InputError(
            f"{cache.path}: expected text embeddings of a named model for"
            f" --{heads[0].replace('_', '-')} text, found none"
        )
    if weight and not cache.has_embeddings:
        raise InputError(
            f"{cache.path}: expected region embeddings for --embedding-weight {weight:g}, found"
            " none (it was built with --no-embeddings); --embedding-weight 0 does not need them"
        )
    return {
        "embedding_weight": weight,
        "text_dim": cache.prompt_embeddings.embeddings.shape[1],
        "num_texts": vocabulary.num_interactions + vocabulary.num_verbs,
        "text_model": cache.text_model,
    }


def init_text_heads(heads: Sequence[TextHead], cache: TeacherCache, vocabulary: Vocabulary) -> None:
    """Initialises new text heads with a cache's text embeddings, and their scale and margin.

    The teacher's softmax over the verbs of an object is exp(logit - normaliser), where the
    normaliser depends on the region. The verb head, a sigmoid, starts with the mean normaliser as
    its margin, so that it gives the teacher's embeddings about the teacher's probabilities. With
    the same margin the object head gives a region's object a logit near that of "no pair".

    Raises:
        InputError: a verb has no interaction, or the cache is damaged.
    """
    text = cache.prompt_embeddings
    texts = build_text_embeddings(vocabulary, text.embeddings, cache.path)
    embeddings, labels = _region_embeddings(cache)
    if not len(labels):
        # Without region embeddings the text embeddings are used in their place.
        embeddings = text.embeddings
        labels = np.array([label for _, label in vocabulary.interactions])
    logits = text.logit_scale * embeddings @ text.embeddings.T
    probs = action_probabilities(logits, labels, vocabulary)
    verbs = probs.argmax(1)
    # Pairs whose object is in no interaction but "no interaction" have no probabilities.
    valid = probs.max(1) > 0
    hois = vocabulary.interaction_ids[verbs, labels][valid]
    # log(probability) = logit - log(sum of exp(logits)), for any of the object's verbs.
    normaliser = logits[valid, hois] - np.log(probs[valid, verbs[valid]])
    margin = normaliser.mean() / text.logit_scale if valid.any() else 0.0
    for head in heads:
        head.set_texts(texts)
        head.init_scale(text.logit_scale, float(margin))


def _region_embeddings(cache: TeacherCache) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (P, D) float32 and object labels (P,) of the first `MAX_PAIRS` pairs; none if the
    cache has no region embeddings."""
    embeddings, labels, count = [], [], 0
    for shard in range(cache.num_shards if cache.has_embeddings else 0):
        arrays = cache.shard_arrays(shard)
        if "regions/embedding" not in arrays:
            continue
        rows = arrays["pairs/region"][: MAX_PAIRS - count]
        embeddings.append(arrays["regions/embedding"][rows].astype(np.float32))
        labels.append(arrays["pairs/object_label"][: len(rows)].astype(np.int64))
        count += len(rows)
        if count >= MAX_PAIRS:
            break
    if not count:
        return np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=np.int64)
    return np.concatenate(embeddings), np.concatenate(labels)
