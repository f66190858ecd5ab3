"""The study: commands that it runs, recorded results, tables, figures and the page."""

import json
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from benchmarks.photographs import write_teacher
from benchmarks.study import __main__ as program
from benchmarks.study.__main__ import missing_tasks, run_study
from benchmarks.study.artifacts import CACHE, SPLITS, student, teacher_score
from benchmarks.study.experiments import EXPERIMENTS, Experiment, Variant
from benchmarks.study.results import FINDINGS, is_recorded, markdown, read_records, write_experiment
from benchmarks.study.runner import Runner, run_command
from pipeline.cli import data
from pipeline.splits import load_split
from pipeline.utils.files import read_json, read_toml, write_json
from pipeline.vocabulary import load_vocabulary
from student.cli import train
from teacher_cache.cli import cache
from teacher_cache.detectors.torchvision import toy_detector

GROUPS = {"full": 0.5, "seen": 0.6, "unseen": 0.3}
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
VDETACH, TOPK, SENTENCES, RECIPE = (
    BY_NAME[name] for name in ("vdetach", "topk", "sentences", "recipe")
)


class FakeCommands:
    """Stands in for commands: records them, and writes the results that they would write."""

    def __init__(self, stop_at=None, code=130, failing=()):
        self.commands, self.stop_at, self.code, self.failing = [], stop_at, code, failing
        self.lock = threading.Lock()

    def __call__(self, words, log=None):
        with self.lock:
            if len(self.commands) == self.stop_at:
                return self.code
            self.commands.append(list(words))
        if any(word in self.failing for word in words):
            return 2
        if words[:2] == ["eoid-cache", "evaluate"]:
            scores = {"metrics": GROUPS, "extra": {"teacher_accuracy": 0.9}}
            write_json(words[words.index("--json") + 1], scores)
        elif words[0] == "eoid-train" or "benchmarks.study.other_prompts" in words:
            shift = 0.1 * ("--no-vdetach" in words)
            shift += 0.01 * int(words[words.index("--seed") + 1]) if "--seed" in words else 0
            metrics = {name: value + shift for name, value in GROUPS.items()}
            folder = Path(words[words.index("--out") + 1])
            write_json(folder / "results.json", {"metrics": metrics})
            if "--test-every" in words:
                line = {"step": 5, "metrics": GROUPS}
                for name in ("test.jsonl", "metrics.jsonl"):
                    (folder / name).write_text(f"{json.dumps(line)}\n")
        return 0

    @property
    def kinds(self):
        return [" ".join(words[:2]) for words in self.commands]


@pytest.fixture
def run(tmp_path):
    """`run(commands, *experiments)` runs a study; gives its exit code and reported lines."""

    def start(execute, *experiments, seeds=(0, 1), jobs=1, out="study", **options):
        lines = []
        runner = Runner(tmp_path / out, jobs, execute, lines.append)
        results = tmp_path / "results"
        return run_study(experiments or (VDETACH,), seeds, runner, results, **options), lines

    return start


def test_commands_run_once_and_in_order(run):
    commands = FakeCommands()
    code, _ = run(commands, VDETACH, TOPK)
    assert code == 0
    for seed in (0, 1):
        mine = [words for words in commands.commands if any(f"seed-{seed}/" in w for w in words)]
        assert [" ".join(words[:2]) for words in mine] == [
            "eoid-data toy",
            "eoid-cache toy-models",
            "eoid-cache build",
            *["eoid-train student"] * 5,
        ]
        assert len({tuple(words) for words in mine}) == len(mine)
        seeds = [words[words.index("--seed") + 1] for words in mine if "--seed" in words]
        assert set(seeds) == {str(seed)}
    assert not any("<" in word for words in commands.commands for word in words)


def test_all_experiments_run(run, tmp_path):
    commands = FakeCommands()
    code, _ = run(commands, *EXPERIMENTS, seeds=(3,))
    assert code == 0 and not any("<" in word for words in commands.commands for word in words)
    extra = next(words for words in commands.commands if "23" in words)
    assert extra[:2] == ["eoid-data", "toy"], "additional images have another seed"
    page = (tmp_path / "results/README.md").read_text()
    assert page.count("\n## ") == len(EXPERIMENTS) == page.count("![")
    assert "23.0 / 30.5 / 29.2 |" in page and "paper: unseen / seen / full" in page


@pytest.mark.parametrize("split", ["uc-1", "rf-uc", "nf-uc"])
def test_splits_keep_every_verb_and_object_seen(split):
    vocabulary = load_vocabulary("toy")
    loaded = load_split(vocabulary, SPLITS / f"{split}.toml")
    assert len(loaded.unseen) == 10
    seen = [pair for hoi, pair in enumerate(vocabulary.interactions) if hoi not in loaded.unseen]
    assert {verb for verb, _ in seen} == set(range(vocabulary.num_verbs))
    assert {label for _, label in seen} == set(range(1, vocabulary.num_objects))
    # As in the built-in UC split, every action is distilled.
    assert loaded.distilled_verbs.sum() == vocabulary.num_verbs - 1


@pytest.mark.parametrize("code", [130, 143, 75])
def test_a_stopped_study_resumes(run, tmp_path, code):
    first, lines = run(FakeCommands(stop_at=7, code=code))
    assert first == code and "stopped; the same command resumes" in lines
    file = tmp_path / "results/vdetach.json"
    assert read_json(file)["rows"][0]["values"]["unseen"].keys() == {"0"}
    rest = FakeCommands()
    assert run(rest)[0] == 0 and len(rest.commands) == 3
    assert read_json(file)["rows"][0]["values"]["unseen"].keys() == {"0", "1"}


def test_a_budget_ends_between_commands(run):
    code, lines = run(FakeCommands(), budget=0.0)
    assert code == 0 and "0 minutes are over; the same command resumes" in lines


def test_a_failing_command_stops_only_those_that_depend_on_it(run):
    commands = FakeCommands(failing=("--no-vdetach",))
    code, lines = run(commands, VDETACH, TOPK)
    assert code == 1 and sum("this command failed" in line for line in lines) == 2
    assert commands.kinds.count("eoid-train student") == 2 * 5
    broken = FakeCommands(failing=("build",))
    assert run(broken, VDETACH, TOPK, seeds=(8,))[0] == 1
    assert broken.kinds == ["eoid-data toy", "eoid-cache toy-models", "eoid-cache build"]


def test_recorded_results_are_not_computed_again(run, tmp_path):
    assert run(FakeCommands(), VDETACH, TOPK)[0] == 0
    before = read_json(tmp_path / "results/topk.json")
    again = FakeCommands()
    code, lines = run(again, VDETACH, TOPK, out="elsewhere")
    assert (code, again.commands) == (0, []) and lines[0].startswith("nothing to run")
    assert read_json(tmp_path / "results/topk.json") == before

    more = FakeCommands()
    assert run(more, TOPK, seeds=(2,), out="elsewhere")[0] == 0 and len(more.commands) == 3 + 4
    after = read_json(tmp_path / "results/topk.json")
    assert after["rows"][0]["values"]["full"].keys() == {"0", "1", "2"}

    anew = FakeCommands()
    assert run(anew, rerun=True, seeds=(0,), out="elsewhere")[0] == 0
    assert len(anew.commands) == 3 + 2
    others = read_json(tmp_path / "results/vdetach.json")["rows"][1]["values"]["full"]
    assert set(others) == {"0", "1"}, "the numbers of the other seed are kept"


def test_records_of_other_commands_do_not_count(run, tmp_path):
    run(FakeCommands())
    plain, _ = VDETACH.variants
    records = read_records(tmp_path / "results")
    assert is_recorded(records, plain, 1) and not is_recorded(records, plain, 2)
    assert not is_recorded(records, replace(plain, run=student("--topk 7")), 1)
    # A row with a teacher is incomplete without the teacher's score.
    assert not is_recorded(records, replace(plain, teacher=teacher_score(CACHE)), 1)


def test_commands_run_in_parallel_after_those_of_their_inputs(run):
    together = threading.Barrier(2, timeout=60)

    class Watching(FakeCommands):
        logs = ()

        def __call__(self, words, log=None):
            if words[1] == "student" and len(self.logs) < 2:
                self.logs = (*self.logs, log)
                together.wait()
            return super().__call__(words)

    commands = Watching()
    assert run(commands, jobs=2)[0] == 0
    assert all(log.name.startswith("student-ua-") and log.suffix == ".log" for log in commands.logs)
    for seed in (0, 1):
        mine = [words[1] for words in commands.commands if any(f"seed-{seed}/" in w for w in words)]
        assert sorted(mine[:2]) == ["toy", "toy-models"] and mine[2] == "build"


def test_after_a_stop_running_commands_end(run):
    begun = threading.Event()

    class Stopping(FakeCommands):
        def __call__(self, words, log=None):
            if words[1] == "student" and "--no-vdetach" in words:
                begun.wait(60)
                return 75
            if words[1] == "student":
                begun.set()
                time.sleep(0.2)
            return super().__call__(words)

    commands = Stopping()
    assert run(commands, jobs=2, seeds=(0,))[0] == 75
    assert commands.kinds[-1] == "eoid-train student", "the parallel command has ended"
    rest = FakeCommands()
    assert run(rest, seeds=(0,))[0] == 0
    assert len(rest.commands) == 1 and "--no-vdetach" in rest.commands[0]


def test_ctrl_c_ends_the_study_after_its_commands(run):
    class Interrupted(FakeCommands):
        def __call__(self, words, log=None):
            signal.raise_signal(signal.SIGINT)
            return super().__call__(words)

    commands = Interrupted()
    assert run(commands, jobs=2, seeds=(0,))[0] == 130
    assert 1 <= len(commands.commands) <= 2


def test_output_of_a_command_goes_to_its_log(tmp_path):
    log = tmp_path / "it.log"
    words = [Path(sys.executable).name, "-c", "print(6 * 7); raise SystemExit(3)"]
    assert run_command(words, log) == 3
    first, second = log.read_text().splitlines()
    assert first.startswith("$ ") and second == "42"


def test_table(run, tmp_path):
    run(FakeCommands())
    lines = markdown(read_json(tmp_path / "results/vdetach.json")["rows"]).splitlines()
    assert lines[0] == "|  | seeds | unseen | seen | full | unseen against | higher in |"
    assert lines[2] == "| detached | 2 | 30.5 ± 0.7 | 60.5 ± 0.7 | 50.5 ± 0.7 |  |  |"
    assert lines[3].endswith("| +10.0 ± 0.0 (detached) | 2 of 2 |")


def test_page_and_figures(run, tmp_path):
    results = tmp_path / "results"
    run(FakeCommands(), VDETACH, TOPK, SENTENCES)
    for name in ("vdetach", "topk", "sentences"):
        assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (results / "README.md").read_text()
    assert page.count("\n## ") == 3 and "teacher's accuracy" in page and "Seeds 0, 1." in page
    assert "*The toy dataset.*" not in page, "one seed of the interpretation is missing"
    before = (results / "vdetach.png").stat().st_mtime_ns
    run(FakeCommands(), VDETACH)
    assert (results / "vdetach.png").stat().st_mtime_ns == before
    run(FakeCommands(), SENTENCES, seeds=(2,))
    assert (results / "README.md").read_text().count("*The toy dataset.*") == 1


def test_curves_over_the_steps_of_runs(run, tmp_path):
    """The long experiment has one seed; its curves end with the results, and stay recorded."""
    commands = FakeCommands()
    for out in ("study", "another"):
        run(commands, RECIPE, out=out)
    assert commands.kinds.count("eoid-train student") == len(RECIPE.variants)
    content = read_json(tmp_path / "results/recipe.json")
    for row in content["rows"]:
        expected = {"unseen": [30, 30], "seen": [60, 60], "full": [50, 50]}
        assert row["curves"] == {"0": {"step": [5, 5], **expected}}
    assert (tmp_path / "results/recipe.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "results/README.md").read_text()
    assert "| published settings | 1 | 30.0 | 60.0 | 50.0 | +0.0 (without the teacher) |" in page


def test_recorded_experiments():
    """The results of this repository belong to its commands; complete ones are interpreted."""
    findings = read_toml(FINDINGS)
    contents = {file.stem: read_json(file) for file in program.RESULTS.glob("*.json")}
    assert findings["found"].keys() <= contents.keys()
    recorded = []
    for each in EXPERIMENTS:
        rows = contents[each.name]["rows"] if each.name in contents else []
        run = {row["label"] for row in rows if row["values"]}
        recorded.append(replace(each, variants=tuple(v for v in each.variants if v.label in run)))
        if rows and len(run) == len(each.variants):
            assert each.name in findings["found"]
    assert sum(len(each.variants) for each in recorded) > 50
    runner = Runner(Path("nowhere"))
    assert missing_tasks(recorded, findings["seeds"], runner, program.RESULTS) == []


def test_the_list_shows_missing_commands(tmp_path):
    words = ["--results", tmp_path / "results", "--out", tmp_path / "out", "--seeds", "0", "--list"]
    only = ["--only", "vdetach", "--only", "topk"]
    lines = CliRunner().invoke(program.main, [str(word) for word in words + only]).output
    first, second = (line.split()[:2] for line in lines.splitlines())
    assert (first, second) == (["topk", "7"], ["vdetach", "5"])


@pytest.mark.parametrize(
    "words", [["--seeds", "x"], ["--seeds", ""], ["--only", "nothing"], ["--jobs", "0"]]
)
def test_wrong_use(words):
    assert CliRunner().invoke(program.main, words).exit_code == 2


def write_models(folder):
    """Untrained models instead of trained ones, because training starts processes and is slow."""
    vocabulary = load_vocabulary("toy")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        detector = toy_detector(max(vocabulary.category_ids))
    folder.mkdir(parents=True)
    save_file(detector.state_dict(), folder / "detector.safetensors")
    write_teacher(folder / "teacher", vocabulary, context_length=10)


SMALL = {
    "toy": ["--train", "30", "--test", "6"],
    "student": ["--epochs", "1", "--batch-size", "16", "--workers", "0", "--device", "cpu"],
}


def in_process(words, log):
    """Runs a small version of a command in this process, where the libraries are loaded already."""
    if words[1] == "toy-models":
        write_models(Path(words[2]))
        return 0
    group = {"eoid-cache": cache, "eoid-train": train, "eoid-data": data}[words[0]]
    group.main([*words[1:], *SMALL.get(words[1], [])], standalone_mode=False)
    return 0


def test_real_commands(tmp_path):
    teacher = teacher_score(CACHE)
    without = Variant("without", student("--no-distillation"), "plain")
    experiment = Experiment(
        "small", "Small", (Variant("plain", student(), None, teacher), without), ""
    )
    runner = Runner(tmp_path / "study", execute=in_process)
    for seed, artifact in missing_tasks([experiment], [0], runner, None):
        # In this thread, because the commands handle signals.
        assert runner.make(seed, artifact) == 0
    write_experiment(experiment, runner, [0], tmp_path)
    first, second = read_json(tmp_path / "small.json")["rows"]
    assert first["values"]["teacher_accuracy"] and second["values"]["full"]
