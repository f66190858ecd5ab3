"""Control of the experiment with new verbs: scores a verb with the prompts of other verbs."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.study.records import GROUPS
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import Vocabulary
from student.engine.evaluate import RESULTS, evaluate_checkpoint
from teacher_cache.maintenance.add_prompts import AddPromptsConfig, create_prompts_file


def prompt_to_add(vocabulary: Vocabulary, verb: str, prompt_verb: str) -> str:
    """Value of `eoid-cache prompts --add` for a verb, with the form of `prompt_verb`."""
    index, other = (vocabulary.verbs.index(name) for name in (verb, prompt_verb))
    objects = ",".join(vocabulary.objects[o] for v, o in vocabulary.interactions if v == index)
    return f"{verb}={vocabulary.verb_ings[other]}:{objects}"


def draw_other_verbs(vocabulary: Vocabulary, verb: str, count: int, seed: int) -> list[str]:
    """Draws `count` other verbs, or all of them if there are fewer."""
    no_interaction = vocabulary.no_interaction
    names = [name for index, name in enumerate(vocabulary.verbs) if index != no_interaction]
    names.remove(verb)
    return random.Random(f"{seed} {verb}").sample(names, min(count, len(names)))


def evaluate_other_prompts(
    student: Path, cache: Path, data: Path, verb: str, prompt_verbs: Sequence[str], out: Path
) -> None:
    """Evaluates a student with the prompts of other verbs and writes the mean of the metrics.

    Args:
        student: run folder of a student with a text head, trained without the verb.
        cache: the teacher cache of its training.
        data: the dataset with the verb.
        verb: name of the verb.
        prompt_verbs: verbs whose forms are used.
        out: folder of the results.
    """
    vocabulary = open_dataset(data).vocabulary
    metrics_by_verb = {}
    for name in prompt_verbs:
        file, folder = out / f"{name}.h5", out / name
        added = (prompt_to_add(vocabulary, verb, name),)
        create_prompts_file(AddPromptsConfig(cache, file, added, overwrite=True))
        evaluate_checkpoint(student, data, None, folder, "auto", None, True, prompts=file)
        metrics_by_verb[name] = read_json(folder / RESULTS)["metrics"]
    # The test part of a small dataset may lack the verb.
    groups = [
        group
        for group in GROUPS
        if all(values[group] is not None for values in metrics_by_verb.values())
    ]
    metrics = {
        group: mean(values[group] for values in metrics_by_verb.values()) for group in groups
    }
    write_json(out / RESULTS, {"metrics": metrics, "by_sentence": metrics_by_verb})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verb", required=True)
    parser.add_argument("--count", type=int, default=3, help="number of other verbs")
    parser.add_argument("--seed", type=int, default=0, help="seed of their choice")
    options = parser.parse_args()
    prompt_verbs = draw_other_verbs(
        open_dataset(options.data).vocabulary, options.verb, options.count, options.seed
    )
    evaluate_other_prompts(
        options.student, options.cache, options.data, options.verb, prompt_verbs, options.out
    )


if __name__ == "__main__":
    main()
