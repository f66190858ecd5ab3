import numpy as np
import pytest

from pipeline.splits import load_split
from pipeline.types import Annotation
from student.config import TargetConfig
from student.data.dataset import TrainingDataset
from student.engine.run_inputs import query_overflow_message

HOLD, THROW, KICK = "hold", "throw", "kick"


@pytest.fixture
def message(vocabulary):
    """`message(counts, verbs, split)`: the warning for images of one person with that many balls
    and all `verbs` on each, and a student with four queries."""

    def make(counts, verbs, split):
        labels = [vocabulary.verbs.index(verb) for verb in verbs]
        ball = vocabulary.objects.index("ball")
        annotations = [
            Annotation(
                f"{count}.jpg",
                np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (count + 1, 1)),
                np.array([vocabulary.person] + [ball] * count),
                np.array(
                    [(0, 1 + row, verb) for row in range(count) for verb in labels], dtype=np.int64
                ).reshape(-1, 3),
            )
            for count in counts
        ]
        split = load_split(vocabulary, split)
        config = TargetConfig()
        images = TrainingDataset(
            annotations, None, annotations, None, split, vocabulary, config, None, 0
        )
        return query_overflow_message(images, 4)

    return make


@pytest.mark.parametrize(
    ("counts", "verbs", "split", "warned"),
    [
        ([], (HOLD, THROW), "full", None),
        ([0], (HOLD, THROW), "full", None),
        ([4, 4, 1], (HOLD, THROW), "full", None),
        ([5, 2, 9, 4], (HOLD, THROW, KICK), "full", "2 of 4 training images"),
        ([6], (HOLD,), "ua", "1 of 1 training images"),
        ([6], (KICK,), "ua", None),
    ],
)
def test_the_warning_of_images_with_more_seen_pairs_than_queries(
    message, counts, verbs, split, warned
):
    line = message(counts, verbs, split)
    assert (line is None) == (warned is None)
    if line is not None:
        assert warned in line and f"queries (4), up to {max(counts)} in {max(counts)}.jpg;" in line
