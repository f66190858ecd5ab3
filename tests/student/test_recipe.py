import json
from dataclasses import fields, replace

import pytest

from pipeline.utils.errors import InputError
from student.config import PRESETS, Recipe, TrainConfig, get_preset, recipe_from_dict


@pytest.fixture(params=PRESETS)
def recipe(request):
    return get_preset(request.param, 9, 11, 2)


def test_presets_know_the_vocabulary(recipe):
    assert (recipe.model.num_objects, recipe.model.num_verbs, recipe.model.person) == (9, 11, 2)


def test_the_published_numbers():
    recipe = get_preset("published", 80, 117, 0)
    train = recipe.train
    assert (train.epochs, train.batch_size, train.drop_epoch) == (90, 16, 60)
    assert (train.learning_rate, train.learning_rate * train.backbone_lr_factor) == (1e-4, 1e-5)
    assert (train.weight_decay, train.clip_norm, train.ema) == (1e-4, 0.1, 0)
    assert (recipe.matcher.interactive_threshold, recipe.matcher.topk) == (0.5, 3)
    assert recipe.losses.verb_soft_weight == 700 and recipe.model.num_queries == 64


def test_there_is_no_other_preset():
    with pytest.raises(InputError, match=r"--preset: expected.*found tiny"):
        get_preset("tiny", 9, 11, 2)


def test_files_hold_the_whole_recipe(recipe):
    value = json.loads(json.dumps(recipe.to_dict()))
    assert recipe_from_dict(value, "config.json") == recipe


def test_no_field_has_two_homes():
    names = [
        field.name
        for part in fields(Recipe)
        for field in fields(getattr(get_preset("toy", 9, 11, 2), part.name))
    ]
    assert len(names) == len(set(names))


def test_fields_change_by_name(recipe):
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
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("schedule", "cosine"),
        ("augmentation", "none"),
        ("precision", "float16"),
        ("ema", 1.0),
        ("ema", -0.1),
        ("last_batch", "keep"),
        ("keep", "first"),
        ("learning_rate", -1e-4),
        ("warmup_steps", -1),
        ("val_size", -0.1),
        ("val_every", -1),
    ],
)
def test_values_that_cannot_train(field, value):
    with pytest.raises(InputError, match=f"{field}: expected"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "best"}, "keep: expected a val_size above 0 beside it, found 0"),
        ({"val_every": 2}, "val_every: expected a val_size above 0 beside it, found 0"),
        (
            {"schedule": "one_cycle", "warmup_steps": 5},
            "warmup_steps: expected 0, as one_cycle has a rise of its own",
        ),
    ],
)
def test_options_that_do_not_go_together(options, says):
    with pytest.raises(InputError) as caught:
        TrainConfig(**options)
    assert str(caught.value) == says


def without(part):
    return lambda value: value.pop(part)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without("train"), "recipe: expected"),
        (lambda value: value.update(more={}), "recipe: expected"),
        (lambda value: value["train"].update(speed=3), r"recipe.train: expected"),
        (lambda value: value["model"].update(queries="none"), "queries: expected"),
    ],
)
def test_other_dictionaries(recipe, damage, says):
    value = recipe.to_dict()
    damage(value)
    with pytest.raises(InputError, match=says):
        recipe_from_dict(value, "config.json")
