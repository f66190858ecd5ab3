import numpy as np
import pytest

from pipeline.splits import load_split
from pipeline.types import Annotation
from student.engine.run_inputs import query_overflow_message


def annotate_pairs(vocabulary, name, pairs, verb="hold", labels=1):
    """One person with `pairs` balls, `labels` labels on each."""
    verbs = [verb, "throw", "kick"][:labels]
    count = pairs + 1
    return Annotation(
        name,
        np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (count, 1)),
        np.array([vocabulary.person] + [vocabulary.objects.index("ball")] * pairs),
        np.array(
            [(0, 1 + i, vocabulary.verbs.index(verb)) for i in range(pairs) for verb in verbs],
            dtype=np.int64,
        ).reshape(-1, 3),
    )


@pytest.mark.parametrize("counts", [[], [0], [4, 1], [4, 4, 4]])
def test_no_warning_with_enough_queries(vocabulary, counts):
    images = [
        annotate_pairs(vocabulary, f"{i}.jpg", count, labels=2) for i, count in enumerate(counts)
    ]
    assert query_overflow_message(images, load_split(vocabulary, "full"), vocabulary, 4) is None


def test_the_warning_names_the_largest_image(vocabulary):
    images = [annotate_pairs(vocabulary, f"{count}.jpg", count, labels=3) for count in (5, 2, 9, 4)]
    line = query_overflow_message(images, load_split(vocabulary, "full"), vocabulary, 4)
    assert "2 of 4 training images" in line and "queries (4), up to 9 in 9.jpg;" in line
    assert "\n" not in line


@pytest.mark.parametrize(("verb", "counts"), [("kick", False), ("hold", True)])
def test_unseen_pairs_do_not_count(vocabulary, verb, counts):
    line = query_overflow_message(
        [annotate_pairs(vocabulary, "a.jpg", 6, verb=verb)],
        load_split(vocabulary, "ua"),
        vocabulary,
        4,
    )
    assert (line is not None) == counts
