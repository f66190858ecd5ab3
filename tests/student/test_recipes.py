"""The recipes in `configs/`: each is read, and trains two steps of a small model on small data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import run_command
from PIL import Image

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.files import read_json, read_toml, write_json
from pipeline.vocabulary import load_vocabulary
from student.cli import main, train
from teacher_cache.cli import cache

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = [file for file in sorted(CONFIGS.rglob("*.toml")) if not file.stem.endswith("cache")]
OBJECTS = ("bicycle", "horse")
SMALL = "--backbone resnet18 --set hidden-dim=32 --set feedforward-dim=48 --set num-queries=8"


def hoia_file(vocabulary, names):
    """Two pairs an image, with all verbs that their objects can have."""
    boxes = [[10, 10, 40, 80], [30, 40, 90, 90], [50, 5, 80, 60], [60, 30, 120, 90]]
    labels = [vocabulary.person, vocabulary.objects.index(OBJECTS[0])]
    labels += [vocabulary.person, vocabulary.objects.index(OBJECTS[1])]
    rows = [
        {"bbox": box, "category_id": vocabulary.category_ids[label]}
        for box, label in zip(boxes, labels, strict=True)
    ]
    pairs = [
        {"subject_id": row - 1, "object_id": row, "category_id": verb + vocabulary.first_verb_id}
        for row in (1, 3)
        for verb in np.flatnonzero(vocabulary.valid[:, labels[row]]).tolist()
        if vocabulary.verbs[verb] != "no_interaction"
    ]
    return [{"file_name": name, "annotations": rows, "hoi_annotation": pairs} for name in names]


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory, make_cache, detr_state):
    """`make_folder(vocabulary name)`: a folder with dataset, cache and DETR's weights."""

    def make(name):
        vocabulary = load_vocabulary(name)
        root = tmp_path_factory.mktemp(name)
        data = root / ("hico" if name == "hico-det" else "v-coco")
        lines = [f'vocabulary = "{name}"']
        for part, count in (("train", 2), ("test", 1)):
            (data / part).mkdir(parents=True)
            names = [f"{part}_{index}.jpg" for index in range(count)]
            for index, file in enumerate(names):
                pixels = np.random.default_rng(index).integers(0, 255, (96, 128, 3), np.uint8)
                Image.fromarray(pixels).save(data / part / file)
            write_json(data / f"{part}.json", hoia_file(vocabulary, names))
            lines += [f"[{part}]", f'images = "{part}"', f'annotations = "{part}.json"']
        (data / "dataset.toml").write_text("\n".join(lines) + "\n")
        loaded = open_dataset(data).load("train")
        folder = root / ("hico-cache" if name == "hico-det" else "vcoco-cache")
        make_cache(folder, loaded, vocabulary, candidates="detector")
        # Standard normal weights, scaled so that the losses of the first steps are finite.
        state = {
            key: 0.1 * value if value.ndim > 1 else value for key, value in detr_state().items()
        }
        state |= {key: value.abs() for key, value in state.items() if key.endswith("running_var")}
        torch.save({"model": state}, root / "detr-r50-e632da11.pth")
        return root

    return make


@pytest.fixture(scope="module")
def folders(make_folder):
    return {name: make_folder(name) for name in ("hico-det", "vcoco")}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_trains(recipe, folders, monkeypatch):
    """Two steps of one image."""
    monkeypatch.chdir(folders["vcoco" if recipe.stem == "vcoco" else "hico-det"])
    options = f"--config {recipe} --epochs 1 --batch-size 1 --workers 0 --device cpu {SMALL}"
    done = run_command(main, "eoid-train", "student", *options.split())
    assert done.returncode == 0, done.stderr
    out = Path(read_toml(recipe)["out"])
    config = read_json(out / "config.json")
    assert config["split"]["name"] == read_toml(recipe)["split"]
    assert read_json(out / "results.json")["metrics"]["full"] is not None


def test_recipes_cover_the_published_splits():
    splits = set(load_vocabulary("hico-det").splits) - {"rf-uc-138"}
    assert {file.stem for file in RECIPES} == splits | {"vcoco"}
    assert all(read_toml(file)["split"] in splits | {"full"} for file in RECIPES)


@pytest.mark.parametrize("recipe", sorted(CONFIGS.rglob("*.toml")), ids=lambda file: file.stem)
def test_recipes_are_valid(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_cache = recipe.stem.endswith("cache")
    words = ["build", "hico"] if is_cache else ["student"]
    result = CliRunner().invoke(cache if is_cache else train, [*words, "--config", str(recipe)])
    # All settings are known, and the first thing that is missing is the dataset.
    assert str(result.exception).startswith(("hico:", "v-coco:")), result.exception
