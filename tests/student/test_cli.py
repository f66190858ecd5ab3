import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["eoid-train", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture
def student(dataset_root, cache_path, tmp_path):
    """The words of a training command into `tmp_path/run`."""
    places = ["--data", dataset_root, "--cache", cache_path, "--out", tmp_path / "run"]
    return ["student", *places, "--split", "ua", *SHORT, "--no-report"]


def without(words, option):
    place = words.index(option)
    return words[:place] + words[place + 2 :]


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


@pytest.mark.parametrize("name", ["student", "evaluate", "batch-scripts"])
def test_every_option_is_explained(run, name):
    unexplained = [one.name for one in train.commands[name].params if not getattr(one, "help", "")]
    assert set(unexplained) <= {"checkpoint", "folder"}
    code, out, err = run(name, "--help")
    assert code == 0 and err == "" and out.startswith(f"Usage: eoid-train {name} ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing option '--data'"),
        (["--preset", "tiny"], "--preset"),
        (["--epochs", "0"], "--epochs"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_wrong_use_is_one_line_and_2(run, words, message):
    code, out, err = run("student", *words)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("eoid-train: ") and message in err and "--help" in err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--split", "zz", "zz: no such split of toy"),
        ("--device", "abacus", "--device: expected auto, cpu or cuda[:i]"),
        ("--pretrained", "gone.pth", "gone.pth: no such file"),
        ("--batch-size", "many", "--batch-size"),
    ],
)
def test_bad_input_is_one_line_and_2(run, student, tmp_path, option, value, message):
    words = without(student, option) if option in student else student
    code, _, err = run(*words, option, value)
    assert code == 2 and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_a_file(run, student, tmp_path):
    (tmp_path / "run").write_text("hours of work")
    code, _, err = run(*student)
    assert code == 2 and err == f"eoid-train: {tmp_path / 'run'}: File exists\n"
    assert (tmp_path / "run").read_text() == "hours of work"


def test_another_recipe_in_the_same_folder(run, student, tmp_path):
    assert run(*student, "--epochs", 1, "--name", "First")[0] == 0
    code, _, err = run(*student, "--epochs", 1, "--seed", 3)
    assert code == 2 and err.count("\n") == 1
    assert "found another recipe (" in err and "choose a new folder or give" in err
    assert run(*student, "--epochs", 1, "--seed", 3, "--overwrite")[0] == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["seed"] == 3 and results["name"] == "run"


@pytest.fixture
def resolve(run, student, monkeypatch):
    """`resolve(*words)`: what a training command with these words would write to config.json."""
    requested = []
    monkeypatch.setattr("student.engine.run.run_student", requested.append)

    def call(*words):
        code, _, err = run(*student, *words)
        assert (code, err) == (0, "")
        (config,) = requested
        requested.clear()
        setup = build_inputs(config, SINGLE_PROCESS)
        return {**setup.plan(None, None), **config.execution_settings(1)}

    return call


def test_options_reach_the_recipe(resolve, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text(
        "epochs = 1\nsoft-weight = 0.25\ninteractive-threshold = 0.1\ntopk = 7\n"
        'queries = "learned"\n'
        'distill-verbs = "all"\nvdetach = false\nbackbone-learning-rate = 1e-4\naccumulation = 2\n'
    )
    words = "--topk 2 --num-queries 5 --no-distillation --learning-rate 1e-3 --schedule step"
    words += " --drop-epoch 7 --clip-norm 0 --candidates annotated"
    plan = resolve("--config", file, *words.split())
    assert sum(plan["split"]["distilled_verbs"]) == 10
    recipe = plan["recipe"]
    assert recipe["train"]["backbone_lr_factor"] == pytest.approx(0.1)
    assert (recipe["train"]["drop_epoch"], recipe["train"]["clip_norm"]) == (7, 0)
    assert recipe["model"]["detach_verb_queries"] is False
    assert recipe["train"]["epochs"] == 1 and recipe["train"]["batch_size"] == 8
    assert (recipe["matcher"]["topk"], recipe["matcher"]["interactive_threshold"]) == (2, 0.1)
    assert recipe["losses"]["verb_soft_weight"] == 0.25
    assert (recipe["model"]["queries"], recipe["model"]["num_queries"]) == ("learned", 5)
    assert recipe["targets"]["candidates"] == "annotated"
    assert recipe["targets"]["distillation"] is False


@pytest.mark.parametrize("preset", PRESETS)
def test_the_printed_configuration_resolves_to_the_preset(run, resolve, tmp_path, preset):
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


def test_a_file_of_another_preset_is_reported(run, resolve, student, tmp_path, monkeypatch):
    monkeypatch.setattr("student.engine.run.run_student", lambda _: None)
    file = tmp_path / "options.toml"
    file.write_text('preset = "published"\ntopk = 3\nepochs = 2\n')
    code, _, err = run(*student, "--config", file, "--preset", "toy")
    assert code == 0
    (line,) = err.splitlines()
    assert "published" in line and "epochs" in line and "topk" in line


def test_any_setting_of_the_recipe_can_be_set(resolve, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text("iou_threshold = 0.4\nhidden-dim = 64\nverb_soft_weight = 5\nbox-cost = 4\n")
    words = ["--config", file, "--set", "box_cost=3", "--set", "num-heads=2"]
    words += ["--set", "soft-weight=6", "--set", "detach_verb_queries=false"]
    recipe = resolve(*words, "--soft-weight", 7)["recipe"]
    assert recipe["matcher"]["iou_threshold"] == 0.4
    assert (recipe["model"]["hidden_dim"], recipe["model"]["num_heads"]) == (64, 2)
    assert recipe["matcher"]["box_cost"] == 3
    assert recipe["losses"]["verb_soft_weight"] == 7
    assert recipe["model"]["detach_verb_queries"] is False


def test_the_stronger_source_gives_the_rate_of_the_backbone(resolve, tmp_path):
    file = tmp_path / "options.toml"
    file.write_text("learning-rate = 1e-3\nbackbone-learning-rate = 1e-4\n")
    from_file = resolve("--config", file)["recipe"]["train"]
    assert from_file["backbone_lr_factor"] == pytest.approx(0.1)
    words = ["--config", file, "--set", "backbone_lr_factor=0.5"]
    assert resolve(*words)["recipe"]["train"]["backbone_lr_factor"] == 0.5
    words += ["--backbone-learning-rate", "3e-4"]
    assert resolve(*words)["recipe"]["train"]["backbone_lr_factor"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("assignment", "facts"),
    [
        ("hiden_dim=64", ("hiden_dim: expected a setting of eoid-train student", "hidden-dim")),
        ("hidden_dim=many", ("hidden_dim: expected integer", "found many")),
        (
            "hidden_dim=97",
            ("hidden_dim: expected a multiple of 4 and of num_heads (4)", "found 97"),
        ),
        ("iou_threshold=2", ("iou_threshold: expected", "found 2")),
        ("num_verbs=3", ("num_verbs: expected a setting",)),
        ("verb_loss=l2", ("verb_loss: expected", "focal_bce", "found l2")),
    ],
)
def test_wrong_settings_are_one_line_and_2(run, student, tmp_path, assignment, facts):
    code, _, err = run(*student, "--set", assignment)
    assert code == 2 and err.count("\n") == 1 and all(fact in err for fact in facts), err
    assert not (tmp_path / "run").exists()


def test_names_that_the_commands_repeat_are_those_of_torch_modules():
    assert (*RESNETS, "toy") == BACKBONES
    (verbs,) = [one for one in train.commands["student"].params if one.name == "distill_verbs"]
    assert tuple(verbs.type.choices) == DISTILL_CHOICES


@pytest.fixture
def annotated_cache(tmp_path, annotations, make_teacher_outputs, write_cache, vocabulary):
    """A cache of annotated boxes."""
    outputs = {
        each.image_id: make_teacher_outputs(each, spread=0) for each in annotations.annotations
    }
    folder = tmp_path / "annotated"
    return write_cache(folder, vocabulary, annotations.digest, outputs, candidates="annotated")


def test_a_cache_of_annotated_boxes(run, student, annotated_cache, tmp_path):
    words = [*without(student, "--cache"), "--cache", annotated_cache, "--epochs", 1]
    code, _, err = run(*words, "--candidates", "detector")
    assert code == 2 and err.count("\n") == 1
    assert f"--candidates: expected annotated, the protocol of {annotated_cache}, found" in err
    assert run(*words)[0] == 0
    recipe = json.loads((tmp_path / "run/config.json").read_text())["recipe"]
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert recipe["targets"]["candidates"] == results["protocol"] == "annotated"


def test_evaluating_what_is_not_there(run, dataset_root, tmp_path):
    code, _, err = run("evaluate", tmp_path / "gone", "--data", dataset_root)
    assert code == 2 and err == f"eoid-train: {tmp_path / 'gone'}: no such file\n"


def test_scripts_are_copied_once(run, tmp_path):
    script = tmp_path / "jobs/train.sbatch"
    assert run("batch-scripts", script.parent)[:2] == (0, f"{script}\n")
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n") and f"\nREQUEUE={EXIT_REQUEUE}\n" in text
    script.write_text("my own")
    code, _, err = run("batch-scripts", script.parent)
    assert code == 2 and f"{script}: exists" in err and script.read_text() == "my own"
    assert run("batch-scripts", script.parent, "--overwrite")[0] == 0
    assert script.read_text() == text
