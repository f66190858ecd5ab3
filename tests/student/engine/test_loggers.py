import errno
import json
import logging
import struct
import sys
import threading
import time

import pytest
from PIL import Image
from training import assert_equal_weights, read_lines

from pipeline.utils.errors import InputError
from pipeline.utils.logging import log_to_stderr
from student.engine.loggers import WandbLogger, open_loggers
from student.engine.run import run_student
from student.engine.train_step import TrainStep

# Steps 1 and 2 of a run of two epochs with one validation after each.
OPTIONS = {"epochs": 2, "val_size": 2, "val_every": 1, "schedule": "step", "log_every": 1}


class Stopped(BaseException):
    """Stands for a killed process."""


@pytest.fixture
def stop_in_second_step(monkeypatch):
    """Lets the first training stop in its second step."""
    calls, call = [], TrainStep.__call__

    def train_step(self, batch):
        calls.append(True)
        if len(calls) == 2:
            raise Stopped
        return call(self, batch)

    monkeypatch.setattr(TrainStep, "__call__", train_step)


@pytest.fixture
def offline(monkeypatch):
    """Weights & Biases without a server."""
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # The package reads the variables once per process.
    wandb.teardown()
    yield wandb
    wandb.teardown()


def read_wandb(file):
    """The history of a W&B run: a dict for each call of `log`. Its file is a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, history, parts = file.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        # Records do not cross blocks of 32 KiB; what is left of a block is 0.
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            items = record.history.item
            if items:
                # An image has several fields.
                names = (item.nested_key[0] if item.nested_key else item.key for item in items)
                values = (json.loads(item.value_json) for item in items)
                history.append(dict(zip(names, values, strict=True)))
            parts = b""
    return history


def check_values(found, run):
    """Compares {name: {step: value}} of a logger with the run's own logs."""
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        step = line["step"]
        assert found["loss"][step] == pytest.approx(line["loss"])
        for name, value in line["losses"].items():
            assert found[f"losses/{name}"][step] == pytest.approx(value, abs=1e-6)
        for name in ("lr", "backbone_lr", "images_per_second"):
            assert found[name][step] == pytest.approx(line[name])
        for name, value in line["candidates"].items():
            assert found[f"candidates/{name}"][step] == value
    for line in read_lines(run / "validation.jsonl"):
        assert found["val/seen"][line["step"]] == pytest.approx(line["metrics"]["seen"])
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    for name in ("full", "seen", "unseen"):
        assert found[f"test/{name}"][2] == pytest.approx(metrics[name])


def test_a_resumed_run_continues_its_run_of_wandb(
    configure_run, offline, stop_in_second_step, tmp_path
):
    run = tmp_path / "run"
    config = configure_run(run, log_to=["wandb"], **OPTIONS)
    with pytest.raises(Stopped):
        run_student(config)
    run_student(config)
    # Its process writes the end of the files when it ends.
    offline.teardown()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    identifier = (run / "wandb-id.txt").read_text().strip()
    assert [file.name for file in files] == [f"run-{identifier}.wandb"] * 2
    found, pictures = {}, set()
    for line in (line for file in files for line in read_wandb(file)):
        for name, value in line.items():
            found.setdefault(name, {})[line["step"]] = value
            if name.endswith("/pictures"):
                pictures.add((line["step"], name))
    check_values(found, run)
    run_student(configure_run(tmp_path / "plain", **OPTIONS))
    assert_equal_weights(run, tmp_path / "plain")
    assert pictures == {(1, "val/pictures"), (2, "val/pictures"), (2, "test/pictures")}
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/*/*.png"))) == 3


def test_wandb_prints_where_its_run_is_and_little_else(offline, tmp_path, capfd, monkeypatch):
    """And nothing with --quiet."""
    monkeypatch.delenv("WANDB_SILENT")
    for level, largest in ((logging.INFO, 4), (logging.WARNING, 0)):
        offline.teardown()
        with log_to_stderr(level), open_loggers(["wandb"], tmp_path, 0, "run", {}) as (logger,):
            for step in range(3):
                logger.log_scalars(step, {"loss": 1.0})
        offline.teardown()
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("wandb:")]
        assert out == "" and len(lines) <= largest, err
        if largest:
            (folder,) = tmp_path.glob("wandb/offline-run-*")
            assert "offline" in lines[0] and any(str(folder) in line for line in lines)


def test_tensorboard_has_the_values_of_the_run(configure_run, stop_in_second_step, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure_run(tmp_path / "run", log_to=["tensorboard"], **OPTIONS)
    with pytest.raises(Stopped):
        run_student(config)
    run_student(config)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }
    check_values(found, tmp_path / "run")
    steps = {
        name: [image.step for image in events.Images(name)] for name in events.Tags()["images"]
    }
    assert steps == {"val/pictures": [1, 2], "test/pictures": [2]}


def test_a_full_disk_ends_tensorboard_alone(tmp_path, monkeypatch, messages, capfd):
    """Its thread raises the error, which comes with one of the next calls."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = threading.excepthook
    with open_loggers(["tensorboard"], tmp_path, 0, "run", {}) as (found,):
        monkeypatch.setattr(RecordWriter, "write", write)
        deadline = time.monotonic() + 60
        while not found._is_lost and time.monotonic() < deadline:
            found.log_scalars(1, {"loss": 1.0})
            found.log_image(1, "val/pictures", Image.new("RGB", (8, 8)))
    assert threading.excepthook is before
    assert len(messages) == 1 and "--log-to tensorboard: no more values" in messages[0]
    assert "No space left on device" in messages[0] and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_named(name, module, configure_run, tmp_path, monkeypatch):
    """Before anything is loaded or written."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"--log-to {name}: .*pip install '.\[{name}\]'"):
        run_student(configure_run(tmp_path / "run", log_to=[name]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["Error", "ConnectionResetError"])
def test_an_error_of_wandb_is_one_line(kind, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")

    def init(**_):
        error = getattr(wandb, kind, ConnectionResetError)
        raise error("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(InputError, match=r"No API key configured\. Use .*WANDB_MODE=offline"):
        WandbLogger(tmp_path, "run", {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("WANDB_MODE", "none"), ("WANDB_BASE_URL", "garbage"), ("WANDB_PROJECT", "a/b")],
)
def test_bad_settings_of_wandb_are_one_line(name, value, offline, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"--log-to wandb: .*WANDB_MODE=offline"):
        WandbLogger(tmp_path, "run", {})


@pytest.mark.parametrize(
    "content", [b"", b"a/b:c\n", b"\xff\n"], ids=["empty", "characters", "bytes"]
)
def test_a_damaged_identifier_is_named(content, offline, tmp_path):
    (tmp_path / "wandb-id.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"wandb-id\.txt: "):
        WandbLogger(tmp_path, "run", {})


def test_an_error_of_wandb_does_not_end_the_training(offline, tmp_path, monkeypatch, messages):
    """Its process may be killed."""
    with open_loggers(["wandb"], tmp_path, 0, "run", {}) as (found,):
        run, calls = found._run, []

        def log(values):
            calls.append(values)
            raise ConnectionResetError("Connection lost")

        monkeypatch.setattr(run, "log", log)
        found.log_scalars(1, {"loss": 1.0})
        found.log_image(1, "val/pictures", Image.new("RGB", (8, 8)))
    run.finish()
    assert calls == [{"loss": 1.0, "step": 1}]
    assert sum("Connection lost" in line for line in messages) == 1


def test_loggers_are_closed_after_an_error(tmp_path, monkeypatch):
    closed = []
    for kind in ("TensorBoardLogger", "WandbLogger"):
        logger = type(kind, (), {"close": lambda self, code: closed.append(code)})
        monkeypatch.setattr(f"student.engine.loggers.{kind}", lambda *_, made=logger: made())
    names = ["tensorboard", "wandb", "wandb"]
    with open_loggers(names, tmp_path, 0, "run", {}) as found:
        assert len(found) == 2
    with pytest.raises(Stopped), open_loggers(names, tmp_path, 0, "run", {}):
        raise Stopped
    assert closed == [0, 0, 1, 1]
