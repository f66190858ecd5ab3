"""Results with chosen AP."""

import pytest

from evaluation.results import METRICS, Results
from pipeline.splits import load_split


@pytest.fixture
def make(toy):
    """Results whose unseen and seen AP are the same for every interaction."""

    def build(unseen_ap, seen_ap=0.5, *, split="ua", **fields):
        held_back = load_split(toy, split).unseen
        per_class = {
            toy.interaction_name(index): unseen_ap if index in held_back else seen_ap
            for index in range(toy.num_interactions)
        }
        metrics = dict.fromkeys(METRICS, 0.4)
        metrics |= {"unseen": unseen_ap if held_back else None, "seen": seen_ap}
        values = {
            "name": "run",
            "kind": "student",
            "dataset": "toy",
            "vocabulary": "toy",
            "setting": "default",
            "num_images": 10,
            "training_split": split,
            "distillation": True,
        }
        return Results(
            **{**values, **fields},
            split=split,
            unseen=held_back,
            metrics=metrics,
            per_class=per_class,
        )

    return build
