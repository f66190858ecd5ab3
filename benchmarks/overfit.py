"""Trains the published student on a few photographs and scores it on the same photographs.

A detector that cannot learn twenty photographs by heart has a fault in its matching, its losses on
labels or its initialisation. Sizes and losses are the published ones. The photographs are small,
weights are random and those of the backbone stay so, batches have one or two images, the learning
rates are lower and fall after 80 % of the steps, dropout is 0, and the augmentation is flips and
colours. All actions are labelled, so that nothing is distilled.

An interrupted call continues when it is repeated, and so does one with another number of `--steps`
or another `--learning-rate`, with the learning rates of the new call. Writes a JSON file with loss
and mAP over the steps, and draws them beside it.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.photographs import DETECTIONS, TEACHER, write_photographs
from benchmarks.plain_student import PlainTraining
from benchmarks.program import json_file, positive_int, recipe_setting, run_main
from evaluation.hico.average_precision import evaluate
from pipeline.splits import FULL
from pipeline.utils.errors import InputError
from pipeline.utils.files import differing_keys, read_json, write_json
from pipeline.utils.progress import Progress
from student.data.dataset import Batch, TrainingBatches
from student.data.samplers import DistributedBatchSampler, steps_per_epoch
from student.engine.checkpointing import RunState, find_latest_intact, list_checkpoints
from student.engine.run import init_norm_statistics
from student.engine.run_inputs import RunConfig, RunInputs, build_inputs
from student.engine.train_step import TrainStep
from student.inference.batch_predictor import BatchPredictor
from student.models.detector import HOIDetector
from student.utils.distributed import SINGLE_PROCESS, Execution
from student.weights.checkpoint_file import load_checkpoint
from teacher_cache.build import BuildConfig, build_cache

CPU = torch.device("cpu")
CURVE = "curve.json"
# Steps, learning rate and batch size for the twenty photographs.
DEFAULTS = {"learned": (24000, 3e-5, 2), "proposals": (27000, 5e-5, 1)}
# The last fraction of the steps has a tenth of the learning rates.
DROP_FRACTION = 0.8


@dataclass(frozen=True)
class OverfitConfig:
    """Settings of the benchmark.

    Attributes:
        out: folder of the photographs, the cache and the checkpoints.
        queries: kind of decoder queries, see `student.config.ModelConfig`.
        steps, learning_rate: of the training.
        side: shorter side of the photographs in pixels.
        photographs: number of photographs; None for all.
        batch_size: images per step.
        backbone_learning_rate: 0 keeps the backbone's random weights.
        every: number of steps between two points of the curves.
        seed: seed of weights, batches and augmentation.
        options: other fields of the recipe.
    """

    out: Path
    queries: str
    steps: int
    learning_rate: float
    side: int = 192
    photographs: int | None = None
    batch_size: int = 2
    backbone_learning_rate: float = 0.0
    every: int = 100
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()


class Overfit:
    """The student, its training data and its training step."""

    def __init__(self, config: OverfitConfig) -> None:
        self.config = config
        self.inputs = prepare(config)
        recipe, images = self.inputs.recipe, self.inputs.images
        torch.manual_seed(config.seed)
        self.model = HOIDetector(recipe.model)
        init_norm_statistics(self.model, images)
        per_epoch = steps_per_epoch(len(images), config.batch_size)
        self.train_step = TrainStep(
            recipe, self.model, self.inputs.split, per_epoch, Execution(CPU)
        )
        plan = self.inputs.plan(None, None, None)
        plan |= {name: getattr(config, name) for name in ("side", "photographs")}
        # A training may be continued with more steps, on which these depend, and with another rate.
        for name in ("epochs", "drop_epoch", "learning_rate"):
            del plan["recipe"]["train"][name]
        self.state = RunState(
            self.train_step, images.vocabulary, self.inputs.split, config.out, plan
        )
        self.curve: list[dict[str, Any]] = []
        if list_checkpoints(config.out):
            file, _ = find_latest_intact(config.out)
            checkpoint = load_checkpoint(file)
            if changed := differing_keys(checkpoint.state.get("plan"), plan):
                raise InputError(
                    f"{config.out}: expected a training with the same settings, found another"
                    f" {', '.join(changed)}; remove the folder or choose another one"
                )
            schedule = self.train_step.scheduler
            rates = schedule.base_lrs
            self.state.resume(checkpoint, file)
            # The state has those of the earlier call.
            schedule.base_lrs = rates
            points = read_json(config.out / CURVE)
            self.curve = [point for point in points if point["step"] <= self.state.step]

    def batches(self) -> Iterator[Batch]:
        """The batches of the remaining steps, composed as in `eoid-train student`."""
        images, train = self.inputs.images, self.inputs.recipe.train
        sampler = DistributedBatchSampler(
            images.sizes, len(images), train.epochs, train.batch_size, train.seed
        )
        sampler.first_step = self.state.step
        loader = TrainingBatches(images, cast(int, self.model.backbone.size_divisible))
        return map(loader.__getitem__, sampler)

    def run(self) -> list[dict[str, Any]]:
        """Trains to the last step; returns the points of the curves."""
        config, losses = self.config, []
        progress = Progress(config.steps, "training", "steps", self.state.step)
        seconds, started = (self.curve[-1]["seconds"] if self.curve else 0.0), time.perf_counter()
        self.model.train()
        for batch in islice(self.batches(), config.steps - self.state.step):
            found = self.train_step(batch)
            self.state.step += 1
            losses.append({name: value.item() for name, value in found.items()})
            progress.update()
            if self.state.step % config.every == 0 or self.state.step == config.steps:
                seconds += time.perf_counter() - started
                mean = {name: float(np.mean([each[name] for each in losses])) for name in losses[0]}
                point = {"step": self.state.step, "map": self.score(), "seconds": seconds, **mean}
                self.curve.append({name: round(value, 4) for name, value in point.items()})
                progress.update(0, f"mAP {point['map']:.3f}, loss {point['total']:.2f}")
                write_json(config.out / CURVE, self.curve)
                self.state.save()
                losses, started = [], time.perf_counter()
        progress.close()
        return self.curve

    def compare_with_plain(self, steps: int) -> list[dict[str, float]]:
        """Trains a plain copy on the same batches; returns the total losses of each step.

        The learning rates are those of the first step throughout.
        """
        recipe, split = self.inputs.recipe, self.inputs.split
        plain = PlainTraining(self.model, recipe, torch.from_numpy(split.distilled_verbs))
        self.model.train()
        pairs = []
        for batch in islice(self.batches(), steps):
            expected = plain(batch)
            found = self.train_step(batch)
            pairs.append({"plain": expected["total"], "student": found["total"].item()})
        return pairs

    def score(self) -> float:
        """The mAP on the training images, in the default setting."""
        images, recipe = self.inputs.images, self.inputs.recipe
        predictor = BatchPredictor(self.model, images.vocabulary, recipe.train)
        detections = predictor.to(CPU).predict(images.records, SINGLE_PROCESS, 0)
        self.model.train()
        scores = evaluate(images.annotations, detections, images.vocabulary)
        return float(scores.mean_ap() or 0)


def prepare(config: OverfitConfig) -> RunInputs:
    """Writes the small photographs and their cache, unless they exist, and opens them."""
    data, cache = config.out / "photos", config.out / "cache"
    if not data.is_dir():
        # An interrupted call leaves no dataset with some of the photographs.
        partial = config.out / "photos-unfinished"
        shutil.rmtree(partial, ignore_errors=True)
        write_photographs(partial, lambda width, height: config.side / min(width, height))
        partial.rename(data)
    build_cache(
        BuildConfig(
            data,
            cache,
            limit=config.photographs,
            proposals=data / DETECTIONS,
            clip_model=str(data / TEACHER),
            device="cpu",
        )
    )
    num_images = config.photographs or len(read_json(data / "annotations/train.json"))
    epochs = -(-config.steps // steps_per_epoch(num_images, config.batch_size))
    options = {
        "queries": config.queries,
        "augmentation": "toy",
        "dropout": 0.0,
        "batch_size": config.batch_size,
        "epochs": epochs,
        "drop_epoch": round(DROP_FRACTION * epochs),
        "learning_rate": config.learning_rate,
        "backbone_learning_rate": config.backbone_learning_rate,
        "seed": config.seed,
        **dict(config.options),
    }
    run = RunConfig(data, cache, FULL, config.out, options=options, limit=config.photographs)
    return build_inputs(run, SINGLE_PROCESS)


def draw(curve: list[dict[str, Any]], file: Path) -> None:
    """Draws mAP and loss over the steps."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    steps = [point["step"] for point in curve]
    left, right = figure.subplots(1, 2)
    left.plot(steps, [100 * point["map"] for point in curve])
    left.axhline(95, color="#555555", linewidth=0.8, linestyle="--")
    left.set(title="mAP on the training images, %", ylim=(0, 103))
    right.plot(steps, [point["total"] for point in curve])
    right.set(title="loss", ylim=(0, None))
    for axis in (left, right):
        axis.set(xlabel="step", xlim=(0, None))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", choices=("learned", "proposals"), required=True)
    parser.add_argument("--json", type=json_file, required=True, help="file of the curves")
    parser.add_argument("--out", type=Path, help="default: the file without its suffix")
    parser.add_argument("--side", type=positive_int, default=192, help="shorter side in pixels")
    parser.add_argument("--photographs", type=positive_int, help="default: all")
    by_queries = [f"{kind} {row[0]}, {row[1]:g} and {row[2]}" for kind, row in DEFAULTS.items()]
    default = f"defaults of steps, learning rate and batch size: {'; '.join(by_queries)}"
    parser.add_argument("--steps", type=positive_int, help=default)
    parser.add_argument("--batch-size", type=positive_int, help="images per step")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--backbone-learning-rate", type=float, default=0.0)
    parser.add_argument("--every", type=positive_int, default=100, help="steps between two points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        type=recipe_setting,
        nargs="*",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="other settings, values in JSON",
    )
    parser.add_argument(
        "--plain-steps",
        type=positive_int,
        help="instead, compare this many losses with those of a plain"
        " second implementation of the training",
    )
    options = vars(parser.parse_args())
    file = options.pop("json")
    options["options"] = tuple(options.pop("set"))
    options["out"] = options["out"] or file.with_suffix("")
    steps, rate, batch_size = DEFAULTS[options["queries"]]
    options["steps"] = options["steps"] or steps
    options["batch_size"] = options["batch_size"] or batch_size
    if options["learning_rate"] is None:
        options["learning_rate"] = rate
    plain_steps = options.pop("plain_steps")
    overfit = Overfit(OverfitConfig(**options))
    settings = {**options, "out": str(options["out"]), "threads": torch.get_num_threads()}
    if plain_steps:
        write_json(file, {"settings": settings, "losses": overfit.compare_with_plain(plain_steps)})
    else:
        curve = overfit.run()
        write_json(file, {"settings": settings, "curve": curve})
        draw(curve, file.with_suffix(".png"))


if __name__ == "__main__":
    run_main(main)
