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

    def make(counts, verbs=(HOLD,), split="full"):
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


@pytest.mark.parametrize("counts", [[], [0], [4, 1], [4, 4, 4]])
def test_no_warning_with_enough_queries(message, counts):
    assert message(counts, (HOLD, THROW)) is None


def test_the_warning_names_the_largest_image(message):
    line = message([5, 2, 9, 4], (HOLD, THROW, KICK))
    assert "2 of 4 training images" in line and "queries (4), up to 9 in 9.jpg;" in line
    assert "\n" not in line


@pytest.mark.parametrize(("verb", "counts"), [(KICK, False), (HOLD, True)])
def test_unseen_pairs_do_not_count(message, verb, counts):
    assert (message([6], (verb,), "ua") is not None) == counts
