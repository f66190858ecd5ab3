"""A student's run from start to results: the folder, the training, the test evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.report import REPORT
from evaluation.results import Results
from pipeline.datasets import Dataset, open_dataset
from pipeline.devices import resolve_device, spare_cores
from pipeline.errors import InputError
from pipeline.files import differing_keys, read_json, sha256_of_file, write_json
from pipeline.splits import Split, load_split
from student.augmentation import training_augmentation
from student.checkpoints import CHECKPOINT, checkpoint_path
from student.crowding import crowded_line
from student.data import TrainingImages
from student.evaluate import PREDICTIONS, RESULTS, Evaluated, evaluate_model
from student.init_report import INIT
from student.initialise import start_from
from student.metrics import METRICS
from student.model import HOIDetector
from student.recipe import Recipe, preset
from student.train import Trainer
from teacher_cache.reader import TeacherCache, open_cache

CONFIG = "config.json"


@dataclass(frozen=True)
class RunConfig:
    """What `eoid-train student` was asked for.

    Attributes:
        data, cache, out: dataset folder, cache folder, run folder.
        split: name or TOML file.
        preset: the recipe to start from.
        options: fields of the recipe's parts that differ from the preset.
        init: weights to start from, None for random ones.
        device: where to train.
        workers: processes that prepare samples; None takes the spare cores.
        overwrite: replace another run in `out`.
        name: what the report calls the run; the folder's name by default.
    """

    data: Path
    cache: Path
    out: Path
    split: str
    preset: str
    options: dict[str, Any]
    init: Path | None
    device: str
    workers: int | None
    overwrite: bool
    name: str | None


def run_student(config: RunConfig) -> Results:
    """Trains a student, or goes on where its run stands, and evaluates it on the test part.

    Raises:
        InputError: dataset, cache, split or run folder do not fit.
    """
    dataset = open_dataset(config.data)
    vocabulary = dataset.vocabulary
    split = load_split(vocabulary, config.split)
    recipe = preset(
        config.preset,
        vocabulary.num_objects,
        vocabulary.num_verbs,
        vocabulary.person,
        pair_people=bool(vocabulary.valid[:, vocabulary.person].any()),
    ).changed(**config.options)
    cache = open_cache(config.cache)
    if cache.protocol == "annotated":
        recipe = _annotated(recipe, config)
    device, workers = resolve_device(config.device), spare_cores(config.workers)
    torch.manual_seed(recipe.train.seed)
    model = HOIDetector(recipe.model)
    started = start_from(model, config.init, vocabulary) if config.init else None
    images = _training_images(cache, dataset, split, recipe)
    # Training ends with the test part: what is wrong with it should not come up hours later.
    dataset.records("test")
    plan = _plan(config, dataset, recipe, split, images)
    resuming = _claim(config.out, plan, config.overwrite)
    trainer = Trainer(recipe, model, images, vocabulary, split, config.out, device, workers)
    if resuming:
        trainer.resume()
        print(f"{config.out}: goes on at step {trainer.step} of {trainer.total_steps}")
    else:
        print("\n".join(started.lines() if started else ["start: random weights"]))
    if started is not None:
        write_json(config.out / INIT, started.to_dict())
    if line := crowded_line(images.annotations, split, vocabulary, recipe.model.num_queries):
        print(line)
    trainer.train()
    source = Evaluated(
        name=config.name or config.out.resolve().name,
        split=split,
        training_split=split.name,
        protocol=recipe.targets.candidates,
        distillation=recipe.targets.distillation,
        seed=recipe.train.seed,
        metrics_log=config.out / METRICS,
    )
    return evaluate_model(trainer.predictor, recipe, dataset, source, config.out, device, workers)


def _annotated(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe for a cache of annotated boxes, which has no detector's candidates to offer.

    Raises:
        InputError: these are asked for.
    """
    if config.options.get("candidates") == "detector":
        raise InputError(
            f"--candidates: expected annotated, as {config.cache} was built, found detector"
        )
    return recipe.changed(candidates="annotated")


def _training_images(
    cache: TeacherCache, dataset: Dataset, split: Split, recipe: Recipe
) -> TrainingImages:
    annotations = dataset.load("train")
    if line := annotations.blemish_line():
        print(line)
    records = dataset.records(annotations)
    cache.check(dataset.vocabulary, annotations.digest, part="train")
    kept = [index for index, record in enumerate(records) if record.id in cache]
    if not kept:
        raise InputError(f"{cache.path}: expected answers for training images, found none")
    if len(kept) < len(records):
        # The cache lists them as failed: their images could not be read.
        print(f"{cache.path}: no answers for {len(records) - len(kept)} images, left out")
    return TrainingImages(
        [records[index] for index in kept],
        [annotations.annotations[index] for index in kept],
        cache,
        split,
        dataset.vocabulary,
        recipe.targets,
        training_augmentation(recipe.train.augmentation),
        recipe.train.seed,
    )


def _plan(
    config: RunConfig, dataset: Dataset, recipe: Recipe, split: Split, images: TrainingImages
) -> dict[str, Any]:
    """The resolved configuration: what the run's result depends on."""
    return {
        "dataset": dataset.name,
        "cache": images.cache.fingerprint,
        "split": {
            "name": split.name,
            "unseen": list(split.unseen),
            "asked_verbs": split.asked_verbs.tolist(),
        },
        "init": None if config.init is None else sha256_of_file(checkpoint_path(config.init)),
        "recipe": recipe.to_dict(),
    }


def _claim(run: Path, plan: dict[str, Any], overwrite: bool) -> bool:
    """Makes the folder this run's; True where it already holds a checkpoint of it.

    Raises:
        InputError: it holds another run, or other files.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = run / CONFIG
    if file.is_file() and not overwrite:
        found = read_json(file)
        changed = differing_keys(found, plan)
        if changed:
            raise InputError(
                f"{run}: holds a run with another {' and '.join(changed)};"
                " name a new folder or give --overwrite"
            )
        return (run / CHECKPOINT).is_file()
    if not file.is_file() and any(run.iterdir()) and not overwrite:
        raise InputError(f"{run}: expected a new folder or a run, found other files")
    for name in (CHECKPOINT, INIT, METRICS, RESULTS, PREDICTIONS, REPORT):
        (run / name).unlink(missing_ok=True)
    write_json(file, plan)
    return False
