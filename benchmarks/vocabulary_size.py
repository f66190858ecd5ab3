"""Compares what depends on the vocabulary's size: SWIG-HOI's with HICO-DET's.

Both vocabularies run in turns through the parts of both phases that have an axis of verbs, objects
or interactions: prompts, soft targets, cache, training step, losses, post-processing and report.
Times are processor seconds. CLIP is small, so that its sentences take as little time as possible.
Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch

from benchmarks.photographs import write_teacher
from benchmarks.program import run_main
from benchmarks.synthetic_data import make_images
from benchmarks.timing import time_in_turns
from evaluation.report.write import write_report
from evaluation.results import METRICS, Results, write_results
from pipeline.splits import load_split
from pipeline.utils.progress import track
from pipeline.vocabulary import load_vocabulary
from student.config import get_preset
from student.data.dataset import collate
from student.engine.train_step import TrainStep
from student.inference.postprocess import select_detections
from student.models.backbone import pixel_statistics
from student.models.detector import HOIDetector
from student.utils.distributed import Execution
from teacher_cache.reader.format import PAIR_DATASETS, REGION_BOX, SHARDS
from teacher_cache.reader.soft_targets import action_probabilities
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import interaction_prompts

CPU = torch.device("cpu")
# Vocabularies and their zero-shot splits.
SPLITS = {"hico-det": "ua", "swig-hoi": "swig"}
SMALL, LARGE = SPLITS
EMBEDDING_SIZE = 512


class Bench:
    """The parts of both phases with one vocabulary.

    Args:
        name: name of the vocabulary.
        options: command-line options.
        folder: folder for files.
    """

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.num_image_pairs = options.labelled + options.proposed
        self.vocabulary = vocabulary = load_vocabulary(name)
        self.rng = np.random.default_rng(0)
        write_teacher(folder / "clip", vocabulary, context_length=32)
        self.clip = ClipTeacher(ClipConfig(str(folder / "clip")), CPU)
        text = self.rng.normal(size=(vocabulary.num_interactions, EMBEDDING_SIZE))
        self.text = text.astype(np.float32)
        self.regions = self.rng.normal(size=(options.pairs, EMBEDDING_SIZE)).astype(np.float32)
        self.labels = self.rng.integers(0, vocabulary.num_objects, options.pairs)
        size = options.batch_size
        self.images, _ = make_images(
            folder, size, options.labelled, options.proposed, options.side, vocabulary, SPLITS[name]
        )
        recipe = get_preset(
            "published", vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person
        ).override(batch_size=size, interactive_threshold=0.0)
        model = HOIDetector(recipe.model).train()
        samples = [self.images[0, index] for index in range(size)]
        self.batch = collate(samples, cast(int, model.backbone.size_divisible)).to(CPU)
        self.train_step = TrainStep(recipe, model, self.images.split, 10**6, Execution(CPU))
        with torch.no_grad():
            pixels = self.batch.images(slice(None), pixel_statistics(model.backbone))
            self.outputs = model(pixels)

    def stages(self) -> dict[str, Callable[[], Any]]:
        """What is timed, by name."""
        return {
            "load vocabulary and split": self.load,
            "embed prompts, small CLIP": self.embed_prompts,
            "soft targets": self.soft_targets,
            "training step": lambda: self.train_step(self.batch),
            "matching and losses": lambda: self.train_step.losses(self.outputs, self.batch),
            "post-processing": self.select,
            "report": self.report,
        }

    def sizes(self) -> dict[str, int]:
        """Sizes of the vocabulary, of the student and of a cache's pair in bytes."""
        vocabulary = self.vocabulary
        num_bytes = 0
        for file in (self.folder / "cache" / SHARDS).iterdir():
            with h5py.File(file) as shard:
                num_bytes += sum(shard[name].nbytes for name in (*PAIR_DATASETS, REGION_BOX))
        num_pairs = len(self.images) * self.num_image_pairs
        return {
            "verbs": vocabulary.num_verbs,
            "objects": vocabulary.num_objects,
            "interactions": vocabulary.num_interactions,
            "parameters of the student": sum(
                one.numel() for one in self.train_step.model.parameters()
            ),
            "bytes of a pair in the cache": num_bytes // num_pairs,
        }

    def load(self) -> None:
        """Reads vocabulary and split from the package's files."""
        load_split(load_vocabulary(self.name), SPLITS[self.name])

    def embed_prompts(self) -> None:
        """Embeds the prompts of all interactions."""
        self.clip.embed_prompts(interaction_prompts(self.vocabulary))

    def soft_targets(self) -> None:
        """Scores a region for every pair."""
        logits = 100 * self.regions @ self.text.T
        action_probabilities(logits, self.labels, self.vocabulary)

    def select(self) -> None:
        """The detections of one batch of images."""
        count = len(self.images)
        select_detections(self.outputs, ["a"] * count, [(640, 480)] * count, self.vocabulary)

    def report(self) -> None:
        """The report of random scores for every interaction with evaluation."""
        vocabulary = self.vocabulary
        evaluated = vocabulary.evaluated or range(vocabulary.num_interactions)
        names = [vocabulary.interaction_name(index) for index in evaluated]
        results = Results(
            name="random",
            kind="student",
            dataset=self.name,
            vocabulary=self.name,
            split=SPLITS[self.name],
            unseen=self.images.split.unseen,
            setting="default",
            metrics=dict.fromkeys(METRICS, 0.5),
            per_class=dict(zip(names, self.rng.random(len(names)).tolist(), strict=True)),
            num_images=len(self.images),
        )
        write_results(self.folder / "results.json", results)
        write_report([self.folder / "results.json"], self.folder / "report.html", overwrite=True)


def processor_seconds(stage: Callable[[], Any]) -> float:
    """Processor seconds of a call, to which other processes do not add."""
    started = time.process_time()
    stage()
    return time.process_time() - started


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures all stages of both vocabularies in turns."""
    with tempfile.TemporaryDirectory() as folder:
        benches = {name: Bench(name, options, Path(folder) / name) for name in SPLITS}
        sizes = {name: bench.sizes() for name, bench in benches.items()}
        stages = {name: bench.stages() for name, bench in benches.items()}
        found = {}
        for stage in track(stages[SMALL], len(stages[SMALL]), "measuring", "stages"):
            sides = {name: partial(processor_seconds, own[stage]) for name, own in stages.items()}
            turns = time_in_turns(sides, options.turns, CPU)
            found[stage] = {"seconds": turns.medians(), "ratio": turns.ratio(LARGE, SMALL)}
        for name, small in sizes[SMALL].items():
            large = sizes[LARGE][name]
            numbers = {SMALL: small, LARGE: large}
            found[name] = {"sizes": numbers, "ratio": round(large / small, 2)}
    return {"threads": torch.get_num_threads(), "ratios": found}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument(
        "--side", type=int, default=256, help="of the images in training, in pixels"
    )
    parser.add_argument("--labelled", type=int, default=3, help="annotated pairs per image")
    parser.add_argument("--proposed", type=int, default=12, help="pairs of the detector per image")
    parser.add_argument("--pairs", type=int, default=256, help="of the soft targets")
    parser.add_argument("--turns", type=int, default=5)
    print(json.dumps(run(parser.parse_args()), indent=2))


if __name__ == "__main__":
    run_main(main)
