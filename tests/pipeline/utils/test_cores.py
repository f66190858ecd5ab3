import os

import pytest

from pipeline.utils import devices
from pipeline.utils.devices import num_usable_cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(8, groups, **{file: text})`: a machine with cores and control groups."""

    def make(count, groups="", **files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
        for name, text in {"proc/self/cgroup": groups, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(devices, "PROC", tmp_path / "proc")
        monkeypatch.setattr(devices, "CGROUPS", tmp_path / "groups")

    return make


def test_affinity_bounds_cores(machine):
    machine(5)
    assert num_usable_cores() == 5


def test_no_control_groups(machine, tmp_path):
    machine(5)
    (tmp_path / "proc/self/cgroup").unlink()
    assert num_usable_cores() == 5


def test_without_affinity_all_cores_count(machine, monkeypatch):
    machine(5)
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
def test_quotas_of_control_groups_bound_cores(machine, groups, files, expected):
    machine(16, groups, **files)
    assert num_usable_cores() == expected
