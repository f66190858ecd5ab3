import json
from dataclasses import replace

import pytest

from pipeline.utils.errors import InputError
from student.config import (
    PRESETS,
    LossConfig,
    MatcherConfig,
    ModelConfig,
    TrainConfig,
    get_preset,
    recipe_from_dict,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(backbone="vgg"), "backbone: expected one of resnet18.*found vgg"),
        (lambda: ModelConfig(num_queries=0), "num_queries: expected at least 1, found 0"),
        (lambda: ModelConfig(hidden_dim=100), r"hidden_dim: .*num_heads \(8\), found 100"),
        (lambda: ModelConfig(person=80), "person: expected a number from 0 to 79"),
        (lambda: MatcherConfig(topk=-1), "topk: expected at least 0, found -1"),
        (lambda: LossConfig(gamma=float("nan")), "gamma: expected at least 0, found nan"),
        (lambda: TrainConfig(ema=1.0), "ema: expected"),
        (lambda: TrainConfig(learning_rate=0.0), "learning_rate: expected"),
        (lambda: TrainConfig(keep="best"), "keep: expected a val_size above 0 as well, found 0"),
        (lambda: TrainConfig(val_every=2), "val_every: expected a val_size above 0 as well"),
        (lambda: TrainConfig(shot_seed=1), "shot_seed: expected shots above 0 as well"),
        (
            lambda: TrainConfig(schedule="one_cycle", warmup_steps=5),
            "warmup_steps: expected 0, because one_cycle has its own warm-up, found 5",
        ),
    ],
)
def test_errors_of_wrong_settings(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.fixture(params=PRESETS)
def recipe(request):
    return get_preset(request.param, 9, 11, 2)


def test_presets_have_the_vocabulary_sizes(recipe):
    assert (recipe.model.num_objects, recipe.model.num_verbs, recipe.model.person) == (9, 11, 2)


def test_published_training_settings():
    recipe = get_preset("published", 80, 117, 0)
    train = recipe.train
    assert (train.epochs, train.batch_size, train.drop_epoch) == (90, 16, 60)
    assert (train.learning_rate, train.learning_rate * train.backbone_lr_factor) == (1e-4, 1e-5)
    assert (train.weight_decay, train.clip_norm, train.ema) == (1e-4, 0.1, 0)
    assert (recipe.matcher.interactive_threshold, recipe.matcher.topk) == (0.5, 3)
    assert (recipe.model.num_queries, recipe.model.backbone) == (64, "resnet50")
    assert (recipe.model.hidden_dim, recipe.matcher.box_cost) == (256, 2.5)
    losses = recipe.losses
    assert (losses.verb_soft_weight, losses.verb_hard_weight, losses.alpha) == (700, 1.6, 0.5)
    assert losses.soft_normalisation == "entries"


def test_an_unknown_preset():
    with pytest.raises(InputError, match=r"--preset: expected.*found tiny"):
        get_preset("tiny", 9, 11, 2)


def test_recipe_from_dict_of_to_dict(recipe):
    value = json.loads(json.dumps(recipe.to_dict()))
    assert recipe_from_dict(value, "config.json") == recipe


def test_field_names_are_unique(recipe):
    names = [name for part in recipe.to_dict().values() for name in part]
    assert len(names) == len(set(names))


def test_toy_settings_do_not_depend_on_sizes():
    recipe = get_preset("toy", 9, 11, 2)
    assert recipe.model.queries == "proposals" and recipe.matcher.interactive_threshold == 0
    assert recipe.losses.soft_normalisation == "supervised"


def test_override(recipe):
    changed = recipe.override(
        epochs=7, queries="learned", verb_soft_weight=0.5, distillation=False, topk=1, seed=None
    )
    assert changed.train == replace(recipe.train, epochs=7)
    assert changed.model == replace(recipe.model, queries="learned")
    assert changed.losses == replace(recipe.losses, verb_soft_weight=0.5)
    assert changed.targets == replace(recipe.targets, distillation=False)
    assert changed.matcher == replace(recipe.matcher, topk=1)
    assert recipe.override() == recipe


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: value.pop("train"), "recipe: expected"),
        (lambda value: value.update(more={}), "recipe: expected"),
        (lambda value: value["train"].update(speed=3), r"recipe.train: expected"),
        (lambda value: value["model"].update(queries="none"), "queries: expected"),
    ],
)
def test_errors_of_recipe_from_dict(recipe, damage, message):
    value = recipe.to_dict()
    damage(value)
    with pytest.raises(InputError, match=message):
        recipe_from_dict(value, "config.json")
