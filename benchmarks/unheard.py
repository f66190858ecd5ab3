"""Actions nobody mentioned in training, found by a sentence: the embedded world without one verb.

For every verb in turn the dataset is written without it: vocabulary, labels, and so the teacher's
answers. A student that reads is trained on that, and then finds the verb in the whole world's test
pictures from its sentence. In the control the verb has another action's sentence; all else is the
same. Pieces that are there are kept, so a stopped call goes on. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.demo import Stages
from pipeline.datasets import open_dataset
from pipeline.files import read_json, write_json, write_text
from pipeline.vocabulary import Vocabulary
from student.evaluate import RESULTS, evaluate_checkpoint
from teacher_cache.add_prompts import PromptsConfig, add_prompts

OWN, CONTROL = "own", "shuffled"
PARTS = {"train": "trainval.json", "test": "test.json"}


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        base: folder of a demo's seed, with `world` and `models`.
        out: where the pieces go.
        verbs: left out, one at a time.
        seed: of the students, and of the choice of other sentences.
        controls: other actions' sentences for each verb.
        student: further options of `eoid-train student`.
    """

    base: Path
    out: Path
    verbs: tuple[str, ...]
    seed: int
    controls: int
    student: tuple[str, ...]


def without_verb(vocabulary: Vocabulary, verb: str) -> dict[str, Any]:
    """The file form of a vocabulary that lacks a verb."""
    lost = vocabulary.verbs.index(verb)
    value = vocabulary.to_dict()
    value["verbs"] = [entry for entry in value["verbs"] if entry["name"] != verb]
    value["interactions"] = [[v - (v > lost), o] for v, o in vocabulary.interactions if v != lost]
    return {**value, "name": f"{vocabulary.name} without {verb}", "splits": {}, "rare": []}


def without_labels(images: Sequence[dict[str, Any]], vocabulary: Vocabulary, verb: str) -> Any:
    """Annotations in the HOIA form without a verb, numbered for the smaller vocabulary."""
    lost = vocabulary.verbs.index(verb) + vocabulary.first_verb
    kept = []
    for image in images:
        labels = [
            {
                "subject_id": label["subject_id"],
                "object_id": label["object_id"],
                "category_id": label["category_id"] - (label["category_id"] > lost),
            }
            for label in image["hoi_annotation"]
            if label["category_id"] != lost
        ]
        kept.append({**image, "hoi_annotation": labels})
    return kept


def write_smaller_world(world: Path, verb: str, out: Path) -> None:
    """A dataset folder that shows the world's pictures and has never heard of a verb."""
    dataset = open_dataset(world)
    lines = [f'name = "world without {verb}"', 'vocabulary = "vocabulary.json"']
    for part, file in PARTS.items():
        source = dataset.part(part)
        assert source.annotations is not None, "the world is annotated"
        labels = without_labels(read_json(source.annotations), dataset.vocabulary, verb)
        write_json(out / file, labels)
        images = json.dumps(str(source.images.resolve()))
        lines += ["", f"[{part}]", f"images = {images}", f'annotations = "{file}"']
    write_json(out / "vocabulary.json", without_verb(dataset.vocabulary, verb))
    write_text(out / "dataset.toml", "\n".join(lines) + "\n")


def measure_verb(plan: Plan, verb: str) -> dict[str, Any]:
    """Trains without a verb and scores what its sentence finds, and what others' find in its place.

    Returns:
        AP of the verb as fractions: with its own sentence, with each of the others, their mean and
        the ratio; and mAP of what the student was trained on.
    """
    world, models, out = plan.base / "world", plan.base / "models", plan.out / verb
    data, cache, student = out / "data", out / "cache", out / "student"
    out.mkdir(parents=True, exist_ok=True)
    if not (data / "dataset.toml").is_file():
        write_smaller_world(world, verb, data)
    detector, stages = models / "detector.safetensors", Stages.read(out / "stages.json")
    asked = ("--detector", "world", "--detector-weights", detector)
    stages.run("cache", "eoid-cache", "build", data, "--out", cache, *asked,
               "--clip-model", models / "teacher")  # fmt: skip
    stages.run("student", "eoid-train", "student", "--data", data, "--cache", cache, "--out",
               student, "--split", "full", "--preset", "world", "--init", detector, "--verb-head",
               "text", "--seed", plan.seed, "--no-report", *plan.student)  # fmt: skip

    vocabulary = open_dataset(world).vocabulary
    number = vocabulary.verbs.index(verb)
    objects = ",".join(vocabulary.objects[o] for v, o in vocabulary.interactions if v == number)
    others = [
        v for v in range(vocabulary.num_verbs) if v not in (number, vocabulary.no_interaction)
    ]
    chosen = random.Random(f"{plan.seed} {verb}").sample(others, min(plan.controls, len(others)))
    found = {}
    for spoken in (number, *chosen):
        name = OWN if spoken == number else f"{CONTROL}-{vocabulary.verbs[spoken]}"
        added = f"{verb}={vocabulary.verb_ings[spoken]}:{objects}"
        if not (out / name / RESULTS).is_file():
            file = out / f"{name}.h5"
            add_prompts(PromptsConfig(cache, file, (added,), overwrite=True))
            evaluate_checkpoint(student, world, None, out / name, "auto", None, False, prompts=file)
        found[name] = read_json(out / name / RESULTS)
    heard = found.pop(OWN)
    controls = {name: result["per_verb"][verb] for name, result in found.items()}
    control = mean(controls.values()) if controls else None
    return {
        "average_precision": heard["per_verb"][verb],
        "control": control,
        "ratio": heard["per_verb"][verb] / control if control else None,
        "controls": controls,
        "trained_actions": heard["metrics"]["seen"],
        "seconds": stages.seconds,
    }


def main() -> None:
    """Measures every verb and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("demo/seed-0"), help="a demo's seed")
    parser.add_argument("--out", type=Path, default=Path("demo/unheard"))
    parser.add_argument("--verbs", nargs="+", default=["jump", "throw", "carry"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controls", type=int, default=3, help="other sentences for each verb")
    parser.add_argument("--student", default="", help="further options of eoid-train student")
    options = parser.parse_args()
    plan = Plan(
        options.base,
        options.out,
        tuple(options.verbs),
        options.seed,
        options.controls,
        tuple(shlex.split(options.student)),
    )
    measured = {verb: measure_verb(plan, verb) for verb in plan.verbs}
    value = {"seed": plan.seed, "student": list(plan.student), "verbs": measured}
    write_json(plan.out / "unheard.json", value)
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
