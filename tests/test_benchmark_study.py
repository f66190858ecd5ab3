"""The study: what it runs, what it finds again, and what it makes of the numbers."""

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

from benchmarks.demo import run_words
from benchmarks.study import __main__ as program
from benchmarks.study.__main__ import Plan, list_study, run_study
from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.experiments import DISTILLATION, EXPERIMENTS, SENTENCES, TOPK, VDETACH
from benchmarks.study.page import FINDINGS, write_experiment, write_page
from benchmarks.study.pieces import CACHE, MODELS, SPLITS, TINY, WHOLE, student, teacher_score
from benchmarks.study.records import Records
from benchmarks.study.tables import markdown, measure
from benchmarks.study.workshop import Workshop, estimate
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


class Machine:
    """Takes commands and leaves what they would leave, without the work."""

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
        elif kind == ("eoid-train", "evaluate") or "benchmarks.study.others" in words:
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
    """`plan(machine, experiments)` of two seeds below the test's folder."""

    def make(machine, *experiments, **changes):
        given = {"seeds": (0, 1), "out": tmp_path / "study", "results": tmp_path / "results"}
        return Plan(experiments or (VDETACH,), execute=machine, **{**given, **changes})

    return make


def kinds(machine):
    return [" ".join(words[:2]) for words in machine.commands]


def test_pieces_are_made_once_and_in_order(plan):
    machine = Machine()
    assert run_study(plan(machine, VDETACH, TOPK), lambda line: None) == 0
    for seed in (0, 1):
        mine = [words for words in machine.commands if any(f"seed-{seed}/" in w for w in words)]
        first = [" ".join(words[:2]) for words in mine][:4]
        assert first == [
            "eoid-data toy",
            "eoid-cache toy-models",
            "eoid-cache build",
            "eoid-train student",
        ]
        # The plain student is a row of both tables.
        assert len(mine) == 3 + 2 + 3
    assert len({json.dumps(words) for words in machine.commands}) == len(machine.commands)
    again = Machine()
    assert run_study(plan(again, VDETACH, TOPK), lambda line: None) == 0
    assert again.commands == []


def test_commands_are_complete(plan, tmp_path):
    machine = Machine()
    run_study(plan(machine, *EXPERIMENTS, seeds=(3,)), lambda line: None)
    words = [word for command in machine.commands for word in command]
    assert not any("<" in word for word in words)
    assert {word for word in words if word.endswith(".toml")} <= {
        str(path) for path in SPLITS.glob("*.toml")
    }
    (other,) = (command for command in machine.commands if "23" in command)
    assert other[:2] == ["eoid-data", "toy"], "further pictures are of a seed of their own"


@pytest.mark.parametrize("split", ["uc-1", "rf-uc", "nf-uc"])
def test_splits_keep_every_verb_and_object_seen(split):
    vocabulary = load_vocabulary("toy")
    loaded = load_split(vocabulary, SPLITS / f"{split}.toml")
    assert len(loaded.unseen) == 10
    seen = [pair for hoi, pair in enumerate(vocabulary.interactions) if hoi not in loaded.unseen]
    assert {verb for verb, _ in seen} == set(range(vocabulary.num_verbs))
    assert {label for _, label in seen} == set(range(1, vocabulary.num_objects))
    # As in the named UC, the teacher is asked about every action.
    assert loaded.distilled_verbs.sum() == vocabulary.num_verbs - 1


@pytest.mark.parametrize("code", [130, 143, 75])
def test_a_stopped_study_goes_on(plan, code):
    whole = Machine()
    said = []
    assert run_study(plan(Machine(stop_at=5, code=code)), said.append) == code
    assert "stopped; the same command resumes" in said
    first = plan(Machine()).results / "vdetach.json"
    assert len(read_json(first)["rows"][0]["values"]["unseen"]) == 1
    assert run_study(plan(whole), said.append) == 0
    assert len(whole.commands) == 5
    assert len(read_json(first)["rows"][0]["values"]["unseen"]) == 2


def test_a_budget_ends_between_commands(plan):
    said = []
    assert run_study(plan(Machine(), budget=0.0), said.append) == 0
    assert "0 minutes are over; the same command resumes" in said


def test_a_failing_command_stops_only_what_needs_it(plan):
    machine, said = Machine(failing=("--no-vdetach",)), []
    assert run_study(plan(machine, VDETACH, TOPK), said.append) == 1
    assert sum("this command failed" in line for line in said) == 2
    assert kinds(machine).count("eoid-train student") == 2 * 5
    broken = Machine(failing=("build",))
    assert run_study(plan(broken, VDETACH, TOPK, seeds=(8,)), said.append) == 1
    assert kinds(broken) == ["eoid-data toy", "eoid-cache toy-models", "eoid-cache build"]


def test_a_demos_models_are_used_where_they_are(plan, tmp_path):
    demo = tmp_path / "demo/seed-0"
    write_json(demo / "stages.json", {"seconds": {}, "finished": ["toy", "models"]})
    (demo / "models").mkdir()
    (demo / "models/detector.safetensors").write_text("")
    machine = Machine()
    given = plan(machine, seeds=(0,), base=tmp_path / "demo")
    assert run_study(given, lambda line: None) == 0
    assert kinds(machine)[:2] == ["eoid-data toy", "eoid-cache build"]
    assert str(demo / "models/detector.safetensors") in machine.commands[1]
    (workshop,) = given.workshops()
    assert workshop.place(MODELS) == demo / "models" and workshop.place(CACHE).parent != demo
    small = Workshop(tmp_path, 0, machine, TINY, tmp_path / "demo")
    assert not small.is_made(MODELS), "small models are others"


def test_what_was_measured_before_is_not_run_again(plan, tmp_path):
    first = Machine()
    assert run_study(plan(first, VDETACH, TOPK), lambda line: None) == 0
    before = read_json(tmp_path / "results/topk.json")

    elsewhere = {"out": tmp_path / "another machine"}
    again, said = Machine(), []
    assert run_study(plan(again, VDETACH, TOPK, **elsewhere), said.append) == 0
    assert again.commands == [] and said[0].startswith("nothing to run")
    assert read_json(tmp_path / "results/topk.json") == before

    more = Machine()
    assert run_study(plan(more, TOPK, seeds=(2,), **elsewhere), lambda line: None) == 0
    assert len(more.commands) == 3 + 4
    after = read_json(tmp_path / "results/topk.json")
    assert after["seeds"] == [0, 1, 2]
    assert set(after["rows"][0]["values"]["full"]) == {"0", "1", "2"}

    anew = Machine()
    assert run_study(plan(anew, VDETACH, rerun=True, seeds=(0,), **elsewhere), str) == 0
    assert len(anew.commands) == 3 + 2
    others = read_json(tmp_path / "results/vdetach.json")["rows"][1]["values"]["full"]
    assert set(others) == {"0", "1"}, "the other seed's numbers stay"


def test_records_of_other_commands_and_sizes_do_not_count(plan, tmp_path):
    assert run_study(plan(Machine(), VDETACH), lambda line: None) == 0
    plain, _ = VDETACH.variants
    records = Records.read(tmp_path / "results")
    assert records.has(plain, WHOLE, 1) and not records.has(plain, WHOLE, 2)
    assert not records.has(plain, TINY, 1)
    assert not records.has(replace(plain, run=student("--topk", "7")), WHOLE, 1)
    # Without its teacher's score a row is not complete where that is part of the question.
    assert not records.has(replace(plain, teacher=teacher_score(CACHE)), WHOLE, 1)
    assert Records.read(tmp_path / "nothing there") == Records()


def test_commands_run_beside_each_other_after_what_they_need(plan):
    together, alone = threading.Barrier(2, timeout=60), Machine()

    class Watching(Machine):
        logs = ()

        def __call__(self, words, log=None):
            if words[1] == "student" and len(self.logs) < 2:
                self.logs = (*self.logs, log)
                together.wait()
            return super().__call__(words)

    machine = Watching()
    assert run_study(plan(machine, VDETACH, jobs=2), lambda line: None) == 0
    assert all(log.name.startswith("student-ua-") and log.suffix == ".log" for log in machine.logs)
    for seed in (0, 1):
        mine = [words[1] for words in machine.commands if any(f"seed-{seed}/" in w for w in words)]
        assert sorted(mine[:2]) == ["toy", "toy-models"] and mine[2] == "build"
    assert run_study(plan(alone, VDETACH, out=Path("nowhere")), lambda line: None) == 0
    assert alone.commands == [], "all of it is in the results"


def test_a_stop_lets_the_others_end(plan):
    begun = threading.Event()

    class Stopping(Machine):
        def __call__(self, words, log=None):
            if words[1] == "student" and "--no-vdetach" in words:
                begun.wait(60)
                return 75
            begun.set()
            if words[1] == "student":
                time.sleep(0.2)
            return super().__call__(words)

    machine, said = Stopping(), []
    assert run_study(plan(machine, VDETACH, jobs=2, seeds=(0,)), said.append) == 75
    assert kinds(machine)[-1] == "eoid-train student", "the one beside it has ended"
    rest = Machine()
    assert run_study(plan(rest, VDETACH, seeds=(0,)), said.append) == 0
    assert len(rest.commands) == 1 and "--no-vdetach" in rest.commands[0]


def test_ctrl_c_ends_the_study_after_its_commands(plan):
    class Interrupted(Machine):
        def __call__(self, words, log=None):
            signal.raise_signal(signal.SIGINT)
            return super().__call__(words)

    machine = Interrupted()
    assert run_study(plan(machine, VDETACH, jobs=2, seeds=(0,)), lambda line: None) == 130
    assert 1 <= len(machine.commands) <= 2


def test_a_commands_lines_go_to_its_log(tmp_path):
    log = tmp_path / "it.log"
    assert (
        run_words([Path(sys.executable).name, "-c", "print(6 * 7); raise SystemExit(3)"], log) == 3
    )
    first, second = log.read_text().splitlines()
    assert first.startswith("$ ") and second == "42"


def test_other_commands_make_other_pieces():
    pieces = [CACHE, student(), student("--topk", "5"), student(split="uc"), student(split="uc-1")]
    pieces += [variant.run for experiment in EXPERIMENTS for variant in experiment.variants]
    digests = {(piece.command, piece.needs): piece.digest for piece in pieces}
    assert len(set(digests.values())) == len(digests)
    assert student().folder == student().folder
    assert dict(student().needs)["models"] is MODELS


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
    given = plan(Machine())
    run_study(given, lambda line: None)
    measured = measure(VDETACH, given.workshops())
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


def test_a_small_toys_test_part_may_lack_a_group(plan):
    given = plan(Machine(), seeds=(0,))
    run_study(given, lambda line: None)
    (workshop,) = given.workshops()
    file = workshop.place(student()) / "results.json"
    write_json(file, {"metrics": {"full": 0.1, "seen": 0.1, "unseen": None}})
    kept, through = measure(VDETACH, [workshop])["rows"]
    assert "unseen" not in kept["mean"] and through["against"] is None
    assert "| detached | 1 |  | 10.0 ± 0.0 |" in markdown(measure(VDETACH, [workshop]))


def test_published_numbers_stand_beside_ours(plan):
    given = plan(Machine(), DISTILLATION, seeds=(0,))
    run_study(given, lambda line: None)
    table = markdown(measure(DISTILLATION, given.workshops()))
    assert "23.0 / 30.5 / 29.2 |" in table and "paper: unseen / seen / full" in table


def test_page_and_figures(plan, tmp_path):
    given = plan(Machine(), VDETACH, TOPK, SENTENCES, seeds=(0, 1))
    run_study(given, lambda line: None)
    folder = given.results
    for name in ("vdetach", "topk", "sentences"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "README.md").read_text()
    assert page.count("\n## ") == 3 and "![" in page and "*The paper.*" in page
    assert "teacher's accuracy" in page and "Seeds 0, 1." in page
    before = (folder / "vdetach.png").stat().st_mtime_ns
    write_experiment(VDETACH, given.workshops(), folder, Records())
    assert (folder / "vdetach.png").stat().st_mtime_ns == before
    assert write_experiment(DISTILLATION, given.workshops()[:0], folder, Records()) is None
    write_page((), tmp_path / "none")
    assert "##" not in (tmp_path / "none/README.md").read_text()


def test_words_stand_beside_the_numbers_they_speak_of(plan, tmp_path):
    assert run_study(plan(Machine(), SENTENCES, VDETACH), lambda line: None) == 0
    page = tmp_path / "results/README.md"
    assert "*The toy dataset.*" not in page.read_text(), "one seed is missing"
    assert run_study(plan(Machine(), SENTENCES, seeds=(2,)), lambda line: None) == 0
    assert page.read_text().count("*The toy dataset.*") == 1


def test_there_are_numbers_wherever_there_are_words():
    words = read_toml(FINDINGS)["found"]
    assert words.keys() <= {file.stem for file in program.RESULTS.glob("*.json")} | {
        experiment.name for experiment in EXPERIMENTS
    }


def test_the_list_tells_what_is_missing(plan):
    said = []
    list_study(plan(Machine(), VDETACH, TOPK, seeds=(0,)), said.append)
    assert re.match(r"vdetach +2 rows,   5 commands to run, about 6 min", said[0])
    assert re.match(r"topk +4 rows,   3 commands to run", said[1])
    assert said[2].startswith("total: 8 commands left")


def test_remaining_time_follows_the_commands_that_were_run(plan, tmp_path):
    given = plan(Machine(), seeds=(0,))
    run_study(given, lambda line: None)
    (workshop,) = given.workshops()
    assert estimate([workshop], [student()] * 3) == 0
    fresh = Workshop(tmp_path / "fresh", 0, Machine())
    assert estimate([fresh], [student()] * 3) > 100


@pytest.mark.parametrize(
    "words", [["--seeds", "x"], ["--seeds", ""], ["--only", "nothing"], ["--jobs", "0"]]
)
def test_wrong_use(words, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def write_models(folder):
    """Untrained models in the place of trained ones: training starts processes, which take long."""
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
    """A command in this process; the libraries are loaded already."""
    if words[1] == "toy-models":
        write_models(Path(words[2]))
        return 0
    group = {"eoid-cache": cache, "eoid-train": train, "eoid-data": data}[words[0]]
    group.main(words[1:], standalone_mode=False)
    return 0


def test_a_tiny_study_stops_half_way_and_goes_on(tmp_path):
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
