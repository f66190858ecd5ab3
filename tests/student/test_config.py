import pytest

from pipeline.utils.errors import InputError
from student.config import LossConfig, MatcherConfig, ModelConfig


def test_published_settings_are_the_defaults():
    model, matcher, losses = (
        ModelConfig.published(),
        MatcherConfig.published(),
        LossConfig.published(),
    )
    assert (model.num_queries, model.backbone, model.hidden_dim) == (64, "resnet50", 256)
    assert (matcher.topk, matcher.interactive_threshold, matcher.box_cost) == (3, 0.5, 2.5)
    assert (losses.verb_soft_weight, losses.verb_hard_weight, losses.alpha) == (700, 1.6, 0.5)
    assert losses.soft_normalisation == "entries"


def test_toy_settings_do_not_depend_on_sizes():
    assert ModelConfig.toy(8, 11, person=0).queries == "proposals"
    assert LossConfig.toy().soft_normalisation == "supervised"
    assert MatcherConfig.toy().interactive_threshold == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ModelConfig(backbone="vgg"), "backbone: expected one of resnet18.*found vgg"),
        (lambda: ModelConfig(queries="none"), "queries: expected"),
        (lambda: ModelConfig(num_queries=0), "num_queries: expected at least 1, found 0"),
        (lambda: ModelConfig(hidden_dim=100), r"hidden_dim: .*num_heads \(8\), found 100"),
        (lambda: ModelConfig(dropout=1.5), "dropout: expected a number from 0 to 1"),
        (lambda: ModelConfig(person=80), "person: expected a number from 0 to 79"),
        (lambda: MatcherConfig(topk=-1), "topk: expected at least 0, found -1"),
        (lambda: MatcherConfig(interactive_threshold=2), "interactive_threshold"),
        (lambda: LossConfig(verb_loss="l2"), "verb_loss: expected"),
        (lambda: LossConfig(soft_normalisation="x"), "soft_normalisation: expected"),
        (lambda: LossConfig(gamma=float("nan")), "gamma: expected at least 0, found nan"),
    ],
)
def test_wrong_settings_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()
