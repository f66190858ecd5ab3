"""Runs both phases on the toy dataset, from drawing its images to a report.

Every stage is a command of this project, which is printed before it runs. Stages write results to
`seed-N/` in the output folder, so that an interrupted call resumes, and other splits of the same
seed reuse toy dataset, models and caches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.tables import format_percent
from pipeline.splits import load_split, split_names
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, sha256_of_json, write_json
from pipeline.vocabulary import load_vocabulary

INTERRUPTED, SIGNALLED = 130, 128
GROUPS = ("full", "seen", "unseen")
LABELS = {
    "distilled": "Distilled",
    "no_distillation": "No distillation",
    "all_labels": "All labels",
}


@dataclass
class Stages:
    """Runs commands and records their times, summed over several calls if one was interrupted.

    Attributes:
        file: file of the times.
        seconds: time by stage, over all its attempts.
        finished: stages that succeeded.
    """

    file: Path
    seconds: dict[str, float] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Stages:
        """The times of earlier calls."""
        return cls(file, **read_json(file)) if file.is_file() else cls(file)

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
    detector, teacher = models / "detector.safetensors", models / "teacher"
    shared = Stages.read(base / "stages.json")
    own = Stages.read(runs / "stages.json")

    shared.run("toy", "eoid-data", "toy", toy, "--seed", seed)
    shared.run("models", "eoid-cache", "toy-models", models, "--seed", seed)
    models_options = ("--detector", "toy", "--detector-weights", detector, "--clip-model", teacher)
    cache, test_cache = base / "cache", base / "cache-test"
    shared.run("cache", "eoid-cache", "build", toy, "--out", cache, *models_options)
    shared.run(
        "cache_test",
        "eoid-cache",
        "build",
        toy,
        "--out",
        test_cache,
        "--part",
        "test",
        *models_options,
    )

    common = ("--preset", "toy", "--pretrained", detector, "--seed", seed)
    for name, trained, more in (
        ("distilled", split, ()),
        ("no_distillation", split, ("--no-distillation",)),
        *([("all_labels", "full", ())] if ceiling else []),
    ):
        stages, run = (shared, base / "full" / name) if trained == "full" else (own, runs / name)
        paths = ("--data", toy, "--cache", cache, "--split", trained, "--out", run)
        stages.run(name, "eoid-train", "student", *paths, *common, *more, "--name", LABELS[name])
    results = {name: runs / name / "results.json" for name in ("distilled", "no_distillation")}
    if ceiling:
        run, rescored = base / "full" / "all_labels", runs / "all_labels"
        own.run("all_labels_scored", "eoid-train", "evaluate", run, "--data", toy,
                "--split", split, "--out", rescored, "--overwrite")  # fmt: skip
        results["all_labels"] = rescored / "results.json"
    results["teacher"] = runs / "teacher.json"
    own.run("teacher", "eoid-cache", "evaluate", test_cache, "--data", toy, "--split", split,
            "--json", results["teacher"], "--predictions", runs / "teacher_predictions.json",
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
    for name in ("distilled", "no_distillation", "all_labels", "teacher"):
        if name in value:
            title = LABELS.get(name, "Teacher itself")
            lines.append(
                f"{title:<18}" + "".join(f"{format_percent(value[name][g]):>9}" for g in GROUPS)
            )
    shares = ("teacher_accuracy", "person_recall", "object_recall")
    rates = [f"{name.replace('_', ' ')} {value['teacher'][name]:.3f}" for name in shares]
    lines.append(", ".join(rates))
    if "gap_closed" in value:
        lines.append(f"gap closed by distillation: {value['gap_closed']:.2f}")
    stages = ", ".join(f"{name} {taken:.0f}" for name, taken in value["stages"].items())
    lines.append(f"{value['seconds']:.0f} s in total: {stages}")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="Output folder.")
    parser.add_argument("--split", default="ua", help="Zero-shot split: ua, uc, uo or a TOML file.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of toy dataset, models and students."
    )
    parser.add_argument(
        "--ceiling", action="store_true", help="Also train a student with all labels."
    )
    options = parser.parse_args()
    try:
        value = run_demo(options.out, options.split, options.seed, options.ceiling)
    except InputError as error:
        parser.exit(2, f"demo: {error}\n")
    write_json(options.out / "results.json", value)
    print("\n" + describe(value))
    print(f"\n{options.out / 'results.json'}\n{options.out / 'report.html'}")


if __name__ == "__main__":
    main()
