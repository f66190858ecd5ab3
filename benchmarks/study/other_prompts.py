"""Control of the experiment with new verbs: scores a verb with the prompts of other verbs."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import mean

import click

from evaluation.results import RESULTS_FILE
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.cli import run_command
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import Vocabulary
from student.engine.evaluate import evaluate_checkpoint
from teacher_cache.maintenance.add_prompts import create_prompts_file

NUM_OTHERS = 3


def prompt_to_add(vocabulary: Vocabulary, verb: str, prompt_verb: str) -> str:
    """Value of `eoid-cache prompts --add` for a verb, with the form of `prompt_verb`."""
    index, other = (vocabulary.verbs.index(name) for name in (verb, prompt_verb))
    objects = ",".join(vocabulary.objects[o] for v, o in vocabulary.interactions if v == index)
    return f"{verb}={vocabulary.verb_ings[other]}:{objects}"


def draw_other_verbs(vocabulary: Vocabulary, verb: str, seed: int) -> list[str]:
    """Draws other verbs."""
    no_interaction = vocabulary.no_interaction
    names = [name for index, name in enumerate(vocabulary.verbs) if index != no_interaction]
    names.remove(verb)
    return random.Random(f"{seed} {verb}").sample(names, NUM_OTHERS)


@click.command(help=__doc__)
@click.argument("student", type=Path)
@click.option("--cache", type=Path, required=True, help="The teacher cache of its training.")
@click.option("--data", type=Path, required=True, help="The dataset with the verb.")
@click.option("--out", type=Path, required=True)
@click.option("--verb", required=True, help="A verb that the student was trained without.")
@click.option("--seed", type=int, default=0, help="Seed of the choice of other verbs.")
def main(student: Path, cache: Path, data: Path, out: Path, verb: str, seed: int) -> None:
    vocabulary = open_dataset(data).vocabulary
    metrics_by_verb = {}
    for name in draw_other_verbs(vocabulary, verb, seed):
        file, folder = out / f"{name}.h5", out / name
        added = (prompt_to_add(vocabulary, verb, name),)
        create_prompts_file(cache, file, added, overwrite=True)
        evaluate_checkpoint(student, data, None, folder, "auto", None, True, prompts=file)
        metrics_by_verb[name] = read_json(folder / RESULTS_FILE)["metrics"]
    metrics = {}
    for group in ("unseen", "seen", "full"):
        values = [found[group] for found in metrics_by_verb.values()]
        # The test part of a small dataset may lack the verb.
        metrics[group] = None if None in values else mean(values)
    write_json(out / RESULTS_FILE, {"metrics": metrics, "by_sentence": metrics_by_verb})


if __name__ == "__main__":
    run_command(main)
