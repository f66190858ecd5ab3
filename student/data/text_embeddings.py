"""What a verb head that reads is told by the teacher cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.models.text_head import TextEmbeddings, TextVerbHead
from teacher_cache.reader.cache import TeacherCache
from teacher_cache.reader.soft_targets import action_probabilities

DEFAULT_EMBEDDING_WEIGHT = 1.0
# Pairs that a start is measured on; a few hundred would do.
MAX_PAIRS = 20_000


@dataclass(frozen=True, eq=False)
class TextHeadInit:
    """How a head that reads begins.

    Attributes:
        texts: of the vocabulary's interactions and verbs.
        scale: the teacher's own factor on cosines.
        margin: the cosine above which an action is likely.
    """

    texts: TextEmbeddings
    scale: float
    margin: float

    def apply(self, head: Any) -> None:
        """Makes a new head ready for training."""
        assert isinstance(head, TextVerbHead)
        head.set_texts(self.texts)
        head.init_scale(self.scale, self.margin)


def build_text_embeddings(
    vocabulary: Vocabulary, embeddings: np.ndarray, source: object
) -> TextEmbeddings:
    """The sentence of every verb with every object.

    Where the two form no interaction it is the normalised mean of the verb's own interactions.

    Args:
        vocabulary: H interactions.
        embeddings: (H, D) of their sentences.
        source: where they come from, named in errors.

    Raises:
        InputError: a verb goes with no object, so that there is no sentence about it.
    """
    verbs = np.array([verb for verb, _ in vocabulary.interactions])
    alone = [name for verb, name in enumerate(vocabulary.verbs) if verb not in verbs]
    if alone:
        raise InputError(
            f"{source}: expected a sentence about every verb, found none about"
            f" {', '.join(alone[:5])}, which goes with no object"
        )
    means = np.stack([embeddings[verbs == v].mean(0) for v in range(vocabulary.num_verbs)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    table = vocabulary.interaction_ids
    by_verb = vocabulary.num_interactions + np.arange(vocabulary.num_verbs)[:, None]
    return TextEmbeddings(
        texts=torch.from_numpy(np.concatenate([embeddings, means]).astype(np.float32)),
        rows=torch.from_numpy(np.where(table >= 0, table, by_verb).T.copy()),
    )


def text_head_options(
    options: dict[str, Any], cache: TeacherCache, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Further options of a recipe whose verb head reads the cache's sentences; none for others.

    Args:
        options: fields of the recipe's parts that were asked for.
        cache: of the training part.
        vocabulary: of the dataset.

    Raises:
        InputError: a weight for a student that does not read or that hears no teacher, or a cache
            without what such a student needs.
    """
    weight = options.get("embedding_weight")
    if options.get("verb_head", "linear") != "text":
        if weight is not None:
            raise InputError("--embedding-weight: expected --verb-head text beside it, found none")
        return {}
    distillation = options.get("distillation", True)
    if weight and not distillation:
        raise InputError(f"--embedding-weight: expected 0 with --no-distillation, found {weight:g}")
    if weight is None:
        weight = DEFAULT_EMBEDDING_WEIGHT if distillation else 0.0
    if weight and not cache.has_embeddings:
        raise InputError(
            f"{cache.path}: expected region embeddings for --embedding-weight {weight:g}, found"
            " none (it was built with --no-embeddings); 0 does without"
        )
    if cache.text_model is None:
        raise InputError(
            f"{cache.path}: expected the name of the CLIP that read its texts, found none"
        )
    return {
        "embedding_weight": weight,
        "text_dim": cache.prompt_embeddings.embeddings.shape[1],
        "num_texts": vocabulary.num_interactions + vocabulary.num_verbs,
        "text_model": cache.text_model,
    }


def load_text_head_init(cache: TeacherCache, vocabulary: Vocabulary) -> TextHeadInit:
    """Reads a cache's sentences, and measures where a head begins that compares with them.

    At the beginning an embedding that equals the teacher's is scored as the teacher does on
    average: its softmax over an object's actions is a sigmoid whose margin differs from region to
    region, and the head starts with the mean of these.

    Raises:
        InputError: a verb without sentence, or a damaged cache.
    """
    text = cache.prompt_embeddings
    sentences = build_text_embeddings(vocabulary, text.embeddings, cache.path)
    embeddings, labels = _region_embeddings(cache)
    if not len(labels):
        # Without regions the sentences stand in for what they describe.
        embeddings = text.embeddings
        labels = np.array([label for _, label in vocabulary.interactions])
    logits = text.logit_scale * embeddings @ text.embeddings.T
    likeliest = action_probabilities(logits, labels, vocabulary)
    verbs = likeliest.argmax(1)
    known = likeliest.max(1) > 0
    hois = vocabulary.interaction_ids[verbs, labels][known]
    # logit - log(sum of exp) = log(probability), for any of the actions.
    normaliser = logits[known, hois] - np.log(likeliest[known, verbs[known]])
    margin = normaliser.mean() / text.logit_scale if known.any() else 0.0
    return TextHeadInit(sentences, text.logit_scale, float(margin))


def _region_embeddings(cache: TeacherCache) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (P, D) and object labels (P,) of the first pairs."""
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
