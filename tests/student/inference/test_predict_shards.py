import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.lock import lock_folder
from pipeline.cluster.tasks import ArrayShare
from pipeline.utils.errors import InputError
from student.inference import predict_shards as module
from student.inference.detector import DetectorSource
from student.inference.postprocess import SelectionConfig
from student.inference.predict_images import predict_images
from student.inference.predict_shards import ShardConfig, predict_shards

NUM_IMAGES = 7
TIMEOUT = 240


@pytest.fixture
def folder(write_image, tmp_path):
    """A folder of images of two shapes, one of them broken."""
    for row in range(NUM_IMAGES):
        write_image(f"in/{row}.png", (64 + 32 * (row % 2), 64), row)
    (tmp_path / "in/3.png").write_bytes(b"no image")
    return tmp_path / "in"


@pytest.fixture
def predict(toy_detector, folder, tmp_path):
    """`predict(patterns, out=, overwrite=, **config)` predicts shards of two images."""

    def make(*patterns, out="out", overwrite=False, detector=toy_detector, threshold=0.0, **config):
        selection = SelectionConfig(threshold, 4)
        config = {"images_per_shard": 2, "batch_size": 2, "workers": 0, **config}
        patterns = list(map(str, patterns or [folder]))
        config = ShardConfig(selection, **config)
        predict_shards(detector, patterns, tmp_path / out, config, overwrite)

    return make


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def results(folder):
    """The contents without the working folder in the plan, and the logs of jobs."""
    found = contents(folder)
    return {name: found[name] for name in found if name[:5] not in ("plan.", "logs/")}


def rows(out):
    files = sorted((out / "shards").iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_line_for_every_image(predict, folder, toy_detector, tmp_path, messages, capsys):
    """With the content of the JSON file that an image gets without shards."""
    predict()
    out = tmp_path / "out"
    shards = [f"shards/0000{number}.jsonl" for number in range(4)]
    assert sorted(contents(out)) == ["index.json", "plan.json", *shards]
    assert [Path(row["image"]).name for row in rows(out)] == [f"{n}.png" for n in range(NUM_IMAGES)]
    with pytest.raises(InputError, match="1 of 7 images"):
        selection = SelectionConfig(0.0, 4)
        predict_images(toy_detector, [str(folder)], None, tmp_path / "a.json", selection, 2)
    pictures = json.loads((tmp_path / "a.json").read_text())
    failed = {row["image"]: row["failed"] for row in rows(out) if "failed" in row}
    index = json.loads((out / "index.json").read_text())
    assert index["failed"] == pictures["failed"]
    assert failed == {one["image"]: one["reason"] for one in index["failed"]}
    assert (index["images"], index["shards"], index["top"]) == (NUM_IMAGES, 4, 4)
    assert index["model_sha256"] == pictures["model_sha256"]
    found = [row for row in rows(out) if "failed" not in row]
    for row, picture in zip(found, pictures["pictures"], strict=True):
        scores = [[one.pop("score") for one in entry["interactions"]] for entry in (row, picture)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert row == picture
    assert "7 images in 4 shards" in capsys.readouterr().out
    assert sum("3.png" in line for line in messages[:-1]) == 1


def test_relative_paths_and_another_working_folder(predict, tmp_path, monkeypatch):
    """Results name images as they were given; the command may be repeated elsewhere."""
    monkeypatch.chdir(tmp_path)
    predict("in")
    assert rows(tmp_path / "out")[0]["image"] == "in/0.png"
    assert rows(tmp_path / "out")[3]["failed"].startswith("in/3.png: expected an image")
    before = contents(tmp_path / "out")
    (tmp_path / "out/shards/00001.jsonl").unlink()
    monkeypatch.chdir("/")
    predict(tmp_path / "in")
    assert contents(tmp_path / "out") == before


def test_names_that_are_not_utf_8(predict, folder, tmp_path):
    os.rename(os.fsencode(folder / "0.png"), os.fsencode(folder) + b"/0\xff.png")
    predict()
    assert os.fsencode(rows(tmp_path / "out")[0]["image"]).endswith(b"/0\xff.png")
    (tmp_path / "out/shards/00000.jsonl").unlink()
    predict()
    assert "failed" not in rows(tmp_path / "out")[0]


def test_a_stopped_prediction_is_resumed(predict, predicted, tmp_path, messages):
    predict(out="whole")
    predicted.clear()
    predicted.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        predict()
    assert sorted(predicted[:4]) == [f"{number}.png" for number in range(4)]
    predicted.clear()
    predicted.stop_at = None
    # An overwriting command resumes what is not finished, too.
    predict(overwrite=True)
    assert sorted(predicted) == ["4.png", "5.png", "6.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    predicted.clear()
    predict()
    assert not predicted


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "reason"])
def test_damaged_shards_are_made_again(damage, predict, predicted, tmp_path, messages):
    """A power failure may leave them."""
    predict()
    before = contents(tmp_path / "out")
    # The second shard has the unreadable image.
    path = tmp_path / "out/shards/00001.jsonl"
    whole, predicted[:] = path.read_bytes(), []
    lines = whole.splitlines(keepends=True)
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-5],
            "zeros": bytes(len(whole)),
            "reason": lines[0] + lines[1][:20] + b"\n",
        }[damage]
    )
    predict()
    assert sorted(predicted) == ["2.png", "3.png"]
    assert contents(tmp_path / "out") == before
    assert (
        sum("00001.jsonl: expected 2 lines, found a damaged file" in one for one in messages) == 1
    )


def test_damaged_shards_of_other_jobs_are_missing(predict, tmp_path, messages):
    predict(share=ArrayShare(0, 2, own_only=True))
    (tmp_path / "out/shards/00002.jsonl").write_bytes(b"")
    predict(share=ArrayShare(1, 2, own_only=True))
    assert "missing: 1 shard of other jobs, first 00002" in messages[-1]
    predict(share=ArrayShare(1, 2))
    assert len(rows(tmp_path / "out")) == NUM_IMAGES


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"[]", b'{"format": 1}'])
def test_a_damaged_plan(content, predict, tmp_path):
    predict()
    before = contents(tmp_path / "out")
    (tmp_path / "out/plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json: .*--overwrite"):
        predict()
    predict(overwrite=True)
    assert contents(tmp_path / "out") == before


def test_the_list_of_images_is_fixed(predict, predicted, write_image, tmp_path, messages):
    predict()
    before = contents(tmp_path / "out")
    predicted.clear()
    write_image("in/0-new.png")
    predict()
    assert contents(tmp_path / "out") == before and not predicted
    (line,) = [line for line in messages if "0-new.png" in line]
    assert "1 image" in line and "--overwrite" in line
    predict(overwrite=True)
    assert len(rows(tmp_path / "out")) == len(predicted) == NUM_IMAGES + 1


def test_other_settings_are_refused(predict, folder, tmp_path):
    predict()
    before = contents(tmp_path / "out")
    for change, name in (
        ({"threshold": 0.5}, "threshold"),
        ({"images_per_shard": 3}, "images_per_shard"),
    ):
        with pytest.raises(InputError, match=rf"plan.json: expected .*\({name}\)"):
            predict(**change)
    with pytest.raises(InputError, match=r"plan.json: expected .*\(arguments\)"):
        predict(folder / "0.png")
    assert contents(tmp_path / "out") == before
    predict(folder / "0.png", overwrite=True)
    assert len(rows(tmp_path / "out")) == 1


@pytest.mark.parametrize("name", ["index.json", "shards/mine.txt"])
def test_other_files_are_refused(predict, tmp_path, name):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(InputError, match=r"exists; give --overwrite"):
        predict()
    assert file.read_text() == "mine"


def test_files_of_the_user_stay(predict, tmp_path):
    """In contrast to what killed commands leave."""
    (tmp_path / "out").mkdir()
    for name in (".mine.tmp", "sub/.mine.tmp"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).touch()
    predict()
    left = tmp_path / "out/shards/.00000.jsonl.0123.tmp"
    left.touch()
    (tmp_path / "out/shards/00000.jsonl").unlink()
    predict()
    assert not left.exists()
    assert (tmp_path / "out/.mine.tmp").exists() and (tmp_path / "out/sub/.mine.tmp").exists()


def test_no_images(predict, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no images in this folder"):
        predict(tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_images_of_which_none_can_be_read(predict, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    for row in range(3):
        (tmp_path / f"bad/{row}.png").touch()
    with pytest.raises(InputError, match=r"none of 3 images could be read; the first: .*0\.png: "):
        predict(tmp_path / "bad")
    assert capsys.readouterr().out == ""
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert len(index["failed"]) == 3


def test_overwriting_what_is_in_the_way(predict, tmp_path):
    predict()
    expected = contents(tmp_path / "out")
    (tmp_path / "other/plan.json").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other/shards").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").mkdir()
    (tmp_path / "file/shards").touch()
    for out in ("other", "file"):
        with pytest.raises(InputError, match="exists; give --overwrite"):
            predict(out=out)
        predict(out=out, overwrite=True)
        assert contents(tmp_path / out) == expected
    assert not list((tmp_path / "elsewhere").iterdir())


def test_jobs_of_an_array(predict, predicted, tmp_path, messages):
    predict(out="whole")
    predicted.clear()
    for index in (2, 0):
        predict(share=ArrayShare(index, 3, own_only=True))
        assert not (tmp_path / "out/index.json").exists()
    assert "1 shard of other jobs" in messages[-1] and "00001.jsonl" in messages[-1]
    predict(share=ArrayShare(7, 8, own_only=True))
    assert any("this job has no shards" in line for line in messages)
    predict(share=ArrayShare(1, 3, own_only=True))
    assert sorted(predicted) == [f"{number}.png" for number in range(NUM_IMAGES)]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_job_makes_the_missing_shards_of_other_jobs(predict, predicted, tmp_path, messages):
    """And the results, unless a job that comes later has nothing to do."""
    predict(out="whole")
    predicted.clear()
    predict(share=ArrayShare(2, 3))
    assert sorted(predicted) == [f"{number}.png" for number in range(NUM_IMAGES)]
    assert any("made 4 shards, 3 of them of other jobs; 0 were" in line for line in messages)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    predicted.clear()
    predict(share=ArrayShare(0, 3))
    assert not predicted and contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_shard_that_another_job_finished_meanwhile_is_not_written(
    predict, toy_detector, tmp_path, messages, monkeypatch
):
    predict(out="whole")
    other = tmp_path / "whole/shards/00001.jsonl"
    result = type(toy_detector).result

    def finish_and_return(detector, *args):
        target = tmp_path / "out/shards/00001.jsonl"
        if not target.exists():
            os.link(other, target)
        return result(detector, *args)

    monkeypatch.setattr(type(toy_detector), "result", finish_and_return)
    (tmp_path / "out/shards").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/plan.json", tmp_path / "out")
    predict(share=ArrayShare(1, 4))
    assert (tmp_path / "out/shards/00001.jsonl").samefile(other)
    assert any("made 4 shards, 3 of them of other jobs; 1 were" in line for line in messages)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_worker_with_another_detector(predict, toy_checkpoint, published_checkpoint, tmp_path):
    """The file behind a path may be another one on another machine."""
    tasks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_tasks", lambda queue, *_: tasks.extend(queue.tasks) or [])
        predict(source=DetectorSource(toy_checkpoint, "cpu"), share=ArrayShare(0, 9))
    task = tasks[0].absolute()
    assert task.folder.is_absolute() and len(task) == 2
    other = replace(task.config, source=DetectorSource(published_checkpoint, "cpu"))
    with pytest.raises(InputError, match=r"other inputs than the command .*model_sha256"):
        module.make_shard(replace(task, config=other), print)
    counts = []
    record = module.make_shard(task, counts.append)
    assert counts == [1, 1] and record.path == task.path and not record.failed
    module._detectors.clear()


def test_other_jobs_leave_the_files_of_a_job_that_writes_its_results(
    predict, tmp_path, monkeypatch
):
    written = []

    def write(path, value):
        temporary = path.with_name(f".{path.name}.job.tmp")
        temporary.touch()
        other.remove_temporary_files(module.TEMPORARY_FILES)
        temporary.rename(path)
        written.append(path.name)

    monkeypatch.setattr(module, "write_json", write)
    with lock_folder(tmp_path / "out", shared=True) as other:
        predict(share=ArrayShare(0, 1))
        assert written == ["index.json"]


COMMAND = [sys.executable, "-c", "from student.inference.cli import main; main()"]


@pytest.fixture
def start(toy_checkpoint, write_image, tmp_path):
    """`start(out, *options)` starts a prediction; what still runs at the end is killed."""
    for row in range(24):
        write_image(f"many/{row:02}.png", (64, 64), row)
    started = []

    def command(out, *options):
        words = [toy_checkpoint, tmp_path / "many", "--out", tmp_path / out, "--shards"]
        words += ["--images-per-shard", "2", "--threshold", "0", "--threads", "1", *options]
        process = subprocess.Popen(
            [*COMMAND, *map(str, words)], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield command
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(condition, process):
    """Waits until a condition holds or the process has ended."""
    deadline = time.monotonic() + TIMEOUT
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def num_shards(out):
    return len(list((out / "shards").glob("*.jsonl")))


def workers_of(process):
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


@pytest.mark.slow
def test_killed_workers_and_commands(start, tmp_path):
    """And one process gives the same bytes as two, of which one is killed."""
    whole = start("whole")
    assert whole.wait() == 0, whole.stderr.read()
    expected = contents(tmp_path / "whole")
    assert len(expected) == 12 + 2

    killed = start("killed")
    wait_for(lambda: num_shards(tmp_path / "killed") >= 2, killed)
    killed.kill()
    killed.wait()
    assert num_shards(tmp_path / "killed") < 12
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed/shards").glob("*.jsonl")}
    again = start("killed")
    assert again.wait() == 0, again.stderr.read()
    assert contents(tmp_path / "killed") == expected
    assert {path: path.stat().st_mtime_ns for path in times} == times

    two = start("two", "--processes", "2")
    wait_for(lambda: num_shards(tmp_path / "two") >= 1, two)
    workers_of(two)[0].send_signal(signal.SIGKILL)
    assert two.wait() == 0, two.stderr.read()
    assert contents(tmp_path / "two") == expected


@pytest.mark.slow
def test_sigterm_asks_for_the_same_command(start, tmp_path):
    """Batch scripts requeue their job at this exit code."""
    process = start("out")
    wait_for(lambda: num_shards(tmp_path / "out") >= 1, process)
    process.terminate()
    assert process.wait() == 75
    assert "resume" in process.stderr.read()
    assert not list((tmp_path / "out").rglob(".*.tmp"))


@pytest.mark.slow
def test_jobs_of_an_array_that_start_at_the_same_time(start, tmp_path):
    jobs = [start("out", "--array", f"{index}/2") for index in range(2)]
    for job in jobs:
        assert job.wait() == 0, job.stderr.read()
    assert len(rows(tmp_path / "out")) == 24
    assert json.loads((tmp_path / "out/index.json").read_text())["shards"] == 12


@pytest.mark.slow
def test_jobs_of_slurm(slurm, start, toy_checkpoint, tmp_path):
    """An array of which a job is cancelled, and worker jobs of a command."""
    whole = start("whole")
    assert whole.wait() == 0, whole.stderr.read()
    subprocess.run(["eoid-predict", "--batch-scripts", slurm.logs / "predict"], check=True)
    script = slurm.logs / "predict/predict_array.sbatch"
    options = (toy_checkpoint, tmp_path / "many", "--shards", "--images-per-shard", 2)
    options += ("--threshold", 0, "--threads", 1, "--device", "cpu", "--out")
    resources = ("--cpus-per-task=1", "--mem=1G")

    out = tmp_path / "array"
    array = slurm.submit("--array=0-1", *resources, script, *options, out)
    log = f"eoid-predict-{array}_1.log"
    slurm.wait(lambda: (out / "shards/00001.jsonl").exists(), lambda: slurm.log(log))
    slurm("scancel", f"{array}_1")
    assert slurm.end(f"{array}_0") == "COMPLETED", slurm.log(f"eoid-predict-{array}_0.log")
    assert slurm.end(f"{array}_1") in ("CANCELLED", "COMPLETED")
    again = slurm.submit("--array=1", *resources, script, *options, out)
    assert slurm.end(f"{again}_1") == "COMPLETED", slurm.log(f"eoid-predict-{again}_1.log")
    expected = results(tmp_path / "whole")
    assert results(out) == expected

    sizes = ("--cores", 1, "--memory", "1GB", "--walltime", "00:30:00")
    command = ("eoid-predict", *options, tmp_path / "jobs", "--slurm", "--jobs", 2, *sizes)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "jobs") == expected
    assert list((tmp_path / "jobs/logs").iterdir())
