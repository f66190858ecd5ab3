"""The study: commands that it runs, recorded results, tables, figures and the page."""

import json
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.demo import run_command
from benchmarks.study import __main__ as program
from benchmarks.study.__main__ import Plan, list_study, run_study
from benchmarks.study.artifacts import CACHE, MODELS, SPLITS, TINY, WHOLE, student, teacher_score
from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.experiments import DISTILLATION, EXPERIMENTS, SENTENCES, TOPK, VDETACH
from benchmarks.study.page import FINDINGS, write_experiment, write_page
from benchmarks.study.records import Records
from benchmarks.study.runner import SeedRunner, estimate
from benchmarks.study.tables import markdown, measure
from pipeline.cli import data
from pipeline.splits import load_split
from pipeline.utils.files import read_json, read_toml, write_json
from pipeline.vocabulary import load_vocabulary
from student.cli import train
from teacher_cache.cli import cache
from teacher_cache.detectors.torchvision import toy_detector
from teacher_cache.teachers.clip import build_clip, save_clip
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.teachers.word_tokenizer import WordTokenizer
from teacher_cache.toy.models import clip_config

GROUPS = {"full": 0.5, "seen": 0.6, "unseen": 0.3}


class FakeCommands:
    """Stands in for commands: records them, and writes the files that they would write."""

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
        kind, place = tuple(words[:2]), self.place(words)
        if kind == ("eoid-cache", "evaluate"):
            write_json(place, {"extra": {"teacher_accuracy": 0.9}})
        elif kind == ("eoid-train", "student"):
            shift = 0.01 * int(words[words.index("--seed") + 1])
            shift += 0.1 * ("--no-vdetach" in words)
            metrics = {name: value + shift for name, value in GROUPS.items()}
            write_json(place / "results.json", {"metrics": metrics})
        elif kind == ("eoid-train", "evaluate") or "benchmarks.study.other_prompts" in words:
            write_json(place / "results.json", {"metrics": GROUPS})
        elif kind == ("eoid-cache", "prompts"):
            place.parent.mkdir(parents=True)
            place.write_text("")
        else:
            for name in ("dataset.toml", "detector.safetensors", "manifest.json"):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text("")
            weights = place / "teacher/open_clip_model.safetensors"
            weights.parent.mkdir(exist_ok=True)
            weights.write_text("")
        return 0

    @staticmethod
    def place(words):
        for option in ("--out", "--json"):
            if option in words:
                return Path(words[words.index(option) + 1])
        return Path(words[2])


@pytest.fixture
def plan(tmp_path):
    """`plan(commands_run, experiments)` of two seeds below the test's folder."""

    def make(commands_run, *experiments, **changes):
        given = {"seeds": (0, 1), "out": tmp_path / "study", "results": tmp_path / "results"}
        return Plan(experiments or (VDETACH,), execute=commands_run, **{**given, **changes})

    return make


def kinds(commands_run):
    return [" ".join(words[:2]) for words in commands_run.commands]


def test_commands_run_once_and_in_order(plan):
    commands_run = FakeCommands()
    assert run_study(plan(commands_run, VDETACH, TOPK), lambda line: None) == 0
    for seed in (0, 1):
        mine = [
            words for words in commands_run.commands if any(f"seed-{seed}/" in w for w in words)
        ]
        first = [" ".join(words[:2]) for words in mine][:4]
        assert first == [
            "eoid-data toy",
            "eoid-cache toy-models",
            "eoid-cache build",
            "eoid-train student",
        ]
        # The plain student is a row of both tables.
        assert len(mine) == 3 + 2 + 3
    assert len({json.dumps(words) for words in commands_run.commands}) == len(commands_run.commands)
    again = FakeCommands()
    assert run_study(plan(again, VDETACH, TOPK), lambda line: None) == 0
    assert again.commands == []


def test_commands_are_complete(plan, tmp_path):
    commands_run = FakeCommands()
    run_study(plan(commands_run, *EXPERIMENTS, seeds=(3,)), lambda line: None)
    words = [word for command in commands_run.commands for word in command]
    assert not any("<" in word for word in words)
    assert {word for word in words if word.endswith(".toml")} <= {
        str(path) for path in SPLITS.glob("*.toml")
    }
    (other,) = (command for command in commands_run.commands if "23" in command)
    assert other[:2] == ["eoid-data", "toy"], "additional images have another seed"


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
def test_a_stopped_study_resumes(plan, code):
    whole = FakeCommands()
    lines = []
    assert run_study(plan(FakeCommands(stop_at=5, code=code)), lines.append) == code
    assert "stopped; the same command resumes" in lines
    first = plan(FakeCommands()).results / "vdetach.json"
    assert len(read_json(first)["rows"][0]["values"]["unseen"]) == 1
    assert run_study(plan(whole), lines.append) == 0
    assert len(whole.commands) == 5
    assert len(read_json(first)["rows"][0]["values"]["unseen"]) == 2


def test_a_budget_ends_between_commands(plan):
    lines = []
    assert run_study(plan(FakeCommands(), budget=0.0), lines.append) == 0
    assert "0 minutes are over; the same command resumes" in lines


def test_a_failing_command_stops_only_those_that_depend_on_it(plan):
    commands_run, lines = FakeCommands(failing=("--no-vdetach",)), []
    assert run_study(plan(commands_run, VDETACH, TOPK), lines.append) == 1
    assert sum("this command failed" in line for line in lines) == 2
    assert kinds(commands_run).count("eoid-train student") == 2 * 5
    broken = FakeCommands(failing=("build",))
    assert run_study(plan(broken, VDETACH, TOPK, seeds=(8,)), lines.append) == 1
    assert kinds(broken) == ["eoid-data toy", "eoid-cache toy-models", "eoid-cache build"]


def test_models_of_a_demo_are_used_in_place(plan, tmp_path):
    demo = tmp_path / "demo/seed-0"
    write_json(demo / "stages.json", {"seconds": {}, "finished": ["toy", "models"]})
    (demo / "models").mkdir()
    (demo / "models/detector.safetensors").write_text("")
    commands_run = FakeCommands()
    given = plan(commands_run, seeds=(0,), base=tmp_path / "demo")
    assert run_study(given, lambda line: None) == 0
    assert kinds(commands_run)[:2] == ["eoid-data toy", "eoid-cache build"]
    assert str(demo / "models/detector.safetensors") in commands_run.commands[1]
    (runner,) = given.runners()
    assert runner.path(MODELS) == demo / "models" and runner.path(CACHE).parent != demo
    small = SeedRunner(tmp_path, 0, commands_run, TINY, tmp_path / "demo")
    assert not small.is_made(MODELS), "small models differ from the demo's"


def test_recorded_results_are_not_computed_again(plan, tmp_path):
    first = FakeCommands()
    assert run_study(plan(first, VDETACH, TOPK), lambda line: None) == 0
    before = read_json(tmp_path / "results/topk.json")

    elsewhere = {"out": tmp_path / "another commands_run"}
    again, lines = FakeCommands(), []
    assert run_study(plan(again, VDETACH, TOPK, **elsewhere), lines.append) == 0
    assert again.commands == [] and lines[0].startswith("nothing to run")
    assert read_json(tmp_path / "results/topk.json") == before

    more = FakeCommands()
    assert run_study(plan(more, TOPK, seeds=(2,), **elsewhere), lambda line: None) == 0
    assert len(more.commands) == 3 + 4
    after = read_json(tmp_path / "results/topk.json")
    assert after["seeds"] == [0, 1, 2]
    assert set(after["rows"][0]["values"]["full"]) == {"0", "1", "2"}

    anew = FakeCommands()
    assert run_study(plan(anew, VDETACH, rerun=True, seeds=(0,), **elsewhere), str) == 0
    assert len(anew.commands) == 3 + 2
    others = read_json(tmp_path / "results/vdetach.json")["rows"][1]["values"]["full"]
    assert set(others) == {"0", "1"}, "the numbers of the other seed are kept"


def test_records_of_other_commands_and_sizes_do_not_count(plan, tmp_path):
    assert run_study(plan(FakeCommands(), VDETACH), lambda line: None) == 0
    plain, _ = VDETACH.variants
    records = Records.read(tmp_path / "results")
    assert records.has(plain, WHOLE, 1) and not records.has(plain, WHOLE, 2)
    assert not records.has(plain, TINY, 1)
    assert not records.has(replace(plain, run=student("--topk", "7")), WHOLE, 1)
    # A row with a teacher is incomplete without the teacher's score.
    assert not records.has(replace(plain, teacher=teacher_score(CACHE)), WHOLE, 1)
    assert Records.read(tmp_path / "nothing there") == Records()


def test_commands_run_in_parallel_after_those_of_their_inputs(plan):
    together, alone = threading.Barrier(2, timeout=60), FakeCommands()

    class Watching(FakeCommands):
        logs = ()

        def __call__(self, words, log=None):
            if words[1] == "student" and len(self.logs) < 2:
                self.logs = (*self.logs, log)
                together.wait()
            return super().__call__(words)

    commands_run = Watching()
    assert run_study(plan(commands_run, VDETACH, jobs=2), lambda line: None) == 0
    assert all(
        log.name.startswith("student-ua-") and log.suffix == ".log" for log in commands_run.logs
    )
    for seed in (0, 1):
        mine = [
            words[1] for words in commands_run.commands if any(f"seed-{seed}/" in w for w in words)
        ]
        assert sorted(mine[:2]) == ["toy", "toy-models"] and mine[2] == "build"
    assert run_study(plan(alone, VDETACH, out=Path("nowhere")), lambda line: None) == 0
    assert alone.commands == [], "all results are recorded"


def test_after_a_stop_running_commands_end(plan):
    begun = threading.Event()

    class Stopping(FakeCommands):
        def __call__(self, words, log=None):
            if words[1] == "student" and "--no-vdetach" in words:
                begun.wait(60)
                return 75
            begun.set()
            if words[1] == "student":
                time.sleep(0.2)
            return super().__call__(words)

    commands_run, lines = Stopping(), []
    assert run_study(plan(commands_run, VDETACH, jobs=2, seeds=(0,)), lines.append) == 75
    assert kinds(commands_run)[-1] == "eoid-train student", "the parallel command has ended"
    rest = FakeCommands()
    assert run_study(plan(rest, VDETACH, seeds=(0,)), lines.append) == 0
    assert len(rest.commands) == 1 and "--no-vdetach" in rest.commands[0]


def test_ctrl_c_ends_the_study_after_its_commands(plan):
    class Interrupted(FakeCommands):
        def __call__(self, words, log=None):
            signal.raise_signal(signal.SIGINT)
            return super().__call__(words)

    commands_run = Interrupted()
    assert run_study(plan(commands_run, VDETACH, jobs=2, seeds=(0,)), lambda line: None) == 130
    assert 1 <= len(commands_run.commands) <= 2


def test_output_of_a_command_goes_to_its_log(tmp_path):
    log = tmp_path / "it.log"
    assert (
        run_command([Path(sys.executable).name, "-c", "print(6 * 7); raise SystemExit(3)"], log)
        == 3
    )
    first, second = log.read_text().splitlines()
    assert first.startswith("$ ") and second == "42"


def test_different_commands_have_different_digests():
    artifacts = [
        CACHE,
        student(),
        student("--topk", "5"),
        student(split="uc"),
        student(split="uc-1"),
    ]
    artifacts += [variant.run for experiment in EXPERIMENTS for variant in experiment.variants]
    digests = {(artifact.command, artifact.inputs): artifact.digest for artifact in artifacts}
    assert len(set(digests.values())) == len(digests)
    assert student().folder == student().folder
    assert dict(student().inputs)["models"] is MODELS


def test_every_experiment_compares_with_one_of_its_rows():
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)
    for experiment in EXPERIMENTS:
        labels = [variant.label for variant in experiment.variants]
        assert len(set(labels)) == len(labels)
        for variant in experiment.variants:
            other = variant.against or experiment.reference
            assert other is None or other in labels


def test_numbers_and_table(plan):
    given = plan(FakeCommands())
    run_study(given, lambda line: None)
    measured = measure(VDETACH, given.runners())
    kept, through = measured["rows"]
    assert kept["values"]["unseen"] == {"0": pytest.approx(30), "1": pytest.approx(31)}
    assert kept["mean"]["unseen"] == 30.5
    assert kept["spread"]["unseen"] == pytest.approx(0.707, abs=1e-3)
    assert "against" not in kept
    assert through["against"]["mean"] == 10 and through["against"]["spread"] == 0
    assert through["against"]["wins"] == through["against"]["seeds"] == 2
    lines = markdown(measured).splitlines()
    assert lines[0] == "|  | seeds | unseen | seen | full | unseen against | higher in |"
    assert lines[2] == "| detached | 2 | 30.5 ± 0.7 | 60.5 ± 0.7 | 50.5 ± 0.7 |  |  |"
    assert lines[3].endswith("| +10.0 ± 0.0 (detached) | 2 of 2 |")


def test_a_small_test_part_may_lack_a_group(plan):
    given = plan(FakeCommands(), seeds=(0,))
    run_study(given, lambda line: None)
    (runner,) = given.runners()
    file = runner.path(student()) / "results.json"
    write_json(file, {"metrics": {"full": 0.1, "seen": 0.1, "unseen": None}})
    kept, through = measure(VDETACH, [runner])["rows"]
    assert "unseen" not in kept["mean"] and through["against"] is None
    assert "| detached | 1 |  | 10.0 ± 0.0 |" in markdown(measure(VDETACH, [runner]))


def test_published_results_are_in_the_table(plan):
    given = plan(FakeCommands(), DISTILLATION, seeds=(0,))
    run_study(given, lambda line: None)
    table = markdown(measure(DISTILLATION, given.runners()))
    assert "23.0 / 30.5 / 29.2 |" in table and "paper: unseen / seen / full" in table


def test_page_and_figures(plan, tmp_path):
    given = plan(FakeCommands(), VDETACH, TOPK, SENTENCES, seeds=(0, 1))
    run_study(given, lambda line: None)
    folder = given.results
    for name in ("vdetach", "topk", "sentences"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "README.md").read_text()
    assert page.count("\n## ") == 3 and "![" in page and "*The paper.*" in page
    assert "teacher's accuracy" in page and "Seeds 0, 1." in page
    before = (folder / "vdetach.png").stat().st_mtime_ns
    write_experiment(VDETACH, given.runners(), folder, Records())
    assert (folder / "vdetach.png").stat().st_mtime_ns == before
    assert write_experiment(DISTILLATION, given.runners()[:0], folder, Records()) is None
    write_page((), tmp_path / "none")
    assert "##" not in (tmp_path / "none/README.md").read_text()


def test_findings_are_shown_with_results_of_their_seeds(plan, tmp_path):
    assert run_study(plan(FakeCommands(), SENTENCES, VDETACH), lambda line: None) == 0
    page = tmp_path / "results/README.md"
    assert "*The toy dataset.*" not in page.read_text(), "one seed is missing"
    assert run_study(plan(FakeCommands(), SENTENCES, seeds=(2,)), lambda line: None) == 0
    assert page.read_text().count("*The toy dataset.*") == 1


def test_every_finding_belongs_to_an_experiment():
    words = read_toml(FINDINGS)["found"]
    assert words.keys() <= {file.stem for file in program.RESULTS.glob("*.json")} | {
        experiment.name for experiment in EXPERIMENTS
    }


def test_the_list_shows_missing_commands(plan):
    lines = []
    list_study(plan(FakeCommands(), VDETACH, TOPK, seeds=(0,)), lines.append)
    assert re.match(r"vdetach +2 rows,   5 commands to run, about 6 min", lines[0])
    assert re.match(r"topk +4 rows,   3 commands to run", lines[1])
    assert lines[2].startswith("total: 8 commands left")


def test_estimates_use_the_durations_of_past_commands(plan, tmp_path):
    given = plan(FakeCommands(), seeds=(0,))
    run_study(given, lambda line: None)
    (runner,) = given.runners()
    assert estimate([runner], [student()] * 3) == 0
    fresh = SeedRunner(tmp_path / "fresh", 0, FakeCommands())
    assert estimate([fresh], [student()] * 3) > 100


@pytest.mark.parametrize(
    "words", [["--seeds", "x"], ["--seeds", ""], ["--only", "nothing"], ["--jobs", "0"]]
)
def test_wrong_use(words, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def write_models(folder):
    """Untrained models instead of trained ones, because training starts processes and is slow."""
    vocabulary = load_vocabulary("toy")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        detector = toy_detector(max(vocabulary.category_ids))
    folder.mkdir(parents=True)
    save_file(detector.state_dict(), folder / "detector.safetensors")
    prompts = interaction_prompts(vocabulary)
    words = {word for group in prompts for prompt in group for word in prompt.split()}
    tokenizer = WordTokenizer(sorted(words), 10)
    config = clip_config(tokenizer)
    model = build_clip(config, torch.Generator().manual_seed(3))
    preprocessing = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    save_clip(folder / "teacher", model, config, preprocessing, tokenizer)


def in_process(words):
    """Runs a command in this process, where the libraries are loaded already."""
    if words[1] == "toy-models":
        write_models(Path(words[2]))
        return 0
    group = {"eoid-cache": cache, "eoid-train": train, "eoid-data": data}[words[0]]
    group.main(words[1:], standalone_mode=False)
    return 0


def test_an_interrupted_tiny_study_resumes(tmp_path):
    calls = []

    def execute(words, log):
        if len(calls) == stop_at:
            return 130
        calls.append(words)
        if words[:2] == ["eoid-train", "student"]:
            words = [*words, "--workers", "0", "--device", "cpu"]
        return in_process(words)

    own = student()
    variants = (
        Variant("plain", own, teacher=teacher_score(CACHE)),
        Variant("without", student("--no-distillation"), "plain"),
    )
    small = (Experiment("small", "A small one", variants, None, "Nothing."),)
    plan = Plan(small, (0,), tmp_path / "study", tmp_path / "out", TINY, execute=execute)
    stop_at = 4
    assert run_study(plan) == 130
    assert [row["label"] for row in read_json(tmp_path / "out/small.json")["rows"]][:1] == ["plain"]
    stop_at = None
    assert run_study(plan) == 0
    assert len(calls) == 6 and len({tuple(words) for words in calls}) == 6
    plain, without = read_json(tmp_path / "out/small.json")["rows"]
    assert plain["values"]["teacher_accuracy"] and without["values"]["full"]
    assert (tmp_path / "out/small.png").is_file()
