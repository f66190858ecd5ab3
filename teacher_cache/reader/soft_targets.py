"""Action probabilities from scores of a teacher: the soft targets (EoID section 3.3)."""

from __future__ import annotations

import numpy as np

from pipeline.vocabulary import Vocabulary


def action_probabilities(
    logits: np.ndarray, object_labels: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    """Probability of every action for each pair, given the pair's object (EoID section 3.3).

    The softmax is taken over the interactions of the pair's object class without `no_interaction`,
    and scattered to their verbs; verbs that form no interaction with the object get 0.

    Args:
        logits: (P, H) scaled cosine similarities of P regions and the prompts of H interactions.
        object_labels: (P,) object index of every pair.
        vocabulary: maps verbs and objects to interactions.

    Returns:
        (P, V) float32; a row is all 0 where the object has no interaction but `no_interaction`.
    """
    probabilities = np.zeros((len(logits), vocabulary.num_verbs), dtype=np.float32)
    for label in np.unique(object_labels):
        verbs = np.flatnonzero(vocabulary.valid[:, label])
        verbs = verbs[verbs != vocabulary.no_interaction]
        if len(verbs) == 0:
            continue
        rows = np.flatnonzero(object_labels == label)
        scores = logits[np.ix_(rows, vocabulary.interaction_ids[verbs, label])].astype(np.float32)
        # Shifted by the maximum: CLIP's logits reach 100 and more, where exp overflows in float32.
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities[np.ix_(rows, verbs)] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def object_actions(vocabulary: Vocabulary) -> np.ndarray:
    """(O, V) bool: the actions of every object: verbs that form an interaction with it, without
    `no_interaction`."""
    actions = vocabulary.valid.T.copy()
    if vocabulary.no_interaction is not None:
        actions[:, vocabulary.no_interaction] = False
    return actions


def objects_with_actions(vocabulary: Vocabulary) -> np.ndarray:
    """(O,) bool: objects that form an interaction with at least one verb but `no_interaction`."""
    return np.any(object_actions(vocabulary), axis=1)
