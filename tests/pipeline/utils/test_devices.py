import os
import platform
import subprocess
import sys

import pytest
import torch

from pipeline.utils import devices
from pipeline.utils.devices import (
    autocast,
    configure_device,
    convert_out_of_memory,
    default_num_workers,
    num_usable_cores,
    resolve_device,
)
from pipeline.utils.errors import InputError

CPU = torch.device("cpu")


def test_named_devices():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU
    for name in ("", "gpu", "mps", "cuda:x", "cuda:99", "cuda:-1", "cpu cuda"):
        with pytest.raises(InputError, match="--device: "):
            resolve_device(name)


@pytest.mark.parametrize(
    ("precision", "fast", "type_"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("tf32", True, torch.float32),
    ],
)
def test_autocast_dtype(monkeypatch, precision, fast, type_):
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda _: fast)
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == type_


@pytest.fixture
def rounding(monkeypatch):
    """Returns whether TF32 is allowed for matrix products and convolutions; restores it after."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    yield lambda: [place.allow_tf32 for place in places]
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


@pytest.mark.parametrize(
    ("precision", "exact_matmul", "allowed"),
    [
        ("auto", False, [True, True]),
        ("tf32", False, [True, True]),
        ("float16", True, [False, True]),
        ("float32", False, [False, False]),
    ],
)
def test_configure_device_sets_tf32(emulated_gpu, rounding, precision, exact_matmul, allowed):
    configure_device(resolve_device("cuda"), precision, exact_matmul)
    assert rounding() == allowed
    configure_device(CPU, "float32")
    assert rounding() == allowed


def test_configure_device_sets_the_current_gpu(emulate_cuda, rounding):
    with emulate_cuda(devices=2) as gpu:
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
        assert configure_device(resolve_device("cuda:1"), "auto") == torch.device("cuda", 1)
        assert gpu.current == 1
        with pytest.raises(InputError) as caught:
            resolve_device("cuda:2")
    assert "cuda:2" in str(caught.value) and "2 GPUs" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError, "Tried to allocate 2.00 GiB. GPU 0 has a total of\n 1 GiB."),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`\n"),
    ],
)
def test_out_of_memory_is_one_line(error, message):
    with pytest.raises(InputError) as caught, convert_out_of_memory(lambda: "batch size 16"):
        raise error(message)
    line = str(caught.value)
    assert "batch size 16" in line and message.split(". ")[0].strip() in line and "\n" not in line


def test_other_errors_are_not_converted():
    with pytest.raises(RuntimeError, match="shapes") as caught, convert_out_of_memory(lambda: ""):
        raise RuntimeError("shapes differ")
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("cores", "setting", "processes", "workers"),
    [
        (1, None, 1, 0),
        (5, None, 1, 3),
        (64, None, 1, 16),
        (2, 0, 1, 0),
        (2, 6, 1, 6),
        (64, None, 4, 14),
        (16, None, 8, 1),
        (16, None, 16, 0),
    ],
)
def test_default_num_workers(monkeypatch, cores, setting, processes, workers):
    monkeypatch.setattr(devices, "num_usable_cores", lambda: cores)
    assert default_num_workers(setting, processes=processes) == workers


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Simulates a machine by its number of cores, control groups, and files of /sys and /proc."""

    def make(count, groups="", **files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
        for name, text in {"proc/self/cgroup": groups, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(devices, "PROC", tmp_path / "proc")
        monkeypatch.setattr(devices, "CGROUPS", tmp_path / "groups")

    return make


def test_affinity_limits_cores(machine, monkeypatch, tmp_path):
    machine(5)
    assert num_usable_cores() == 5
    (tmp_path / "proc/self/cgroup").unlink()
    assert num_usable_cores() == 5
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_usable_cores() == 1


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"groups/a/b/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"groups/a/cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"groups/cpu.max": "50000 100000\n"}, 1),
        ("0::/a\n", {"groups/a/cpu.max": "max 100000\n"}, 16),
        ("0::/a\n", {"groups/a/cpu.max": "9900000 100000\n"}, 16),
        (
            "4:cpu,cpuacct:/job\n3:memory:/other\n",
            {
                "groups/cpu,cpuacct/job/cpu.cfs_quota_us": "400000\n",
                "groups/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {
                "groups/cpu/cpu.cfs_quota_us": "-1\n",
                "groups/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_control_group_quotas_limit_cores(machine, groups, files, expected):
    machine(16, groups, **files)
    assert num_usable_cores() == expected


ALLOCATE = """
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from pipeline.utils.devices import configure_device

configure_device(torch.device("cpu"), "float32")
with ThreadPoolExecutor(1) as pool:
    tensor = pool.submit(torch.ones, 1000).result()
(heap,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if "[heap]" in line]
start, end = (int(word, 16) for word in heap.split()[0].split("-"))
print(start <= tensor.data_ptr() < end)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_threads_use_the_heap_of_the_main_thread():
    """Other heaps return the memory of large activations and have to ask for it again."""
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    for user, expected in (({}, "True"), ({"MALLOC_ARENA_MAX": "2"}, "False")):
        done = subprocess.run(
            [sys.executable, "-c", ALLOCATE],
            env={**environment, **user},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected, user
