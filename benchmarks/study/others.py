"""What a student that reads finds where an action has the sentence of another one: the control."""

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


def sentence(vocabulary: Vocabulary, verb: str, spoken: str) -> str:
    """A verb with its own objects for `eoid-cache prompts --add`, in the words of another."""
    number, other = (vocabulary.verbs.index(name) for name in (verb, spoken))
    objects = ",".join(vocabulary.objects[o] for v, o in vocabulary.interactions if v == number)
    return f"{verb}={vocabulary.verb_ings[other]}:{objects}"


def others(vocabulary: Vocabulary, verb: str, count: int, seed: int) -> list[str]:
    """Draws other actions."""
    none = vocabulary.no_interaction
    names = [name for number, name in enumerate(vocabulary.verbs) if number != none]
    names.remove(verb)
    return random.Random(f"{seed} {verb}").sample(names, min(count, len(names)))


def score_others(
    student: Path, cache: Path, data: Path, verb: str, spoken: Sequence[str], out: Path
) -> None:
    """Scores every sentence and writes the mean of their numbers.

    Args:
        student: the run of a student that never heard of the verb.
        cache: what it learned from.
        data: the dataset with the verb.
        verb: its name.
        spoken: the other actions.
        out: folder of the results.
    """
    vocabulary = open_dataset(data).vocabulary
    found = {}
    for name in spoken:
        file, place = out / f"{name}.h5", out / name
        added = (sentence(vocabulary, verb, name),)
        create_prompts_file(AddPromptsConfig(cache, file, added, overwrite=True))
        evaluate_checkpoint(student, data, None, place, "auto", None, True, prompts=file)
        found[name] = read_json(place / RESULTS)["metrics"]
    # A small dataset's test part may not show the action.
    shown = [group for group in GROUPS if all(own[group] is not None for own in found.values())]
    metrics = {group: mean(own[group] for own in found.values()) for group in shown}
    write_json(out / RESULTS, {"metrics": metrics, "by_sentence": found})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--verb", required=True)
    parser.add_argument("--count", type=int, default=3, help="other sentences")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    options = parser.parse_args()
    spoken = others(
        open_dataset(options.data).vocabulary, options.verb, options.count, options.seed
    )
    score_others(options.student, options.cache, options.data, options.verb, spoken, options.out)


if __name__ == "__main__":
    main()
