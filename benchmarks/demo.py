"""Runs both phases on the toy dataset, from drawing its images to a report.

Every stage is a command of this project, which is printed before it runs. Stages write results to
`seed-N/` in the output folder, so that an interrupted call resumes, and other splits of the same
seed reuse toy dataset, models and caches.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from evaluation.tables import format_percent
from pipeline.splits import load_split, split_names
from pipeline.utils.cli import run_command as run_program
from pipeline.utils.files import read_json, sha256_of_json, write_json
from pipeline.vocabulary import load_vocabulary

# Exit code of a command that was ended by signal 0.
SIGNALLED = 128
POLL_SECONDS = 0.05
TRAIN_IMAGES = 1000
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

    def run(self, name: str, *command: object, beside: Sequence[object] = ()) -> None:
        """Runs a command of the project, or two beside each other with one thread each.

        Args:
            name: name of the stage.
            command: the command's name and arguments.
            beside: a second command, whose output goes to a log file.

        Raises:
            SystemExit: a command failed; with its exit code.
        """
        started, log = time.monotonic(), self.file.with_name(f"{name}.log")
        if beside:
            print(f"\nBeside the next command, with the output in {log}:\n$ {join_words(beside)}")
            starts = [
                partial(start_command, command, threads=1),
                partial(start_command, beside, log, threads=1),
            ]
        else:
            starts = [partial(start_command, command)]
        code = run_together(starts)
        taken = time.monotonic() - started
        if name not in self.finished:
            self.seconds[name] = round(self.seconds.get(name, 0) + taken, 1)
            if code == 0:
                self.finished.append(name)
            write_json(self.file, {"seconds": self.seconds, "finished": self.finished})
        if code:
            sys.exit(code)
        print(f"{name}: {self.seconds[name]:.0f} s")


def start_command(
    words: Sequence[object], log: Path | None = None, threads: int | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command of this project.

    Args:
        words: the command's name and arguments.
        log: file that the command line and its output are appended to; None prints them.
        threads: number of threads that torch uses; None for the default.
    """
    name, *arguments = map(str, words)
    program = [Path(sys.executable).parent / name, *arguments]
    line, environment = f"$ {join_words(words)}", dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if log is None:
        print(f"\n\033[1m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)
        return subprocess.Popen(program, env=environment)
    with open(log, "a") as lines:
        print(line, file=lines, flush=True)
        return subprocess.Popen(program, env=environment, stdout=lines, stderr=subprocess.STDOUT)


def join_words(words: Sequence[object]) -> str:
    """A command line."""
    return " ".join(map(str, words))


def shell_code(process: subprocess.Popen[bytes]) -> int:
    """Waits for a command and returns its exit code as a shell does."""
    code = process.wait()
    return code if code >= 0 else SIGNALLED - code


def run_together(starts: Sequence[Callable[[], subprocess.Popen[bytes]]]) -> int:
    """Starts commands, waits for them and returns 0, or the exit code of the first that fails.

    If one fails, the others are stopped. Commands need time to save after Ctrl-C, which reaches
    them too, and after SIGTERM, which is passed on to them. If they succeed all the same, the demo
    stops after them.
    """
    signalled: list[int] = []

    def note(number: int, _: object) -> None:
        signalled.append(number)

    # Before the first start: a command may be running before its start returns.
    handlers = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    processes: list[subprocess.Popen[bytes]] = []
    code, told = 0, False
    try:
        for start in starts:
            if not signalled:
                processes.append(start())
        while True:
            running = [process for process in processes if process.poll() is None]
            code = code or next((shell_code(each) for each in processes if each.returncode), 0)
            if not running:
                return code or (SIGNALLED + signalled[0] if signalled else 0)
            if not told and (signal.SIGTERM in signalled or (code and not signalled)):
                told = True
                for process in running:
                    process.terminate()
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_demo(
    out: Path, split: str, seed: int, ceiling: bool = False, train_models: bool = False
) -> dict[str, Any]:
    """Runs all stages and returns the content of `results.json`.

    Args:
        out: folder of `results.json` and `report.html`.
        split: name of a split of the toy dataset, or a TOML file.
        seed: seed of the toy dataset and of the students, and of the models if they are trained.
        ceiling: also train a student with all labels.
        train_models: train the teacher and the detector instead of taking those of the package.
    """
    vocabulary = load_vocabulary("toy")
    known = load_split(vocabulary, split)
    # A user's file may change between calls, so the folder's name contains a digest of the split.
    shipped = split in split_names(vocabulary)
    tag = split if shipped else f"{known.name}-{sha256_of_json(known.unseen)[:8]}"
    base = out / (f"seed-{seed}-trained" if train_models else f"seed-{seed}")
    toy, models, runs = base / "toy", base / "models", base / tag
    runs.mkdir(parents=True, exist_ok=True)
    shared, own = Stages(base / "stages.json"), Stages(runs / "stages.json")
    detector: tuple[object, ...] = ("--detector", "toy")
    teacher, pretrained = "toy", "toy"
    if train_models:
        teacher, pretrained = str(models / "teacher"), str(models / "detector.safetensors")
        detector = (*detector, "--detector-weights", pretrained)

    def build(name: str, *options: str) -> tuple[object, ...]:
        out = ("--out", base / name, *options)
        return "eoid-cache", "build", toy, *detector, "--clip-model", teacher, *out

    def student(name: str, split: str, run: Path, *options: str) -> tuple[object, ...]:
        data = ("--data", toy, "--cache", base / "cache", "--split", split, "--out", run)
        recipe = ("--preset", "toy", "--pretrained", pretrained, "--seed", seed, *options)
        return "eoid-train", "student", *data, *recipe, "--name", LABELS[name]

    shared.run("toy", "eoid-data", "toy", toy, "--train", TRAIN_IMAGES, "--seed", seed)
    if train_models:
        shared.run("models", "eoid-cache", "toy-models", models, "--seed", seed)
    shared.run("cache", *build("cache"))
    shared.run("cache_test", *build("cache-test", "--part", "test"))
    own.run(
        "students",
        *student("distilled", split, runs / "distilled"),
        beside=student("no_distillation", split, runs / "no_distillation", "--no-distillation"),
    )
    results = {name: runs / name / "results.json" for name in ("distilled", "no_distillation")}
    if ceiling:
        run, rescored = base / "full" / "all_labels", runs / "all_labels"
        shared.run("all_labels", *student("all_labels", "full", run))
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
@click.option("--seed", type=int, default=0, help="Seed of toy dataset and students.")
@click.option("--ceiling", is_flag=True, help="Also train a student with all labels.")
@click.option(
    "--models",
    type=click.Choice(["shipped", "train"]),
    default="shipped",
    help="Teacher and detector: those of the package, or trained with the seed.",
)
def main(out: Path, split: str, seed: int, ceiling: bool, models: str) -> None:
    value = run_demo(out, split, seed, ceiling, models == "train")
    write_json(out / "results.json", value)
    print(f"\n{describe(value)}\n\n{out / 'results.json'}\n{out / 'report.html'}")


if __name__ == "__main__":
    run_program(main)
