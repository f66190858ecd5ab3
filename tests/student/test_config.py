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
        (lambda: TrainConfig(val_size=2.5), "val_size: expected a fraction below 1 or a whole num"),
        (lambda: TrainConfig(val_every=2), "val_every: expected a val_size above 0 as well"),
        (
            lambda: TrainConfig(patience=2),
            "patience: expected val_size above 0 as well, found 0",
        ),
        (
            lambda: TrainConfig(patience=2, val_size=4),
            "patience: expected val_every above 0 as well, found 0",
        ),
        (
            lambda: TrainConfig(patience=2, val_size=4, val_every=1),
            "patience: expected keep best as well, found last",
        ),
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


def test_published_training_settings():
    recipe = get_preset("published", 80, 117, 0)
    published = {"epochs": 90, "batch_size": 16, "drop_epoch": 60, "learning_rate": 1e-4}
    published |= {"backbone_lr_factor": 0.1, "weight_decay": 1e-4, "clip_norm": 0.1, "ema": 0}
    published |= {"num_queries": 64, "backbone": "resnet50", "hidden_dim": 256, "topk": 3}
    published |= {"interactive_threshold": 0.5, "box_cost": 2.5, "verb_soft_weight": 700}
    published |= {"verb_hard_weight": 1.6, "alpha": 0.5, "soft_normalisation": "entries"}
    assert recipe.override(**published) == recipe


def test_recipe_from_dict_of_to_dict(recipe):
    value = json.loads(json.dumps(recipe.to_dict()))
    assert recipe_from_dict(value, "config.json") == recipe


def test_field_names_are_unique(recipe):
    names = [name for part in recipe.to_dict().values() for name in part]
    assert len(names) == len(set(names))


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
