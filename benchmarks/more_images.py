"""More images, more actions: a few labelled pictures, and many that nobody labelled.

Of the embedded world's training pictures some become a dataset of their own: pictures without any
of the verbs that are to be learned from elsewhere. Others become a folder of pictures alone, with
all actions in them. Three students of equal length are compared on the verbs without a label: one
with the labels alone, one that also asks the teacher about the labelled pictures, and one that
learns from the folder beside them. Pieces that are there are kept, so a stopped call goes on.
Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.demo import Stages
from pipeline.datasets import open_dataset
from pipeline.errors import InputError
from pipeline.files import read_json, write_json, write_text
from pipeline.types import Annotation
from pipeline.vocabulary import Vocabulary
from student.mixing import shares

LABELS_ALONE, DISTILLED, MORE_IMAGES = "labels_alone", "distilled", "more_images"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        base: folder of a demo's seed, with `world` and `models`, made where they are not there.
        out: where the pieces go.
        verbs: without a label.
        seed: of world, models, students, and of the choice of pictures.
        labelled, unlabelled: numbers of pictures.
        steps: of every student.
        batch_size: pictures a step.
        mix: share of unlabelled ones in a step.
        student: further options of `eoid-train student`.
    """

    base: Path
    out: Path
    verbs: tuple[str, ...]
    seed: int
    labelled: int
    unlabelled: int
    steps: int
    batch_size: int
    mix: float
    student: tuple[str, ...]


def choose(
    annotations: Sequence[Annotation], verbs: Sequence[int], plan: Plan
) -> tuple[list[int], list[int]]:
    """Pictures with labels, on which nobody does what `verbs` say, and others without labels.

    Raises:
        InputError: there are not enough.
    """
    order = np.random.default_rng(plan.seed).permutation(len(annotations)).tolist()
    without = [place for place in order if not np.isin(annotations[place].hois[:, 2], verbs).any()]
    labelled = [place for place in without if len(annotations[place].hois)][: plan.labelled]
    others = [place for place in order if place not in set(labelled)][: plan.unlabelled]
    for name, found in (("labelled", labelled), ("unlabelled", others)):
        if len(found) < getattr(plan, name):
            wanted = f"--{name}: expected at most the world's {len(found)} such pictures"
            raise InputError(f"{wanted}, found {getattr(plan, name)}")
    return sorted(labelled), sorted(others)


def write_datasets(world: Path, plan: Plan) -> None:
    """Writes `labelled`, a dataset folder with the world's test part, and `pictures`, one of images
    alone; `chosen.json` last."""
    dataset = open_dataset(world)
    train, test = (dataset.part(name) for name in ("train", "test"))
    assert train.annotations is not None and test.annotations is not None, "the world has some"
    vocabulary, entries = dataset.vocabulary, read_json(train.annotations)
    verbs = [vocabulary.verbs.index(verb) for verb in plan.verbs]
    annotations = dataset.load("train").annotations
    labelled, others = choose(annotations, verbs, plan)
    by_name = {entry["file_name"]: entry for entry in entries}
    shown = [by_name[annotations[place].image_id] for place in labelled]
    data, pictures = plan.out / "labelled", plan.out / "pictures"
    write_json(data / "train.json", shown)
    lines = ['name = "labelled"', f'vocabulary = "{vocabulary.name}"']
    for part, images, file in (
        ("train", train.images, "train.json"),
        ("test", test.images, str(test.annotations.resolve())),
    ):
        where = json.dumps(str(images.resolve()))
        lines += ["", f"[{part}]", f"images = {where}", f"annotations = {json.dumps(file)}"]
    write_text(data / "dataset.toml", "\n".join(lines) + "\n")
    shutil.rmtree(pictures, ignore_errors=True)
    (pictures / "images").mkdir(parents=True)
    for place in others:
        name = annotations[place].image_id
        shutil.copyfile(train.images / name, pictures / "images" / name)
    alone = f'name = "pictures"\nvocabulary = "{vocabulary.name}"\n\n[train]\nimages = "images"\n'
    write_text(pictures / "dataset.toml", alone)
    write_text(plan.out / "split.toml", f"unseen_verbs = {json.dumps(list(plan.verbs))}\n")
    chosen = {
        "plan": described(plan),
        "labelled": len(shown),
        "unlabelled": len(others),
        "labels": _counts([annotations[place] for place in labelled], vocabulary),
        "actions_in_unlabelled": _counts([annotations[place] for place in others], vocabulary),
    }
    write_json(plan.out / "chosen.json", chosen)


def described(plan: Plan) -> dict[str, Any]:
    """What decides the datasets."""
    names = ("verbs", "seed", "labelled", "unlabelled")
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in ((name, getattr(plan, name)) for name in names)
    }


def _counts(annotations: Sequence[Annotation], vocabulary: Vocabulary) -> dict[str, int]:
    """How many pairs do what, by verb."""
    verbs = np.concatenate([one.hois[:, 2] for one in annotations])
    counts = np.bincount(verbs, minlength=vocabulary.num_verbs).tolist()
    return dict(zip(vocabulary.verbs, counts, strict=True))


def measure(plan: Plan) -> dict[str, Any]:
    """Runs what is missing.

    Returns:
        For each student the mean AP of the verbs without a label, that of the others, and AP of
        every verb, as fractions.
    """
    world, models = plan.base / "world", plan.base / "models"
    plan.base.mkdir(parents=True, exist_ok=True)
    plan.out.mkdir(parents=True, exist_ok=True)
    shared, stages = (Stages.read(folder / "stages.json") for folder in (plan.base, plan.out))
    shared.run("world", "eoid-data", "world", world, "--seed", plan.seed)
    shared.run("models", "eoid-cache", "world-models", models, "--seed", plan.seed)
    chosen = plan.out / "chosen.json"
    if not chosen.is_file() or read_json(chosen)["plan"] != described(plan):
        write_datasets(world, plan)
    detector = models / "detector.safetensors"
    asked = ("--detector", "world", "--detector-weights", detector,
             "--clip-model", models / "teacher")  # fmt: skip
    data, pictures = plan.out / "labelled", plan.out / "pictures"
    caches = {}
    for folder in (data, pictures):
        cache = caches[folder] = plan.out / f"{folder.name}-cache"
        stages.run(cache.name, "eoid-cache", "build", folder, "--out", cache, *asked)

    own, _ = shares(plan.batch_size, plan.labelled, plan.unlabelled, plan.mix)
    epochs = {
        name: max(1, round(plan.steps / max(1, plan.labelled // size)))
        for name, size in (
            (LABELS_ALONE, plan.batch_size),
            (DISTILLED, plan.batch_size),
            (MORE_IMAGES, own),
        )
    }
    common = ("--data", data, "--cache", caches[data], "--split", plan.out / "split.toml",
              "--preset", "world", "--init", detector, "--seed", plan.seed, "--batch-size",
              plan.batch_size, "--no-report", *plan.student)  # fmt: skip
    further = {
        LABELS_ALONE: ("--no-distillation",),
        DISTILLED: (),
        MORE_IMAGES: ("--extra", f"{pictures}:{caches[pictures]}", "--mix", plan.mix),
    }
    found = {}
    for name, more in further.items():
        run = plan.out / name
        stages.run(name, "eoid-train", "student", *common, "--epochs", epochs[name], *more,
                   "--out", run)  # fmt: skip
        found[name] = scores(read_json(run / "results.json"), plan.verbs)
        found[name]["epochs"] = epochs[name]
    return {
        **read_json(chosen),
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "mix": plan.mix,
        "students": found,
        "seconds": {**shared.seconds, **stages.seconds},
    }


def scores(results: dict[str, Any], verbs: Sequence[str]) -> dict[str, Any]:
    """The numbers of one student from its results file."""
    per_verb = results["per_verb"]
    names = [verb.replace("_", " ") for verb in verbs]
    new, old = (
        [value for name, value in per_verb.items() if (name in names) == wanted]
        for wanted in (True, False)
    )
    return {
        "new_verbs": mean(new),
        "labelled_verbs": mean(old),
        "unseen": results["metrics"]["unseen"],
        "seen": results["metrics"]["seen"],
        "per_verb": per_verb,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="a demo's seed; default: demo/seed-SEED")
    parser.add_argument("--out", type=Path, help="default: demo/more-images-SEED")
    parser.add_argument("--verbs", nargs="+", default=["carry", "push", "kick", "throw"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labelled", type=int, default=300)
    parser.add_argument("--unlabelled", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=280, help="of every student")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--mix", type=float, default=0.5, help="share of unlabelled pictures")
    parser.add_argument("--student", default="", help="further options of eoid-train student")
    options = parser.parse_args()
    plan = Plan(
        options.base or Path("demo") / f"seed-{options.seed}",
        options.out or Path("demo") / f"more-images-{options.seed}",
        tuple(options.verbs),
        options.seed,
        options.labelled,
        options.unlabelled,
        options.steps,
        options.batch_size,
        options.mix,
        tuple(shlex.split(options.student)),
    )
    try:
        value = measure(plan)
    except InputError as error:
        parser.exit(2, f"more_images: {error}\n")
    write_json(plan.out / "more_images.json", value)
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
