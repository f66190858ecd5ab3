"""From detections to the numbers of a results file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.hico import scores_of
from evaluation.judged import Setting, match
from evaluation.nms import NmsConfig, suppress_pairs
from evaluation.results import score_fields, setting_scores
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

SETTINGS: dict[str, tuple[Setting, ...]] = {
    "default": ("default",),
    "known-object": ("known_object",),
    "both": ("default", "known_object"),
}


@dataclass(frozen=True)
class Scoring:
    """How to score.

    Attributes:
        settings: HICO-DET settings, one or both.
        nms: pairwise NMS first; None without.
    """

    settings: tuple[Setting, ...] = SETTINGS["both"]
    nms: NmsConfig | None = None


def scored_fields(
    annotations: Sequence[Annotation],
    detections: Sequence[Detections],
    vocabulary: Vocabulary,
    unseen: tuple[int, ...],
    scoring: Scoring,
) -> dict[str, Any]:
    """The fields of `Results` that scoring fills; the first setting's numbers stand at the top.

    Args:
        unseen: HOI indices of the split whose groups are wanted.

    Raises:
        InputError: detections for an image that is not annotated.
    """
    if scoring.nms is not None:
        detections = suppress_pairs(detections, scoring.nms)
    matches = match(annotations, detections, vocabulary)
    scores = scores_of(matches, vocabulary, scoring.settings)
    first, *further = scoring.settings
    known_object = "known_object" in further
    return {
        "setting": first,
        "known_object": setting_scores(scores["known_object"], vocabulary, unseen)
        if known_object
        else None,
        "nms": None if scoring.nms is None else asdict(scoring.nms),
        "matches": matches,
        **score_fields(scores[first], vocabulary, unseen),
    }
