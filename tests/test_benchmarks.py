"""The benchmarks, with the smallest sizes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command, run_words
from PIL import Image

from benchmarks import (
    cache_build,
    cache_read,
    dataset_sheet,
    evaluate,
    overfit,
    pair_recall,
    photograph_cost,
    predict,
    slow_job,
    student_step,
    swig_evaluation,
    vlm_passes,
    vocabulary_size,
    zoo,
)
from benchmarks.program import run_main
from benchmarks.timing import Timings, time_in_turns
from pipeline.types import Pairs
from pipeline.utils.errors import InputError
from student.weights.checkpoint_file import CHECKPOINT, load_checkpoint
from student.weights.zoo import ReadyWeights, read_zoo


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(module, options)` gives what a benchmark prints."""

    def start(module, options):
        monkeypatch.setattr(sys, "argv", ["benchmark", *options.split()])
        module.main()
        return json.loads(capsys.readouterr().out)

    return start


def test_evaluation(run, monkeypatch):
    monkeypatch.setattr(evaluate, "IMAGES", 40)
    monkeypatch.setattr(evaluate, "LABELS", 150)
    result = run(evaluate, "--detections 20")
    assert (result["images"], result["labels"], result["detections"]) == (40, 150, 800)
    assert result["mean_ap"] > 0.1, "about half of the detections are correct"
    assert result["seconds"].keys() == {"default_setting", "both_settings", "pairwise_nms"}


def test_evaluation_of_swig_hoi(run, monkeypatch):
    monkeypatch.setattr(swig_evaluation, "IMAGES", 40)
    monkeypatch.setattr(swig_evaluation, "PAIRS", 80)
    result = run(swig_evaluation, "--detections 20")
    assert (result["images"], result["pairs"], result["detections"]) == (40, 80, 800)
    assert result["largest_difference"] < 1e-12 and result["mean_ap"] > 0
    assert result["command"]["peak_mb"] > 0


@pytest.mark.slow
def test_sizes_of_vocabularies(run):
    """Nothing grows faster than the vocabulary."""
    found = run(vocabulary_size, "--turns 1 --side 64 --batch-size 1")["ratios"]
    growth = found["interactions"]["ratio"]
    assert growth == 23.55 and found["objects"]["ratio"] == 12.5
    hico, swig = found["bytes of a pair in the cache"]["sizes"].values()
    assert swig - hico == 2 * (407 - 117), "float16 probabilities of every verb"
    # What takes milliseconds only is not compared.
    for stage in ("training step", "report"):
        assert found[stage]["ratio"] < growth, stage


def test_reading_a_cache(run):
    sizes = "--shards 2 --images 4 --pairs 3 --verbs 11 --width 6 --reads 8"
    result = run(cache_read, f"{sizes} --workers 0 1")
    assert result["seconds_to_open"] > 0
    for times in result["microseconds_by_workers"].values():
        assert 0 < times["p50"] <= times["p99"]


def test_passes_of_a_vision_language_model(run):
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    result = run(vlm_passes, "--width 32 --layers 2 --size 56 --turns 1 --object cup --device cpu")
    assert result["prompts"] == 9 and result["largest_difference"] < 1e-4
    assert result["tokens"]["shared"] < result["tokens"]["whole"] and result["ratio"] > 1


def test_videos(run, monkeypatch, tmp_path):
    pytest.importorskip("trackers", reason="the extra video is not installed")
    from benchmarks import video

    def copy(folder, clip, out, options):
        out.mkdir(exist_ok=True)
        shutil.copy(clip, out)
        return {"options": options}

    monkeypatch.setattr(video, "measure", copy)
    Image.new("RGB", (90, 70), "green").save(tmp_path / "a.png")
    words = f"RUN {tmp_path / 'a.png'} --seconds 0.2 0.4 --options=--every=5"
    result = run(video, f"{words} --figure {tmp_path / 'a.jpg'}")
    clips = result["seconds_of_clips"]
    assert clips == {"0.2": {"options": ["--every=5"]}, "0.4": {"options": ["--every=5"]}}
    with Image.open(tmp_path / "a.jpg") as figure:
        assert figure.size == (3 * 72 + 2 * video.GAP, 56)


@pytest.mark.slow
def test_building_a_cache(run):
    sizes = "--images 2 --pairs 3 --turns 1 --clip-model ViT-S-32-alt"
    result = run(cache_build, f"{sizes} --device cpu")
    assert result["regions"] == 6 and result["ratio"] > 0
    stages = {"header", "decode", "crop", "encode", "wait for embeddings", "write"}
    assert set(result["stages"]) == {"build", *stages}
    assert 0 < result["stages"]["encode"]["seconds"] < result["stages"]["build"]["seconds"]
    assert min(result["decoding"]["images_per_second"].values()) > 0


@pytest.mark.slow
def test_a_training_step(run):
    models = "--backbone resnet18 --clip-model ViT-S-32-alt --device cpu"
    sizes = "--side 64 --images 4 --turns 1 --steps 1 --workers 1"
    result = run(student_step, f"{models} {sizes}")
    assert result["cache"]["ratio"] > 0 and result["teacher"]["ratio"] > 0
    regions = result["teacher"]["regions"]
    assert regions["every_layer"] > regions["each_pair_once"]


def test_training_steps_with_other_backbones(run):
    words = "--backbone resnet18 --compare timm:test_vit --device cpu --images 2 --turns 1"
    found = run(student_step, f"{words} --side 64")["backbones"]
    states, models = ("trained", "frozen"), ("resnet18", "timm:test_vit")
    names = {f"{one}, {state}" for one in models for state in states}
    assert found.keys() == names and all(one["ratio"] > 0 for one in found.values())
    trained, frozen = (found[f"timm:test_vit, {state}"] for state in states)
    assert 0 < frozen["kept_megabytes"] < trained["kept_megabytes"]


@pytest.mark.slow
def test_prediction(run):
    sizes = "--images 5 --side 64 --batch-size 2 --images-per-shard 3 --turns 1 --workers 1"
    result = run(predict, f"--backbone resnet18 --device cpu {sizes}")
    # Of the shards' three and two images, some are upright.
    assert result["images"] == 5 and result["batches"] == 4
    assert result["ratio_to_read_and_model"] > 0 and result["ratio_to_model"] > 0


SMALL_STUDENT = (
    'backbone="resnet18" hidden_dim=128 feedforward_dim=256 num_encoder_layers=1'
    " num_human_object_layers=2 num_interaction_layers=2 num_queries=12 warmup_steps=50"
)


@pytest.mark.slow
def test_costs_of_a_photograph(tmp_path, monkeypatch, capsys):
    file = tmp_path / "cost.json"
    models = "--detectors ssdlite320_mobilenet_v3_large --clips ViT-S-32-alt"
    sizes = f"--photographs 1 --regions 1 --batch-size 1 --set {SMALL_STUDENT}"
    # As large as the photographs are, instead of 800 pixels.
    sizes += ' augmentation="toy"'
    words = ["benchmark", "--json", str(file), *models.split(), *sizes.split()]
    monkeypatch.setattr(sys, "argv", words)
    photograph_cost.main()
    result = json.loads(file.read_text())
    assert len(capsys.readouterr().out.splitlines()) == len(result["tasks"]) == 3
    for seconds in result["tasks"].values():
        assert seconds.keys() <= photograph_cost.STAGES.keys()
        assert all(value >= 0 for value in seconds.values()) and sum(seconds.values()) > 0
    assert all(part["peak_memory_gb"] > 0.1 for part in result["parts"].values())
    encoded = result["parts"]["ViT-S-32-alt"]
    assert len(encoded["pairs"]) == 20 and sum(encoded["pairs"]) == 232
    # 10 verbs, embeddings of dimension 256; see docs/explanation/cache-cost.md.
    expected = 232 * (46 + 2 * 10) + sum(encoded["regions"]) * (16 + 2 * 256)
    assert encoded["bytes_per_photograph"] == pytest.approx(expected / 20, rel=0.1)


def test_shares_of_stages_are_drawn(tmp_path):
    file = tmp_path / "shares.png"
    photograph_cost.draw({"a": {"read": 0.1, "detect": 2.0}, "b": {"forward": 1.0}}, file)
    with Image.open(file) as figure:
        assert figure.width > 1000


def test_turns_change_sides_and_the_first_does_not_count():
    order = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b") or 2.5}
    seconds = time_in_turns(sides, 2, torch.device("cpu")).seconds
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert seconds["b"] == [2.5, 2.5] and len(seconds["a"]) == 2


def test_ratios_compare_what_ran_side_by_side():
    turns = Timings({"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]})
    assert turns.ratio("a", "b") == 2 and turns.medians() == {"a": 3, "b": 1}


def test_a_sheet_of_a_dataset(tmp_path, monkeypatch):
    out = tmp_path / "sheet.jpg"
    photos = Path(__file__).parent / "data/photos"
    monkeypatch.setattr(sys, "argv", ["benchmark", str(photos), "--out", str(out)])
    dataset_sheet.main()
    with Image.open(out) as sheet:
        assert abs(sheet.width - dataset_sheet.WIDTH) < 8 and sheet.height > 2000
    assert out.stat().st_size < 400_000


PHOTOS = Path(__file__).parent / "data/photos"


def test_pair_recall_of_the_photographs(run, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    out = tmp_path / "recall.png"
    rows = run(pair_recall, f"{PHOTOS} --proposals {PHOTOS / 'detections.json'} --out {out}")
    rows = rows["thresholds"]
    assert [row["threshold"] for row in rows] == list(pair_recall.THRESHOLDS)
    for name in ("pairs_per_image", "recall"):
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=True) and values[0] > values[-1]
    # Of 31 annotated pairs, at the default threshold.
    assert rows[2]["recall"] == pytest.approx(14 / 31)
    assert out.read_bytes().startswith(b"\x89PNG")
    text = (PHOTOS.parents[2] / "docs/how-to/detectors.md").read_text()
    table = pair_recall.format_markdown([pair_recall.PairRecall(**row) for row in rows])
    assert table in text


def test_pairs_match_with_both_boxes_and_the_object():
    def pairs(rows):
        left, object_left, labels = np.array(rows, dtype=np.float32).T
        boxes = [np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1) for x in (left, object_left)]
        ones = np.ones(len(rows), dtype=np.float32)
        return Pairs(*boxes, labels.astype(np.int64), ones, ones, np.zeros(len(rows), np.uint8))

    # The IoU of boxes that are shifted by 3 is 7 / 13, by 4 it is 6 / 14.
    detected = [(3, 47, 1), (4, 50, 1), (0, 46, 1), (0, 50, 2)]
    match = pair_recall.match_pairs(pairs([(0, 50, 1), (90, 50, 1)]), pairs(detected))
    assert match.tolist() == [[True, False, False, False], [False] * 4]


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("--set hidden_dim", ["NAME=VALUE", "found hidden_dim"]),
        ("--set hidden=64", ["setting's name", "found hidden=64"]),
        ("--set hidden_dim=64 --set backbone=resnet18", ["backbone: expected", "found resnet18"]),
        ("--set hidden_dim=6.5", ["hidden_dim: expected", "int", "found 6.5"]),
        ("--set epochs=true", ["epochs: expected", "found true"]),
        ("--every 0", ["--every: expected at least 1, found 0"]),
        ("--photographs -1", ["--photographs", "found -1"]),
        ("--steps many", ["--steps", "many"]),
    ],
)
def test_bad_options_of_the_training_on_photographs(tmp_path, words, facts):
    options = ["--queries", "learned", "--json", tmp_path / "x.json", *words.split()]
    done = run_command(lambda: run_main(overfit.main), "overfit", *options)
    assert done.returncode == 2 and not any(tmp_path.iterdir())
    assert all(fact in done.stderr for fact in facts), done.stderr


@pytest.mark.parametrize("benchmark", [overfit, photograph_cost])
@pytest.mark.parametrize("name", ["curve", "curve.txt", "folder.json"])
def test_a_bad_output_file_is_refused_before_the_work(tmp_path, benchmark, name):
    """The folder of the checkpoints has the file's name without its suffix."""
    (tmp_path / "folder.json").mkdir()
    queries = ["--queries", "learned"] if benchmark is overfit else []
    done = run_command(
        lambda: run_main(benchmark.main), "benchmark", *queries, "--json", tmp_path / name
    )
    assert done.returncode == 2 and "expected a file that ends in .json" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("x: expected 1, found 2"), 2, "overfit: x: expected 1, found 2"),
        (FileNotFoundError(2, "No such file or directory", "gone"), 2, "gone"),
        (KeyboardInterrupt(), 130, "overfit: interrupted"),
    ],
)
def test_errors_of_a_benchmark_are_one_line(error, code, line):
    def main():
        raise error

    done = run_command(lambda: run_main(main), "overfit", "--json", "x", "--set", "a=1", "--", "b")
    assert done.returncode == code and line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_pair_recall_without_labels(monkeypatch, tmp_path):
    monkeypatch.setattr(pair_recall, "annotated_pairs", lambda annotation: [])
    with pytest.raises(InputError, match="expected labelled pairs in part train"):
        pair_recall.measure(PHOTOS, PHOTOS / "detections.json")


@pytest.mark.slow
def test_four_photographs_are_learned_by_heart(monkeypatch, tmp_path):
    """A small student of the published recipe scores on the photographs that it was trained on."""
    file = tmp_path / "four.json"
    # As in the measured trainings, the backbone keeps its random weights.
    data = "--queries learned --photographs 4 --side 64 --learning-rate 4e-4"
    options = f"{data} --batch-size 2 --steps 750 --every 250 --set {SMALL_STUDENT}"
    for _ in range(2):
        # The second call finds the run finished.
        monkeypatch.setattr(sys, "argv", ["overfit", "--json", str(file), *options.split()])
        overfit.main()
        curve = json.loads(file.read_text())["curve"]
        assert [point["step"] for point in curve] == [250, 500, 750]
        assert curve[-1]["map"] >= 0.95 and curve[-1]["total"] < curve[0]["total"] / 4
    with Image.open(file.with_suffix(".png")) as figure:
        assert figure.width > figure.height > 400
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "760", "--learning-rate", "2e-5"])
    overfit.main()
    continued = json.loads(file.read_text())["curve"]
    assert continued[:3] == curve and [point["step"] for point in continued[3:]] == [760]
    schedule = load_checkpoint(tmp_path / "four" / CHECKPOINT).state["scheduler"]
    assert schedule["_last_lr"] == pytest.approx([2e-6, 0])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--side", "96"])
    with pytest.raises(InputError, match="another side"):
        overfit.main()


@pytest.mark.slow
def test_weights_of_the_package(tmp_path, monkeypatch):
    """Two weights files and their table, from nothing."""
    out = tmp_path / "out"
    # The stages' commands in this process, which has loaded torch already.
    monkeypatch.setattr(zoo.Stages, "run", lambda self, name, *command: run_words(*command))
    rows = zoo.make_zoo(tmp_path / "work", out, 16, 24, ("--epochs", "1", "--workers", "0"))
    assert [row.name for row in rows] == list(zoo.STUDENTS) == list(read_zoo())
    table = json.loads((out / "zoo.json").read_text())
    assert [ReadyWeights(**row) for row in table] == rows
    for row in rows:
        stored = load_checkpoint(out / f"{row.name}.pt")
        trained = load_checkpoint(tmp_path / "work" / row.name / CHECKPOINT)
        assert stored.state == {} and stored.recipe == trained.recipe
        for name, value in trained.weights.items():
            torch.testing.assert_close(
                stored.weights[name], value, atol=1e-4, rtol=1e-3, check_dtype=False
            )
        assert row.images_per_second > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["array", "workers"])
def test_one_slow_job(mode):
    """As a program, because its processes import it by its name."""
    words = [sys.executable, "-m", "benchmarks.slow_job", "--mode", mode]
    words += ["--jobs", "2", "--shards", "6", "--seconds", "0.2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sum(result["shards_by_process"]) == 6 + result["made_twice"]
    # A loaded machine makes both slower.
    slow, fast = result["seconds_per_shard"]
    assert slow >= 2 and fast >= 0.2 and result["seconds"] >= 0.6


def test_the_best_time_of_unequal_jobs():
    assert slow_job.best_time(40, [30, 3, 3, 3]) == 39
    assert slow_job.best_time(6, [2.0, 0.2]) == pytest.approx(1.2)
