import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_command
from safetensors.torch import save_file

from pipeline.splits import DISTILL_CHOICES
from pipeline.toy.backbone import SingleFeatureMap, ToyBackbone
from pipeline.utils.config_fields import list_settings
from student.cli import main, train
from student.config import BACKBONES, PRESETS, RECIPE_PARTS, get_preset
from student.engine.run_inputs import build_inputs
from student.models.backbone import RESNETS
from student.utils.distributed import SINGLE_PROCESS
from student.utils.preemption import EXIT_REQUEUE

# Phase two has to work where neither CLIP nor the cache builder's Dask can be imported;
# the report's package may be missing too.
BLOCKED = """
import json, sys
sys.modules.update(open_clip=None, dask=None)
from student.cli import main
from student.models.timm_backbone import TimmBackbone
TimmBackbone("timm:test_vit")
for number, words in enumerate(json.loads(sys.argv[1])):
    if number:
        sys.modules["matplotlib"] = None
    sys.argv = ["eoid-train", *words]
    try:
        main()
    except SystemExit as ended:
        print("ended with", ended.code)
"""
SHORT = ["--preset", "toy", "--batch-size", "8", "--precision", "float32", "--device", "cpu"]


def run(*words):
    """A command line in this process: (exit code, stdout, stderr)."""
    done = run_command(main, "eoid-train", *words)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def student(dataset_root, cache_path, tmp_path):
    """The words of a training command into `tmp_path/run`."""
    places = ["--data", dataset_root, "--cache", cache_path, "--out", tmp_path / "run"]
    return ["student", *places, "--split", "ua", *SHORT, "--no-report"]


@pytest.mark.slow
def test_both_commands_work_without_clip(student, published_checkpoint, dataset_root, tmp_path):
    published = Path(shutil.copy(published_checkpoint, tmp_path / "published.pth"))
    body = SingleFeatureMap(ToyBackbone()).state_dict()
    save_file({f"backbone.{name}": x for name, x in body.items()}, tmp_path / "body.safetensors")
    data = ["--data", dataset_root, "--split", "ua"]
    scoring = ["--nms", "--nms-threshold", "0.99", "--show", "verbs"]
    init = ["--pretrained", tmp_path / "body.safetensors"]
    commands = (
        [*student, "--epochs", 1, "--workers", 1, *init, "--report"],
        ["evaluate", tmp_path / "run", *data, "--out", tmp_path / "again"],
        ["evaluate", published, *data],
        ["evaluate", tmp_path / "run", *data, "--out", tmp_path / "nms", *scoring],
    )
    words = json.dumps([[*map(str, words)] for words in commands])
    done = subprocess.run([sys.executable, "-c", BLOCKED, words], capture_output=True, text=True)
    *outputs, rest = done.stdout.split("ended with 0\n")
    assert len(outputs) == 4 and not rest, done.stderr
    last = [text.splitlines()[-1] for text in outputs]
    assert last[0] == f"report: {tmp_path / 'run/report.html'}"
    assert {line[:37] for line in last[1:]} == {"no report: a report needs matplotlib,"}
    for text in outputs:
        assert "split ua: 6 images" in text and "unseen" in text
    assert (tmp_path / "run/report.html").is_file()
    assert not (tmp_path / "again/report.html").exists()
    assert "after pairwise NMS" in outputs[3] and "\nverb " in outputs[3]
    first, second, third = (
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("run", "again", "nms")
    )
    assert first["metrics"] == second["metrics"]
    assert first["setting"] == "default" and first["known_object"]["metrics"]["full"] is not None
    assert (first["nms"], third["nms"]["threshold"]) == (None, 0.99)


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("--preset tiny", ["--preset", "--help"]),
        ("--epochs 0", ["--epochs", "--help"]),
        ("--learning-rate 0", ["--learning-rate", "--help"]),
        ("--batch-size many", ["--batch-size", "--help"]),
        ("--colour red", ["--colour", "--help"]),
        ("--split zz", ["zz: no such split of toy"]),
        ("--device abacus", ["--device: expected auto, cpu or cuda[:i]"]),
        ("--pretrained gone.pth", ["gone.pth: no such file"]),
        ("--set clip-norm=inf", ["--set: clip-norm: expected finite number, at least 0"]),
        ("--set hiden_dim=64", ["hiden_dim: expected a setting of eoid-train stu", "hidden-dim"]),
        ("--set hidden_dim=many", ["hidden_dim: expected integer", "found many"]),
        ("--set hidden_dim=97", ["hidden_dim: expected a multiple of 4 and of num", "found 97"]),
        ("--set iou_threshold=2", ["iou_threshold: expected", "found 2"]),
        ("--patience 2", ["patience: expected val_size above 0 as well", "found 0"]),
        ("--heads-only", ["--heads-only: expected --pretrained", "found none"]),
        ("--set num_verbs=3", ["num_verbs: expected a setting"]),
        ("--set verb_loss=l2", ["verb_loss: expected", "focal_bce", "found l2"]),
    ],
)
def test_bad_input_is_one_line_and_2(student, tmp_path, words, facts):
    code, out, err = run(*student, *words.split())
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("eoid-train: ")
    assert all(fact in err for fact in facts), err
    assert not (tmp_path / "run").exists()


def test_a_missing_option_or_checkpoint(dataset_root, tmp_path):
    code, _, err = run("student")
    assert code == 2 and err.startswith("eoid-train: Missing --data, --cache, --split, --out. See")
    code, _, err = run("evaluate", tmp_path / "gone", "--data", dataset_root)
    assert code == 2 and err == f"eoid-train: {tmp_path / 'gone'}: no such file\n"


def test_a_run_folder_that_is_a_file(student, tmp_path):
    (tmp_path / "run").write_text("hours of work")
    code, _, err = run(*student)
    assert code == 2 and err == f"eoid-train: {tmp_path / 'run'}: File exists\n"
    assert (tmp_path / "run").read_text() == "hours of work"


def test_another_recipe_in_the_same_folder(student, tmp_path):
    assert run(*student, "--epochs", 1, "--name", "First")[0] == 0
    code, _, err = run(*student, "--epochs", 1, "--seed", 3)
    assert code == 2 and err.count("\n") == 1
    assert "found others (--seed: 0, now 3)" in err and "choose a new folder or give" in err
    assert run(*student, "--epochs", 1, "--seed", 3, "--overwrite")[0] == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["seed"] == 3 and results["name"] == "run"


@pytest.fixture
def resolve(student, monkeypatch):
    """`resolve(*words)`: what a training command with these words would write to config.json."""
    requested = []
    monkeypatch.setattr("student.engine.run.run_student", requested.append)

    def call(*words):
        code, _, err = run(*student, *words)
        assert (code, err) == (0, "")
        (config,) = requested
        requested.clear()
        setup = build_inputs(config, SINGLE_PROCESS)
        return {**setup.plan(None, None, None), **config.execution_settings(1)}

    return call


def test_options_reach_the_recipe(resolve, tmp_path):
    """Options win over `--set`, and that over the file."""
    file = tmp_path / "options.toml"
    file.write_text(
        "epochs = 1\nsoft-weight = 0.25\ntopk = 7\nbox-cost = 4\niou_threshold = 0.4\n"
        'queries = "learned"\nhidden-dim = 64\ndistill-verbs = "all"\nvdetach = false\n'
    )
    words = "--topk 2 --num-queries 5 --no-distillation --schedule step --clip-norm 0"
    words += " --candidates annotated --set box_cost=3 --set num-heads=2 --set soft-weight=6"
    words += " --soft-weight 7"
    plan = resolve("--config", file, *words.split())
    assert sum(plan["split"]["distilled_verbs"]) == 10
    expected = {
        "train": {"schedule": "step", "clip_norm": 0, "epochs": 1, "batch_size": 8},
        "model": {"detach_verb_queries": False, "queries": "learned", "num_queries": 5},
        "matcher": {"topk": 2, "box_cost": 3, "iou_threshold": 0.4},
        "losses": {"verb_soft_weight": 7},
        "targets": {"candidates": "annotated", "distillation": False},
    }
    expected["model"] |= {"hidden_dim": 64, "num_heads": 2}
    for part, settings in expected.items():
        assert plan["recipe"][part].items() >= settings.items()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_printed_configuration_resolves_to_the_preset(resolve, tmp_path, preset):
    file = tmp_path / "printed.toml"
    code, text, _ = run("config", "--preset", preset)
    assert code == 0
    file.write_text(text)
    plain = ["--preset", preset]
    # The words of the fixture name some settings themselves, with other values than the preset.
    resolved = resolve(*plain, "--config", file)
    assert resolved == resolve(*plain)
    expected = get_preset(preset, 8, 11, 0).to_dict()
    assert resolved["recipe"]["losses"] == expected["losses"]
    lines = text.splitlines()
    assert f'preset = "{preset}"' in lines and "# data = ..." in lines
    for config in RECIPE_PARTS.values():
        for name, (described, _) in list_settings(config).items():
            key = (described.option or name).replace("_", "-")
            assert any(line.startswith((f"{key} = ", f"# {key} = ")) for line in lines), key


def test_a_file_of_another_preset_is_reported(resolve, student, tmp_path, monkeypatch):
    monkeypatch.setattr("student.engine.run.run_student", lambda _: None)
    file = tmp_path / "options.toml"
    file.write_text('preset = "published"\ntopk = 3\nepochs = 2\n')
    code, _, err = run(*student, "--config", file, "--preset", "toy")
    assert code == 0
    (line,) = err.splitlines()
    assert "published" in line and "epochs" in line and "topk" in line


def test_the_stronger_source_gives_the_rate_of_the_backbone(resolve, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text("learning-rate = 1e-3\nbackbone-learning-rate = 1e-4\n")
    from_file = resolve("--config", file)["recipe"]["train"]
    assert from_file["backbone_lr_factor"] == pytest.approx(0.1)
    words = ["--config", file, "--set", "backbone_lr_factor=0.5"]
    assert resolve(*words)["recipe"]["train"]["backbone_lr_factor"] == 0.5
    words += ["--backbone-learning-rate", "3e-4"]
    assert resolve(*words)["recipe"]["train"]["backbone_lr_factor"] == pytest.approx(0.3)


def test_a_flag_freezes_the_backbone(resolve, tmp_path):
    """As a learning rate of 0 does; a stronger source wins."""
    published = ["--preset", "published", "--freeze-backbone"]
    zero = resolve("--preset", "published", "--backbone-learning-rate", 0)["recipe"]
    assert zero["train"]["backbone_lr_factor"] == 0
    for words in (
        published,
        [*published, "--backbone-learning-rate", 0],
        [*published, "--set", "backbone-lr-factor=0.5"],
        ["--preset", "published", "--set", "freeze-backbone=true"],
    ):
        assert resolve(*words)["recipe"] == zero
    file = tmp_path / "options.toml"
    file.write_text("freeze-backbone = true\n")
    words = ["--preset", "published", "--config", file]
    assert resolve(*words)["recipe"] == zero
    rate = resolve(*words, "--set", "backbone-lr-factor=0.5")["recipe"]["train"]
    assert rate["backbone_lr_factor"] == 0.5 and not rate["heads_only"]
    heads = resolve("--preset", "published", "--heads-only")["recipe"]["train"]
    assert heads == {**zero["train"], "heads_only": True}


@pytest.mark.parametrize(
    ("words", "flag", "rate"),
    [
        (["--backbone-learning-rate", "1e-5"], "--freeze-backbone", "--backbone-learning-rate 1e-"),
        (["--backbone-lr-factor", "0.5"], "--freeze-backbone", "--backbone-lr-factor 0.5"),
        (["--backbone-lr-factor", "0.5"], "--heads-only", "--backbone-lr-factor 0.5"),
        (["--backbone-lr-factor", "0.5"], "--set heads-only=true", "--backbone-lr-factor 0.5"),
    ],
)
def test_a_frozen_backbone_has_no_learning_rate(student, tmp_path, words, flag, rate):
    code, _, err = run(*student, *words, *flag.split())
    option = flag.replace("--set heads-only=true", "--heads-only")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert f"{option}: expected no learning rate" in err and f"found {rate}" in err


def test_names_that_the_commands_repeat_are_those_of_torch_modules():
    assert (*RESNETS, "toy") == BACKBONES
    (verbs,) = [one for one in train.commands["student"].params if one.name == "distill_verbs"]
    assert tuple(verbs.type.choices) == DISTILL_CHOICES


def test_a_cache_of_annotated_boxes(student, annotations, make_cache, tmp_path):
    folder = tmp_path / "annotated"
    annotated_cache = make_cache(folder, annotations, spread=0, candidates="annotated")
    words = [*student, "--cache", annotated_cache, "--epochs", 1]
    code, _, err = run(*words, "--candidates", "detector")
    assert code == 2 and err.count("\n") == 1
    assert f"--candidates: expected annotated, the protocol of {annotated_cache}, found" in err
    assert run(*words)[0] == 0
    recipe = json.loads((tmp_path / "run/config.json").read_text())["recipe"]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert recipe["targets"]["candidates"] == results["protocol"] == "annotated"


def test_scripts_are_copied_once(tmp_path):
    script = tmp_path / "jobs/train.sbatch"
    assert run("batch-scripts", script.parent)[:2] == (0, f"{script}\n")
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n") and f"\nREQUEUE={EXIT_REQUEUE}\n" in text
    script.write_text("my own")
    code, _, err = run("batch-scripts", script.parent)
    assert code == 2 and f"{script}: exists" in err and script.read_text() == "my own"
    assert run("batch-scripts", script.parent, "--overwrite")[0] == 0
    assert script.read_text() == text
