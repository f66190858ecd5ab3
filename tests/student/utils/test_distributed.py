"""Distributed training and prediction with two processes on one machine, through gloo."""

import logging
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from training import assert_equal_weights, read_lines

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json
from student.utils.distributed import SINGLE_PROCESS, init_distributed, local_device
from student.utils.preemption import EXIT_REQUEUE
from student.weights.checkpoint_file import load_checkpoint


def test_collectives_of_a_single_process(messages):
    with init_distributed("cpu") as (context, device):
        assert (context, device) == (SINGLE_PROCESS, torch.device("cpu"))
        assert context.is_main_process and context.all_gather("a") == ["a"]
        assert context.all_reduce_max(3, False) == [3, 0] and context.broadcast(lambda: 5) == 5
        assert context.all_reduce_mean(torch.tensor([2.0])).item() == 2
        logging.getLogger("eoid.student").info("hello")
        with pytest.raises(InputError, match="no"), context.propagate_errors():
            raise InputError("no")
    assert messages == ["hello"]


# What a job may have left in the environment.
LEFT = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, r"RANK: expected.*found none"),
        ({"RANK": "x"}, "RANK: expected.*found x"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR: expected"),
        ({**LEFT, "RANK": "2"}, "RANK: expected a number from 0 to 1, .* found 2"),
        ({**LEFT, "MASTER_PORT": "x"}, "MASTER_PORT: expected.*found x"),
        ({**LEFT, "MASTER_PORT": "70000"}, "MASTER_PORT: expected.*65535.*found 70000"),
        ({**LEFT, "LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE: .*, found x"),
        ({**LEFT, "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE: .*, found 3"),
        ({**LEFT, "EOID_JOIN_TIMEOUT": "soon"}, "EOID_JOIN_TIMEOUT: expected a number"),
    ],
)
def test_inconsistent_variables_are_refused(monkeypatch, variables, message):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), init_distributed("cpu"):
        pass


@pytest.fixture
def left_over(monkeypatch):
    """`left_over(rank, port)` joins as one of two processes without the other; gives the error."""
    monkeypatch.setenv("EOID_JOIN_TIMEOUT", "0.3")

    def join(rank, port):
        variables = {**LEFT, "WORLD_SIZE": "2", "RANK": str(rank), "MASTER_PORT": str(port)}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for name in ("TORCHELASTIC_USE_AGENT_STORE", "SLURM_STEP_NUM_TASKS"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(InputError) as caught, init_distributed("cpu"):
            pass
        assert not torch.distributed.is_initialized()
        return str(caught.value)

    return join


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_variables_of_another_job(left_over, rank):
    """Nothing at the address, or a server that accepts connections and never responds."""
    port = free_port()
    error = left_over(rank, port)
    assert error.startswith("WORLD_SIZE: expected 2 processes") and f"127.0.0.1:{port}" in error
    with socket.create_server(("", 0)) as server:
        error = left_over(rank, server.getsockname()[1])
    assert error.startswith("WORLD_SIZE: expected 2 processes")


class WebServer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(1000)
        self.request.sendall(b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.mark.slow
def test_a_web_server_at_the_address(student_command, tmp_path):
    # A process of its own: torch reads how much it prints about sockets when it is imported.
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), WebServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = {**LEFT, "WORLD_SIZE": "2", "RANK": "1", "EOID_JOIN_TIMEOUT": "1"}
        variables["MASTER_PORT"] = str(server.server_address[1])
        ended = subprocess.run(
            [
                *(sys.executable, "-c", "from student.cli import main; main()"),
                *map(str, student_command(tmp_path / "run")),
            ],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        server.shutdown()
    # Newer versions of torch wait for an answer, older ones end with an error about it.
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert "WORLD_SIZE: expected 2 processes" in line or "MASTER_ADDR: expected the store" in line


def test_a_second_process_of_one_rank(left_over):
    server = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    torch.distributed.PrefixStore("eoid/0", server).add("process 1", 1)
    assert left_over(1, server.port).startswith("RANK: expected one process 1")


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_during_the_rendezvous(start, student_command, tmp_path, rank):
    waiting = """
import os, signal
import student.utils.distributed
def terminate(_):
    os.kill(os.getpid(), signal.SIGTERM)
student.utils.distributed.time.sleep = terminate
"""
    variables = {**LEFT, "WORLD_SIZE": "2", "RANK": str(rank), "MASTER_PORT": str(free_port())}
    code, out, err = start(student_command(tmp_path / "run"), first=waiting, **variables)()
    assert (code, out, err) == (EXIT_REQUEUE, "", "")


MESSAGES = """
import logging, torch
from pipeline.utils.errors import InputError
from pipeline.utils.logging import log_to_stderr
from student.utils.distributed import init_distributed
def reason(act):
    try:
        act()
    except InputError as error:
        return str(error)
def fail():
    raise InputError(f"rank {context.rank}")
def fail_second():
    with context.propagate_errors():
        if not context.is_main_process:
            fail()
with log_to_stderr(), init_distributed("cpu") as (context, device):
    said = [
        context.all_reduce_max(context.rank, 5 - context.rank),
        context.all_reduce_mean(torch.tensor([1.0, 3.0 * context.rank])).tolist(),
        context.all_gather({"rank": context.rank}),
        context.broadcast(lambda: context.rank + 40),
        reason(lambda: context.broadcast(fail)),
        reason(fail_second),
    ]
    for level in ("info", "warning"):
        getattr(logging.getLogger("eoid.student"), level)("once")
    logging.getLogger("eoid.student").error("each")
print(said)
sys.exit(0)
"""


def test_collectives_of_two_processes(start_processes):
    ends = [one() for one in start_processes([], first=MESSAGES)]
    expected = "[[1, 5], [1.0, 1.5], [{'rank': 0}, {'rank': 1}], 40, 'rank 0', 'rank 1']\n"
    assert [(code, out) for code, out, _ in ends] == [(0, expected)] * 2
    # Of the second process only errors are shown.
    assert [err.count("once") for _, _, err in ends] == [2, 0]
    assert [err.count("each") for _, _, err in ends] == [1, 1]


LEAVING = """
import os, time
from student.utils.distributed import init_distributed
with init_distributed("cpu") as (context, device):
    if context.is_main_process:
        time.sleep(1)
        {act}
print(os.path.exists({file!r}))
sys.exit(0)
"""


def test_processes_leave_together(start_processes, tmp_path):
    scored = tmp_path / "scored"
    first = LEAVING.format(act=f"open({str(scored)!r}, 'w').close()", file=str(scored))
    assert [one() for one in start_processes([], first=first)] == [(0, "True\n", "")] * 2


def test_processes_do_not_wait_for_a_failed_one(start_processes, student_command, tmp_path):
    failing = """
from pipeline.utils.errors import InputError
import student.engine.evaluate
def fail(*_):
    raise InputError("the disk is full")
student.engine.evaluate.write_predictions = fail
"""
    arguments = student_command(tmp_path / "run", "--batch-size", 8, "--epochs", 1, "--workers", 0)
    ends = [one() for one in start_processes(arguments, first=failing)]
    assert [code for code, _, _ in ends] == [2, 2]
    assert "the disk is full" in ends[0][2].splitlines()[-1]
    assert "process 1 of 2" in ends[1][2] and "Traceback" not in ends[1][2]


@pytest.mark.parametrize(
    ("gpus", "shown", "name", "expected"),
    [
        (4, None, "auto", "cuda:2"),
        (4, "3,1,0,2", "cuda", "cuda:2"),
        # Schedulers may show each task its own GPU alone.
        (1, "2", "auto", "cuda:0"),
        (1, "GPU-5f3a", "cuda", "cuda:0"),
        (2, "0,1", "auto", None),
        (1, None, "auto", None),
        (1, "2", "cuda:0", None),
        (4, None, "cpu", "cpu"),
    ],
)
def test_each_process_takes_another_gpu(monkeypatch, gpus, shown, name, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    if expected is None:
        with pytest.raises(InputError) as caught:
            local_device(name, 2)
        assert "--device" in str(caught.value)
    else:
        assert local_device(name, 2) == torch.device(expected)


@pytest.fixture
def different_sizes(dataset_root, make_cache, tmp_path):
    """Arguments for a dataset with training images of different sizes, by black borders, and for
    its cache."""
    root, sizes = Path(shutil.copytree(dataset_root, tmp_path / "sizes")), {}
    for row, file in enumerate(sorted((root / "images/train2015").iterdir())):
        with Image.open(file) as image:
            size = image.width + 11 * (row % 5), image.height + 13 * (row % 4)
            # Image.crop fills with black what it cuts out beyond the picture.
            image.crop((0, 0, *size)).save(file, quality=95)
            sizes[file.name] = {"width": size[0], "height": size[1]}
    labels = root / "annotations/trainval_hico.json"
    write_json(labels, [{**one, **sizes[one["file_name"]]} for one in read_json(labels)])
    cache = make_cache(tmp_path / "cache", open_dataset(root).load("train"))
    return "--data", root, "--cache", cache


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(("--accumulation", 4), marks=pytest.mark.slow),
        pytest.param(("--verb-head", "text"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(
    train_alone_and_together, different_sizes, text_cache, tmp_path, options
):
    data = ("--cache", text_cache) if "text" in options else different_sizes
    mine, theirs, _ = train_alone_and_together(*data, *options, "--epochs", 2)
    assert theirs[1]["loss"] == pytest.approx(mine[1]["loss"], rel=1e-3)
    alone, together = tmp_path / "alone", tmp_path / "together"
    # Seven images a step: four for one process, three for the other, none for both.
    logs = [read_lines(together / f"logs/rank-{rank}.jsonl") for rank in range(2)]
    for own, other, both in zip(*logs, theirs, strict=True):
        assert (len(own["image_ids"]), len(other["image_ids"])) == (4, 3)
        assert not set(own["image_ids"]) & set(other["image_ids"])
        assert both["loss"] == pytest.approx((own["loss"] + other["loss"]) / 2)
        for name, count in both["candidates"].items():
            assert count == own["candidates"][name] + other["candidates"][name]
    assert not (alone / "logs").exists()
    found, expected = (read_json(folder / "predictions.json") for folder in (together, alone))
    assert [one["file_name"] for one in found] == [one["file_name"] for one in expected]
    assert len(found) == 6


# Code to run before the command in both processes: calls `happen` in the second step of the second
# process.
IN_A_STEP = """
import os, signal, torch
from student.engine.train_step import TrainStep
original = TrainStep.losses
def losses(self, outputs, batch):
    found = original(self, outputs, batch)
    if self.execution.context.rank == 1 and self.scheduler.last_epoch == 1:
        happen(found, batch)
    return found
TrainStep.losses = losses
"""
SIGNAL = f"""{IN_A_STEP}
def happen(found, batch):
    os.kill(os.getpid(), signal.SIGTERM)
"""
POISON = f"""{IN_A_STEP}
def happen(found, batch):
    found["verb_soft"] = found["verb_soft"] * torch.nan
    found["total"] = found["total"] * torch.nan
    print(", ".join(batch.image_ids))
"""


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_after_saving(start_processes, student_command, tmp_path):
    options = ("--batch-size", 8, "--epochs", 2, "--dropout", 0.2, "--workers", 1)
    whole, stopped = (student_command(tmp_path / name, *options) for name in ("whole", "stopped"))
    assert [one()[0] for one in start_processes(whole)] == [0, 0]
    ends = [one() for one in start_processes(stopped, first=SIGNAL)]
    assert [code for code, _, _ in ends] == [75, 75], ends
    assert "saved at step 2 of 4" in ends[0][2] and "Traceback" not in ends[1][2]
    ends = [one() for one in start_processes(stopped)]
    assert [code for code, _, _ in ends] == [0, 0] and "resuming at step 2 of 4" in ends[0][2]
    assert_equal_weights(tmp_path / "stopped", tmp_path / "whole")


def test_a_non_finite_loss_of_one_process_ends_both(start_processes, student_command, tmp_path):
    arguments = student_command(tmp_path / "run", "--batch-size", 4, "--epochs", 1, "--workers", 0)
    ends = [one() for one in start_processes([*arguments, "--checkpoint-minutes", 0], first=POISON)]
    images = ends[1][1].strip()
    expected = f"eoid-train: step 2: verb_soft, total, gradient not finite on images {images}"
    assert images and [(code, err.splitlines()[-1]) for code, _, err in ends] == [(2, expected)] * 2
    checkpoint = load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert checkpoint.state["step"] == 1 and len(checkpoint.state["generators"]) == 2


def test_more_processes_than_images_per_step_are_refused(
    start_processes, student_command, tmp_path
):
    ends = [one() for one in start_processes(student_command(tmp_path / "run", "--batch-size", 1))]
    assert [code for code, _, _ in ends] == [2, 2]
    for _, _, err in ends:
        assert err.splitlines()[-1] == (
            "eoid-train: batch_size: expected an image per step for each of 2 processes, found 1"
        )
