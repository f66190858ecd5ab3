"""Runs both phases on the toy dataset, from drawing its images to a report.

Every stage is a command of this project, which is printed before it runs. Stages write results to
`seed-N/` in the output folder, so that an interrupted call resumes, and other splits of the same
seed reuse toy dataset, models and caches.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from evaluation.tables import format_percent
from pipeline.splits import load_split, split_names
from pipeline.utils.cli import run_command as run_program
from pipeline.utils.files import read_json, sha256_of_json, write_json
from pipeline.vocabulary import load_vocabulary

INTERRUPTED, SIGNALLED = 130, 128
GROUPS = ("full", "seen", "unseen")
LABELS = {
    "distilled": "Distilled",
    "no_distillation": "No distillation",
    "all_labels": "All labels",
    "teacher": "Teacher itself",
}


class Stages:
    """Runs commands and records their times, summed over several calls if one was interrupted.

    Args:
        file: file of the times, which may have those of earlier calls.

    Attributes:
        seconds: time by stage, over all its attempts.
        finished: stages that succeeded.
    """

    def __init__(self, file: Path) -> None:
        found = read_json(file) if file.is_file() else {"seconds": {}, "finished": []}
        self.file = file
        self.seconds: dict[str, float] = found["seconds"]
        self.finished: list[str] = found["finished"]

    def run(self, name: str, *command: object) -> None:
        """Runs one command of the project.

        Raises:
            SystemExit: the command failed; with its exit code.
        """
        started = time.monotonic()
        code = run_command([str(word) for word in command])
        taken = time.monotonic() - started
        if name not in self.finished:
            self.seconds[name] = round(self.seconds.get(name, 0) + taken, 1)
            if code == 0:
                self.finished.append(name)
            write_json(self.file, {"seconds": self.seconds, "finished": self.finished})
        if code:
            sys.exit(code)
        print(f"{name}: {self.seconds[name]:.0f} s")


def run_command(words: Sequence[str], log: Path | None = None) -> int:
    """Runs a command of this project and returns its exit code as a shell does.

    Args:
        words: the command's name and arguments.
        log: file that the command line and its output are appended to; None prints them.
    """
    line = f"$ {' '.join(words)}"
    program = [Path(sys.executable).parent / words[0], *words[1:]]
    if log is None:
        print(f"\n\033[1m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)
        return _wait(subprocess.Popen(program))
    with open(log, "a") as lines:
        print(line, file=lines, flush=True)
        return _wait(subprocess.Popen(program, stdout=lines, stderr=subprocess.STDOUT))


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end and returns the exit code as a shell does.

    Ctrl-C reaches the command too, which needs time to save. If the command succeeds all the same,
    the demo stops after it.
    """
    interrupted = False
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            interrupted = True
        else:
            break
    if interrupted and code == 0:
        return INTERRUPTED
    return code if code >= 0 else SIGNALLED - code


def run_demo(out: Path, split: str, seed: int, ceiling: bool) -> dict[str, Any]:
    """Runs all stages and returns the content of `results.json`.

    Args:
        out: folder of `results.json` and `report.html`.
        split: name of a split of the toy dataset, or a TOML file.
        seed: seed of toy dataset, models and students.
        ceiling: also train a student with all labels.
    """
    vocabulary = load_vocabulary("toy")
    known = load_split(vocabulary, split)
    # A user's file may change between calls, so the folder's name contains a digest of the split.
    shipped = split in split_names(vocabulary)
    tag = split if shipped else f"{known.name}-{sha256_of_json(known.unseen)[:8]}"
    base = out / f"seed-{seed}"
    toy, models, runs = base / "toy", base / "models", base / tag
    runs.mkdir(parents=True, exist_ok=True)
    shared, own = Stages(base / "stages.json"), Stages(runs / "stages.json")
    detector, clip = models / "detector.safetensors", models / "teacher"

    def build(name: str, *options: object) -> None:
        teacher = ("--detector", "toy", "--detector-weights", detector, "--clip-model", clip)
        shared.run(name, "eoid-cache", "build", toy, *teacher, *options)

    def train(stages: Stages, name: str, split: str, run: Path, *options: str) -> None:
        data = ("--data", toy, "--cache", base / "cache", "--split", split, "--out", run)
        recipe = ("--preset", "toy", "--pretrained", detector, "--seed", seed)
        name_option = ("--name", LABELS[name])
        stages.run(name, "eoid-train", "student", *data, *recipe, *options, *name_option)

    shared.run("toy", "eoid-data", "toy", toy, "--seed", seed)
    shared.run("models", "eoid-cache", "toy-models", models, "--seed", seed)
    build("cache", "--out", base / "cache")
    build("cache_test", "--out", base / "cache-test", "--part", "test")
    train(own, "distilled", split, runs / "distilled")
    train(own, "no_distillation", split, runs / "no_distillation", "--no-distillation")
    results = {name: runs / name / "results.json" for name in ("distilled", "no_distillation")}
    if ceiling:
        run, rescored = base / "full" / "all_labels", runs / "all_labels"
        train(shared, "all_labels", "full", run)
        own.run("all_labels_scored", "eoid-train", "evaluate", run, "--data", toy,
                "--split", split, "--out", rescored, "--overwrite")  # fmt: skip
        results["all_labels"] = rescored / "results.json"
    results["teacher"] = runs / "teacher.json"
    own.run("teacher", "eoid-cache", "evaluate", base / "cache-test", "--data", toy, "--split",
            split, "--json", results["teacher"], "--predictions", runs / "teacher_predictions.json",
            "--overwrite")  # fmt: skip
    own.run("report", "eoid-eval", "report", *results.values(), "--out", out / "report.html",
            "--overwrite")  # fmt: skip
    seconds = {**shared.seconds, **own.seconds}
    if not ceiling:
        seconds = {name: value for name, value in seconds.items() if "all_labels" not in name}
    return summary({name: read_json(file) for name, file in results.items()}, split, seed, seconds)


def summary(
    results: dict[str, dict[str, Any]], split: str, seed: int, seconds: dict[str, float]
) -> dict[str, Any]:
    """The content of the demo's `results.json` from the results files of its runs."""
    value: dict[str, Any] = {
        "seconds": round(sum(seconds.values()), 1),
        "stages": seconds,
        "split": split,
        "seed": seed,
    }
    for name, found in results.items():
        value[name] = {group: found["metrics"][group] for group in GROUPS}
    value["teacher"].update(results["teacher"]["extra"])
    if "all_labels" in results:
        low, reached, high = (
            value[name]["unseen"] for name in ("no_distillation", "distilled", "all_labels")
        )
        # Without test images of the unseen interactions their mAP is undefined, and so is the gap.
        if None not in (low, reached, high) and high > low:
            value["gap_closed"] = (reached - low) / (high - low)
    return value


def describe(value: dict[str, Any]) -> str:
    """The results as a table for a terminal."""
    lines = [f"{'mAP, %':<18}" + "".join(f"{group:>9}" for group in GROUPS)]
    for name, title in LABELS.items():
        if name in value:
            cells = [format_percent(value[name][group]) for group in GROUPS]
            lines.append(f"{title:<18}" + "".join(f"{cell:>9}" for cell in cells))
    shares = ("teacher_accuracy", "person_recall", "object_recall")
    rates = [f"{name.replace('_', ' ')} {value['teacher'][name]:.3f}" for name in shares]
    lines.append(", ".join(rates))
    if "gap_closed" in value:
        lines.append(f"gap closed by distillation: {value['gap_closed']:.2f}")
    stages = ", ".join(f"{name} {taken:.0f}" for name, taken in value["stages"].items())
    lines.append(f"{value['seconds']:.0f} s in total: {stages}")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--out", type=Path, default=Path("demo"), help="Output folder.")
@click.option("--split", default="ua", help="Zero-shot split: ua, uc, uo or a TOML file.")
@click.option("--seed", type=int, default=0, help="Seed of toy dataset, models and students.")
@click.option("--ceiling", is_flag=True, help="Also train a student with all labels.")
def main(out: Path, split: str, seed: int, ceiling: bool) -> None:
    value = run_demo(out, split, seed, ceiling)
    write_json(out / "results.json", value)
    print(f"\n{describe(value)}\n\n{out / 'results.json'}\n{out / 'report.html'}")


if __name__ == "__main__":
    run_program(main)
