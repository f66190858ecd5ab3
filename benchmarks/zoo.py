"""Trains and measures the ready weights of the package, `student/weights/models`.

The students are trained on the images of `make demo` and evaluated on test images of a seed that
nothing else uses, by which nothing is chosen. The last weights of each training are stored, mostly
in half precision, without the state of the training. Scores and speed are those of the stored
files.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import click

from benchmarks.demo import TRAIN_IMAGES, Stages
from pipeline.utils.cli import run_command as run_program
from pipeline.utils.files import read_json, write_json
from student.weights.zoo import MODELS, ReadyWeights

# Seeds of training images and students, that of the demo, and of the test images.
SEED, TEST_SEED = 0, 201
TEST_IMAGES = 500
SPLIT = "ua"
# Prefix of the parameters that choose the queries.
QUERIES = "query_source."
# Description and options of `eoid-train student`, by name.
STUDENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "toy": ("toy dataset, linear verb head", ()),
    "toy-text": ("toy dataset, text verb head", ("--verb-head", "text")),
}


def store_weights(run: Path, file: Path) -> None:
    """Writes a run's weights, mostly in half precision, without the state of its training.

    The part that chooses the queries stays in single precision, because rounding may exchange
    queries of nearly equal rank (which changed a score by 0.17 in one of 200 images).
    """
    from student.weights.checkpoint_file import checkpoint_path, load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(checkpoint_path(run))
    weights = {
        name: value.half() if value.is_floating_point() and not name.startswith(QUERIES) else value
        for name, value in checkpoint.weights.items()
    }
    save_checkpoint(file, replace(checkpoint, weights=weights, state={}))


def measure_speed(file: Path, images: Path) -> float:
    """Images per second of one core, with the reading of their files, from processor time."""
    import torch

    from student.inference.detector import Detector

    torch.set_num_threads(1)
    detector, paths = Detector.open(file, "cpu"), sorted(images.iterdir())
    detector(paths[:8])
    started = time.process_time()
    detector(paths)
    return round(len(paths) / (time.process_time() - started), 1)


def count_parameters(file: Path) -> int:
    """Number of parameters of a checkpoint's model."""
    from student.weights.load import load_model

    return sum(parameter.numel() for parameter in load_model(file).parameters())


def make_zoo(
    work: Path,
    out: Path,
    train_images: int = TRAIN_IMAGES,
    test_images: int = TEST_IMAGES,
    options: tuple[str, ...] = (),
) -> list[ReadyWeights]:
    """Trains all students, and writes their weights and the table of their measurements.

    Args:
        work: folder of datasets, cache and runs; an interrupted call resumes in it.
        out: folder of the weights.
        train_images, test_images: number of images.
        options: further options of every training.
    """
    work.mkdir(parents=True, exist_ok=True)
    stages = Stages(work / "stages.json")
    train, test, cache = work / "train", work / "test", work / "cache"
    stages.run("train", "eoid-data", "toy", train, "--train", train_images, "--test", 1,
               "--seed", SEED)  # fmt: skip
    stages.run("test", "eoid-data", "toy", test, "--train", 1, "--test", test_images,
               "--seed", TEST_SEED)  # fmt: skip
    stages.run("cache", "eoid-cache", "build", train, "--detector", "toy", "--clip-model", "toy",
               "--out", cache)  # fmt: skip
    zoo = []
    for name, (description, own_options) in STUDENTS.items():
        run, scores, file = work / name, work / f"{name}-scores", out / f"{name}.pt"
        stages.run(name, "eoid-train", "student", "--data", train, "--cache", cache,
                   "--split", SPLIT, "--preset", "toy", "--pretrained", "toy", "--seed", SEED,
                   "--out", run, *own_options, *options)  # fmt: skip
        store_weights(run, file)
        stages.run(f"{name}-scores", "eoid-train", "evaluate", file, "--data", test, "--out",
                   scores, "--no-report", "--overwrite")  # fmt: skip
        metrics = read_json(scores / "results.json")["metrics"]
        zoo.append(
            ReadyWeights(
                name,
                description,
                SPLIT,
                **{group: round(metrics[group], 4) for group in ("full", "seen", "unseen")},
                parameters=count_parameters(file),
                images_per_second=measure_speed(file, test / "images" / "test2015"),
                licence="MIT",
            )
        )
    write_json(out / "zoo.json", [asdict(row) for row in zoo])
    return zoo


@click.command(help=__doc__)
@click.option("--work", type=Path, default=Path("zoo"), help="Folder of datasets and runs.")
@click.option("--out", type=Path, default=MODELS, help="Folder of the weights.")
def main(work: Path, out: Path) -> None:
    for row in make_zoo(work, out):
        print(row)


if __name__ == "__main__":
    run_program(main)
