"""Images that hold more labelled pairs than the student has queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.splits import Split, keep_seen
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from student.shots import Shown


def crowded_line(
    annotations: Sequence[Annotation],
    split: Split,
    vocabulary: Vocabulary,
    num_queries: int,
    shown: Shown | None = None,
) -> str | None:
    """Says which images teach fewer pairs than they have; None where there are none.

    Every query is matched in such an image, and the pairs that fit worst go without.
    """
    crowded, shown = {}, shown or {}
    for place, annotation in enumerate(annotations):
        # Labels are at least as many as pairs, and quicker to count.
        if len(annotation.hois) > num_queries:
            seen = keep_seen(annotation, split, vocabulary, shown.get(place, ()))
            pairs = len(np.unique(seen.hois[:, :2], axis=0))
            if pairs > num_queries:
                crowded[annotation.image_id] = pairs
    if not crowded:
        return None
    worst = max(crowded, key=lambda image_id: crowded[image_id])
    return (
        f"warning: {len(crowded)} of {len(annotations)} training images hold more labelled pairs"
        f" than the student has queries ({num_queries}), {worst} {crowded[worst]}; in each, the"
        " pairs that fit worst are not learned"
    )
