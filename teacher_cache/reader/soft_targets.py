"""From CLIP's scores to action probabilities."""

from __future__ import annotations

import numpy as np

from pipeline.vocabulary import Vocabulary


def action_probabilities(
    logits: np.ndarray, object_labels: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    """How likely the teacher finds every action, given the pair's object (EoID section 3.3).

    A softmax over the interactions of the pair's object class, `no_interaction` left out, put in
    the places of their verbs; verbs that do not go with the object get 0.

    Args:
        logits: (P, H) scaled cosine similarities of P regions and the H interactions' prompts.
        object_labels: (P,) object index of every pair.
        vocabulary: which interactions belong to which object and verb.

    Returns:
        (P, V) float32; a row is all 0 where nothing but `no_interaction` goes with the object.
    """
    probabilities = np.zeros((len(logits), vocabulary.num_verbs), dtype=np.float32)
    for label in np.unique(object_labels):
        verbs = np.flatnonzero(vocabulary.valid[:, label])
        verbs = verbs[verbs != vocabulary.no_interaction]
        if len(verbs) == 0:
            continue
        rows = np.flatnonzero(object_labels == label)
        scores = logits[np.ix_(rows, vocabulary.interaction_ids[verbs, label])].astype(np.float32)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities[np.ix_(rows, verbs)] = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def objects_with_actions(vocabulary: Vocabulary) -> np.ndarray:
    """(O,) bool: objects with at least one action that the teacher scores."""
    asked = vocabulary.valid.copy()
    if vocabulary.no_interaction is not None:
        asked[vocabulary.no_interaction] = False
    return np.any(asked, axis=0)
