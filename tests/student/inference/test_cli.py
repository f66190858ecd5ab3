import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.cli import main as score_main
from student.inference.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*arguments)` runs the command in this process and returns (code, stdout, stderr)."""

    def call(*arguments, command=main):
        monkeypatch.setattr(sys, "argv", ["eoid-predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def test_images_and_options_from_a_file(run, toy_checkpoint, write_image, tmp_path):
    paths = [write_image(f"{row}.png", seed=row) for row in range(2)]
    options = tmp_path / "options.toml"
    options.write_text('top = 2\nthreshold = 0.0\nsplit = "full"\n')
    arguments = ["--out", tmp_path / "out", "--json", tmp_path / "all.json", "--device", "cpu"]
    code, out, err = run(
        toy_checkpoint, *paths, *arguments, "--config", options, "--top", 3, "--quiet"
    )
    assert (code, err) == (0, "")
    places = f"{tmp_path / 'out'} and {tmp_path / 'all.json'}"
    assert out == f"2 images, 6 interactions with a score of at least 0; results in {places}\n"
    value = json.loads((tmp_path / "all.json").read_text())
    assert [len(one["interactions"]) for one in value["pictures"]] == [3, 3]
    assert (value["top"], value["threshold"], value["split"]) == (3, 0.0, "full")


def test_predictions_of_a_part_can_be_scored(run, toy_checkpoint, dataset_root, tmp_path):
    code, out, err = run(toy_checkpoint, "--data", dataset_root, "--out", tmp_path / "out")
    assert code == 0, err
    assert out == f"predictions in {tmp_path / 'out' / 'predictions.json'}\n"
    truth = dataset_root / "annotations/test_hico.json"
    arguments = ["hico", tmp_path / "out/predictions.json", "--annotations", truth]
    assert run(*arguments, "--vocabulary", "toy", command=score_main)[0] == 0
    few = [toy_checkpoint, "--data", dataset_root, "--out", tmp_path / "few", "--limit", 2]
    assert run(*few)[0] == 0
    value = json.loads((tmp_path / "few/predictions.json").read_text())
    assert [int(one["file_name"][-12:-4]) for one in value] == [1, 4]


def test_an_unreadable_file_exits_with_2_at_the_end(run, toy_checkpoint, write_image, tmp_path):
    good, bad = write_image("good.png"), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    code, _, err = run(toy_checkpoint, bad, good, "--out", tmp_path / "out")
    assert code == 2 and (tmp_path / "out/good.jpg").is_file()
    assert sum("bad.png" in line for line in err.splitlines()) == 1
    assert err.splitlines()[-1] == "eoid-predict: 1 of 2 images could not be read"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing RUN|CHECKPOINT."),
        (["RUN"], "found none"),
        (["RUN", "a.jpg", "--data", "toy", "--out", "out"], "found IMAGEs and --data"),
        (["RUN", "a.jpg"], "IMAGEs need --out, --json or both"),
        (["RUN", "--data", "toy"], "--data needs --out"),
        (["RUN", "--data", "toy", "--out", "o", "--json", "x"], "takes no --json"),
        (["RUN", "a.jpg", "--out", "o", "--limit", "2"], "--limit needs --data"),
        (["RUN", "--data", "toy", "--out", "o", "--limit", "0"], "--limit"),
        (["RUN", "--data", "toy", "--out", "o", "--shards"], "--shards needs IMAGEs"),
        (["RUN", "a.jpg", "--json", "x", "--shards"], "--shards needs IMAGEs and --out"),
        (["RUN", "a.jpg", "--out", "o", "--processes", "2"], "need --shards or --data"),
        (["RUN", "a.jpg", "--out", "o", "--array", "0/2"], "need --shards or --data"),
        (["RUN", "a.jpg", "--out", "o", "--shards", "--array", "2/2"], "--array: expected I/N"),
        (
            ["RUN", "a.jpg", "--out", "o", "--shards", "--array", "0/2", "--overwrite"],
            "--overwrite: expected none with --array",
        ),
        (["RUN", "a.jpg", "--out", "o", "--shards", "--jobs", "2"], "together with --slurm"),
        (["RUN", "x*.jpg", "--out", "o", "--shards"], "x*.jpg: no file matches"),
        (["./toy", "a.jpg", "--out", "o"], "toy: no such file"),
        (["RUN", "a.jpg", "b.jpg", "--out", "o"], "b.jpg: no such file or folder"),
        (
            ["RUN", "a.jpg", "--out", "o", "--shards", "--processes", "2", "--slurm"],
            "--processes: expected alone, found --slurm too",
        ),
        (["RUN", "--export", "tflite", "x"], "'tflite' is not one of"),
        (["RUN", "a.jpg", "--out", "o", "--threshold", "2"], "--threshold"),
        (["RUN", "a.mp4", "--out", "o", "--every", "0"], "--every"),
        (["RUN", "a.mp4", "--out", "o", "--smooth", "2"], "--smooth"),
        (["RUN", "a.mp4", "--out", "o", "--smooth", "1"], "--smooth"),
        (["RUN", "a.mp4", "--json", "x"], "a.mp4: videos need --out"),
        (["gone", "a.jpg", "--out", "o"], "gone: no such file"),
        (["RUN", "a.jpg", "--out", "o", "--device", "abacus"], "--device: expected auto, cpu"),
        (["RUN", "a.jpg", "--out", "o", "--split", "zz"], "zz: no such split of toy"),
        (["RUN", "a.jpg", "--out", "o", "--nms-threshold", "0.5"], "--nms-threshold"),
        (["RUN", "a.jpg", "--serve"], "found IMAGEs and --serve"),
        (["RUN", "--serve", "--out", "o"], "--serve takes no --out"),
        (["RUN", "a.jpg", "--out", "o", "--port", "1"], "--host, --port and --cache need --serve"),
        (["RUN", "--serve", "--cache", "c", "--prompts", "p"], "either --prompts or --cache"),
        (["RUN", "--serve", "--port", "70000"], "--port"),
        (["RUN", "x*.jpg", "--out", "o"], "x*.jpg: no file matches"),
        (["RUN", "--data", "gone", "--out", "o"], "gone: no such dataset folder"),
        (["gone", "--export", "onnx", "x.onnx"], "gone: no such file"),
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(
    run, toy_checkpoint, write_image, tmp_path, monkeypatch, arguments, message
):
    files = {"RUN": toy_checkpoint, "a.jpg": write_image("a.jpg"), "a.mp4": tmp_path / "a.mp4"}
    files["a.mp4"].touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, out, err = run(*(files.get(word, word) for word in arguments))
    assert code == 2 and out == ""
    assert err.splitlines()[-1].startswith("eoid-predict: ") and message in err.splitlines()[-1]
    assert not any(Path().iterdir())


def test_missing_files_are_named_before_the_model_is_opened(run, tmp_path):
    for gone in ("gone.jpg", "gone.mp4"):
        code, out, err = run(tmp_path / "gone-too", gone, "--out", tmp_path / "out")
        assert (code, out, err) == (2, "", f"eoid-predict: {gone}: no such file or folder\n")
    assert not (tmp_path / "out").exists()


def test_a_video_with_a_broken_tail(run, toy_checkpoint, write_clip, read_clip, tmp_path):
    clip, out = write_clip("clip.mkv", 30, sound="aac"), tmp_path / "out"
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 2 // 3])
    arguments = ["--threshold", 0, "--top", 2, "--smooth", 0.5, "--every", 2, "--device", "cpu"]
    code, printed, err = run(toy_checkpoint, clip, "--out", out, *arguments, "--quiet")
    assert code == 0, err
    (line,) = err.splitlines()
    assert line.startswith(f"warning: {clip}: ")
    num_frames = len(read_clip(out / "clip.mp4")[1])
    assert 10 < num_frames < 30 and f"{num_frames} frames" in line
    assert printed.startswith(f"{clip}: {num_frames} frames, ")
    header, *lines = map(json.loads, (out / "clip.jsonl").read_text().splitlines())
    assert (header["every"], header["smooth"], header["top"]) == (2, 0.5, 2)
    assert [one["frame"] for one in lines] == list(range(0, num_frames, 2))


def test_no_video_is_one_line(run, toy_checkpoint, write_clip, tmp_path):
    write_clip("whole.mp4", 2)
    for content in (b"", b"text", (tmp_path / "whole.mp4").read_bytes()[:700]):
        (tmp_path / "clip.mp4").write_bytes(content)
        code, out, err = run(toy_checkpoint, tmp_path / "clip.mp4", "--out", tmp_path / "out")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"eoid-predict: {tmp_path / 'clip.mp4'}: expected a video")


INTERRUPTED_CLIP = """
import os, signal, sys
from student.inference import cli
from student.inference.video import VideoWriter
write, written = VideoWriter.write, []
def write_five(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == 5:
        os.kill(0, int(os.environ["SIGNAL"]))
VideoWriter.write = write_five
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_interrupted_video_is_playable(
    run, toy_checkpoint, write_clip, read_clip, tmp_path, number, expected
):
    clip, out = write_clip("clip.mp4", 20, sound="aac"), tmp_path / "out"
    arguments = [toy_checkpoint, clip, "--out", out, "--threshold", 0, "--device", "cpu"]
    # Sent to the process group, as by Ctrl-C.
    first = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_CLIP, *map(str, arguments)],
        capture_output=True,
        text=True,
        start_new_session=True,
        env={**os.environ, "SIGNAL": str(int(number))},
    )
    assert first.returncode == expected and "Traceback" not in first.stderr, first.stderr
    assert len(read_clip(out / "clip.mp4")[1]) == 5
    assert not (out / "clip.jsonl").exists() and not list(out.glob(".*.tmp"))
    code, _, err = run(*arguments)
    assert code == 0, err
    assert len(read_clip(out / "clip.mp4")[1]) == 20 and (out / "clip.jsonl").exists()


INTERRUPTED = """
import os, signal
from student.inference import cli, predict_images
write, written = predict_images._write_outputs, []
def write_three(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == 3:
        os.killpg(0, signal.SIGINT)
predict_images._write_outputs = write_three
cli.main()
"""


@pytest.mark.slow
def test_an_interrupt_keeps_finished_images(run, toy_checkpoint, write_image, tmp_path):
    for row in range(6):
        write_image(f"in/{row:02}.png", seed=row)
    out = tmp_path / "out"
    arguments = [toy_checkpoint, tmp_path / "in", "--out", out, "--batch-size", 1, "--workers", 1]
    # Sent from inside to the process group, as by Ctrl-C; from outside it might come too late.
    first = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, arguments), "--threshold", "0"],
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert first.returncode == 130 and "Traceback" not in first.stderr, first.stderr
    finished = {path: path.stat().st_mtime_ns for path in out.glob("[0-9]*.json")}
    assert len(finished) == 3
    assert not list(out.glob(".*.tmp"))
    code, _, err = run(*arguments, "--threshold", 0)
    assert code == 0, err
    assert len(list(out.glob("[0-9]*.json"))) == len(list(out.glob("*.jpg"))) == 6
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_pairwise_nms_is_recorded_in_the_settings(run, toy_checkpoint, write_image, tmp_path):
    arguments = (toy_checkpoint, write_image("a.png"), "--out", tmp_path / "out", "--top", 2)
    code, _, err = run(*arguments, "--nms", "--nms-threshold", 0.5)
    assert code == 0, err
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["nms"] == {"human_power": 1.0, "object_power": 0.5, "threshold": 0.5}
    code, _, err = run(*arguments)
    assert code == 2 and "found others (nms)" in err


def test_many_images_and_processes_on_the_command_line(run, toy_checkpoint, write_image, tmp_path):
    """A file that cannot be read is listed, and the exit code is 0."""
    write_image("in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"no image")
    arguments = [toy_checkpoint, tmp_path / "in", "--shards", "--out", tmp_path / "out"]
    arguments += ["--images-per-shard", 1, "--device", "cpu", "--quiet"]
    # The job also makes the shard of the other job, which has not started.
    code, out, err = run(*arguments, "--array", "0/2")
    assert code == 0 and out == f"2 images in 2 shards; results in {tmp_path / 'out'}\n"
    assert err.count("b.png") == 1 and "1 image could not be read, see" in err
    (tmp_path / "out/shards/00000.jsonl").unlink()
    code, out, err = run(*arguments, "--dry-run", "--slurm", "--set", "gres=gpu:1")
    assert code == 0 and "--job-name=eoid-predict" in out and "--gres=gpu:1" in out
    assert not (tmp_path / "out/shards/00000.jsonl").exists()


def test_the_script_of_job_arrays_is_written(run, tmp_path):
    code, out, _ = run("--batch-scripts", tmp_path / "jobs")
    script = tmp_path / "jobs/predict_array.sbatch"
    assert (code, out) == (0, f"{script}\n")
    assert 'eoid-predict "$@" --array &' in script.read_text()
    code, _, err = run("--batch-scripts", tmp_path / "jobs")
    assert code == 2 and "predict_array.sbatch: exists" in err
