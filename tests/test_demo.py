"""The demo's own parts, with programs that only pretend to be the project's commands."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks import demo
from benchmarks.demo import Stages, describe, summary
from pipeline.utils.files import read_json

ROOT, PYTHON = Path(__file__).parents[1], sys.executable
EXTRA = {"teacher_accuracy": 0.97, "person_recall": 0.99, "object_recall": 0.875}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """`programs(name="shell script")` puts programs where the demo looks for the commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def make(**scripts):
        for name, script in scripts.items():
            file = folder / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)

    return make


def scores(full, seen, unseen, **extra):
    metrics = {"full": full, "seen": seen, "unseen": unseen, "rare": None}
    return {"metrics": metrics, "extra": extra}


RESULTS = {
    "distilled": scores(0.7, 0.72, 0.61),
    "no_distillation": scores(0.55, 0.73, 0.01),
    "teacher": scores(0.5, 0.55, 0.45, **EXTRA),
}
CEILING = {**RESULTS, "all_labels": scores(0.75, 0.74, 0.76)}


def test_a_stage_is_echoed_and_timed(programs, tmp_path, capfd):
    stages = Stages(tmp_path / "stages.json")
    programs(eoid_data=f'echo "$@" > {tmp_path}/words')
    stages.run("toy", "eoid-data", "toy", tmp_path / "out", "--seed", 3)
    assert (tmp_path / "words").read_text() == f"toy {tmp_path}/out --seed 3\n"
    out, _ = capfd.readouterr()
    assert f"$ eoid-data toy {tmp_path}/out --seed 3\n" in out and "\ntoy: 0 s\n" in out
    assert read_json(stages.file) == {"finished": ["toy"], "seconds": stages.seconds}


@pytest.mark.parametrize(
    ("script", "code"), [("exit 2", 2), ("exit 130", 130), ("kill -9 $$", 137)]
)
def test_times_of_all_attempts_add_up_until_one_ends_well(programs, tmp_path, script, code):
    """A stage that fails ends the demo with its exit code."""
    file = tmp_path / "stages.json"
    file.write_text(json.dumps({"seconds": {"cache": 100.0}, "finished": []}))
    programs(eoid_cache=script)
    with pytest.raises(SystemExit) as ended:
        Stages(file).run("cache", "eoid-cache", "build")
    assert ended.value.code == code
    after_failure = read_json(file)
    assert after_failure["seconds"]["cache"] >= 100 and after_failure["finished"] == []
    programs(eoid_cache="exit 0")
    Stages(file).run("cache", "eoid-cache")
    done = read_json(file)
    assert done["finished"] == ["cache"]
    assert done["seconds"]["cache"] >= after_failure["seconds"]["cache"]
    # From now on the command finds everything done; what it took stays what it took.
    Stages(file).run("cache", "eoid-cache")
    assert read_json(file) == done


@pytest.mark.parametrize("ending", [130, 0])
def test_ctrl_c_leaves_the_command_its_time(programs, tmp_path, ending):
    programs(eoid_train=f"trap 'sleep 0.6; touch {tmp_path}/saved; exit {ending}' INT\n"
             f"touch {tmp_path}/started\nwhile true; do sleep 0.05; done")  # fmt: skip

    def press():
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            for process in child.read_text().split():
                os.kill(int(process), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    if not Path(f"/proc/{os.getpid()}/task").is_dir():
        pytest.skip("finds the command's process through /proc")
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        Stages(tmp_path / "stages.json").run("distilled", "eoid-train", "student")
    thread.join()
    assert ended.value.code == 130 and (tmp_path / "saved").exists()


def test_two_commands_beside_each_other(programs, tmp_path, capfd):
    programs(eoid_train='echo "$1 $OMP_NUM_THREADS"; echo progress >&2')
    stages = Stages(tmp_path / "stages.json")
    stages.run("students", "eoid-train", "one", beside=("eoid-train", "two"))
    out, err = capfd.readouterr()
    assert "\n$ eoid-train one\n" in out and "\n$ eoid-train two\n" in out
    assert "\none 1\n" in out and "two 1" not in out and err == "progress\n"
    assert (tmp_path / "students.log").read_text() == "$ eoid-train two\ntwo 1\nprogress\n"


ENDLESS = "while true; do sleep 0.05; done"


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_ends_the_other_command_too(programs, tmp_path, failing):
    programs(eoid_train=f'[ "$1" = {failing} ] && exit 3\n'
             f"trap 'touch {tmp_path}/saved; exit 75' TERM\n{ENDLESS}")  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        Stages(tmp_path / "stages.json").run("students", "eoid-train", 0, beside=("eoid-train", 1))
    assert ended.value.code == 3


def test_sigterm_ends_both_commands(programs, tmp_path):
    programs(eoid_train=f"trap 'sleep 0.2; touch {tmp_path}/saved-$1; exit 75' TERM\n"
             f"touch {tmp_path}/started-$1\n{ENDLESS}")  # fmt: skip

    def terminate():
        while len(list(tmp_path.glob("started-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        Stages(tmp_path / "stages.json").run("students", "eoid-train", 0, beside=("eoid-train", 1))
    thread.join()
    assert ended.value.code == 75 and len(list(tmp_path.glob("saved-*"))) == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_summary_has_the_promised_fields():
    seconds = {"toy": 9.1, "models": 100.25}
    value = summary(RESULTS, "ua", 7, seconds)
    assert value == {
        "seconds": pytest.approx(109.3, abs=0.06),
        "stages": seconds,
        "split": "ua",
        "seed": 7,
        "distilled": {"full": 0.7, "seen": 0.72, "unseen": 0.61},
        "no_distillation": {"full": 0.55, "seen": 0.73, "unseen": 0.01},
        "teacher": {"full": 0.5, "seen": 0.55, "unseen": 0.45, **EXTRA},
    }


@pytest.mark.parametrize("high", [0.76, 0.01, None])
def test_gap_closed_with_a_ceiling(high):
    value = summary({**CEILING, "all_labels": scores(0.75, 0.74, high)}, "ua", 0, {})
    assert value["all_labels"]["unseen"] == high
    gap = (0.61 - 0.01) / (0.76 - 0.01)
    assert value.get("gap_closed") == (pytest.approx(gap) if high == 0.76 else None)


def test_the_description_names_every_number():
    text = describe(summary(CEILING, "ua", 0, {"toy": 9.4, "distilled": 90.0}))
    rows = {line[:18].strip(): line[18:].split() for line in text.splitlines()}
    assert rows["Distilled"] == ["70.0", "72.0", "61.0"]
    assert rows["No distillation"] == ["55.0", "73.0", "1.0"]
    assert rows["All labels"] == ["75.0", "74.0", "76.0"]
    assert rows["Teacher itself"] == ["50.0", "55.0", "45.0"]
    assert "teacher accuracy 0.970, person recall 0.990, object recall 0.875" in text
    assert "gap closed by distillation: 0.80" in text
    assert text.endswith("99 s in total: toy 9, distilled 90")


FAKE = """
import json, sys
from pathlib import Path

del sys.argv[0]

def value(option):
    return Path(sys.argv[sys.argv.index(option) + 1])

def write(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"full": 0.5, "seen": 0.6, "unseen": 0.4}
    extra = {"teacher_accuracy": 1, "person_recall": 1, "object_recall": 1}
    file.write_text(json.dumps({"metrics": metrics, "extra": extra}))

with open(Path(sys.argv[0]).parent / "calls", "a") as calls:
    calls.write(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
if sys.argv[1] in ("student",) or "--out" in sys.argv and sys.argv[1] == "evaluate":
    write(value("--out") / "results.json")
elif sys.argv[1] == "evaluate":
    write(value("--json"))
"""


@pytest.fixture
def fakes(programs, tmp_path):
    """Commands that write down how they were called and leave results; gives their calls."""
    fake, log = tmp_path / "fake.py", tmp_path / "bin/calls"
    fake.write_text(FAKE)
    script = f"exec '{PYTHON}' '{fake}' \"$0\" \"$@\""
    programs(eoid_data=script, eoid_cache=script, eoid_train=script, eoid_eval=script)

    def calls():
        lines = log.read_text().splitlines()
        log.unlink()
        return [line.split() for line in lines]

    return calls


def test_the_stages_in_their_order(fakes, tmp_path):
    value = demo.run_demo(tmp_path / "demo", "ua", 3)
    calls = fakes()
    assert [call[:2] for call in calls] == [
        ["eoid-data", "toy"],
        ["eoid-cache", "build"],
        ["eoid-cache", "build"],
        ["eoid-train", "student"],
        ["eoid-train", "student"],
        ["eoid-cache", "evaluate"],
        ["eoid-eval", "report"],
    ]
    # The students run beside each other.
    distilled, control = sorted(calls[3:5], key=lambda call: "--no-distillation" in call)
    changed = set(distilled) ^ set(control)
    base = str(tmp_path / "demo/seed-3/ua")
    assert changed == {f"{base}/distilled", f"{base}/no_distillation", "--no-distillation",
                       "Distilled", "No", "distillation"}  # fmt: skip
    for call in (calls[0], distilled, control):
        assert call[call.index("--seed") + 1] == "3"
    for call, option in ((calls[1], "--detector"), (calls[1], "--clip-model"),
                         (distilled, "--pretrained")):  # fmt: skip
        assert call[call.index(option) + 1] == "toy"
    assert set(value) == {"seconds", "stages", "split", "seed", "distilled", "no_distillation",
                          "teacher"}  # fmt: skip
    assert set(value["stages"]) == {"toy", "cache", "cache_test", "students", "teacher", "report"}


def test_models_of_the_seed_get_a_folder_of_their_own(fakes, tmp_path):
    value = demo.run_demo(tmp_path / "demo", "ua", 3, train_models=True)
    _, training, build, *_ = calls = fakes()
    base = tmp_path / "demo/seed-3-trained"
    assert training == ["eoid-cache", "toy-models", f"{base}/models", "--seed", "3"]
    assert build[build.index("--detector-weights") + 1] == f"{base}/models/detector.safetensors"
    assert build[build.index("--clip-model") + 1] == f"{base}/models/teacher"
    for call in (call for call in calls if call[1] == "student"):
        assert call[call.index("--pretrained") + 1] == f"{base}/models/detector.safetensors"
    assert "models" in value["stages"]


def test_the_ceiling_is_trained_once_for_all_splits(fakes, tmp_path):
    for split in ("ua", "uc"):
        value = demo.run_demo(tmp_path / "demo", split, 0, ceiling=True)
        assert "all_labels" in value and "all_labels" in value["stages"]
        (full,) = [call for call in fakes() if "full" in call]
        assert full[full.index("--out") + 1] == str(tmp_path / "demo/seed-0/full/all_labels")
    value = demo.run_demo(tmp_path / "demo", "ua", 0)
    assert not any("all_labels" in name for name in [*value, *value["stages"]])


def test_a_users_split_gets_runs_of_its_own(fakes, tmp_path):
    file = tmp_path / "mine.toml"
    places = []
    for verb in ("kick", "ride", "kick"):
        file.write_text(f'unseen_verbs = ["{verb}"]')
        demo.run_demo(tmp_path / "demo", str(file), 0)
        student = next(call for call in fakes() if call[1] == "student")
        places.append(Path(student[student.index("--out") + 1]).parent.name)
        assert student[student.index("--split") + 1] == str(file)
    assert places[0] == places[2] != places[1]
    assert all(place.startswith("mine-") for place in places)


def test_wrong_use_of_the_program_is_one_line_and_2(tmp_path):
    words = [PYTHON, "-m", "benchmarks.demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run([*words, "--split", "zz"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("demo.py: zz: no such split") and done.stderr.count("\n") == 1
    assert not (tmp_path / "demo").exists()
