import sys
from types import SimpleNamespace

import pytest
from commands import run_command

from pipeline.cluster import cli_options
from pipeline.cluster.modes import InProcess, LocalWorkers, RunningCluster, SlurmJobs
from pipeline.cluster.tasks import ArrayShare
from teacher_cache import build as builder
from teacher_cache.cli import main


@pytest.fixture
def run(tmp_path):
    """`run(*options)` runs `eoid-cache build` with `tmp_path / "c"` as the cache folder."""

    def run_build(*options, dataset="data"):
        out = tmp_path / "c"
        result = run_command(main, "eoid-cache", "build", dataset, "--out", out, *options)
        assert not out.exists()
        return result

    return run_build


@pytest.fixture
def configured(monkeypatch):
    """Configurations that the command passes to `build_cache`, which is replaced."""
    configs = []
    monkeypatch.setattr(builder, "build_cache", configs.append)
    return configs


NO_LIMITS = SlurmJobs(cores=None, memory=None, walltime=None)
RESOURCES = {"jobs": 8, "cores": 6, "memory": "20GB", "walltime": "1-0", "gres": "gpu:1"}
NAMES = {"queue": "gpu", "account": "ai", "interface": "ib0"}
LINES = {"prologue": ("one", "two"), "directives": ("--exclusive",)}


@pytest.mark.parametrize(
    "options, mode, share, threads",
    [
        ("", None, None, None),
        ("--workers 0", InProcess(), None, None),
        ("--workers 3 --threads 2", LocalWorkers(3), None, 2),
        ("--scheduler tcp://a:8786", RunningCluster("tcp://a:8786"), None, None),
        ("--array 1/4", None, ArrayShare(1, 4), None),
        ("--array 1/4 --workers 2", LocalWorkers(2), ArrayShare(1, 4), None),
        ("--array --strict", None, ArrayShare(2, 8), None),
        ("--array slurm", None, ArrayShare(2, 8), None),
        ("--array 1/4 --own-shards", None, ArrayShare(1, 4, own_only=True), None),
        ("--slurm", SlurmJobs(), None, None),
        ("--slurm --dashboard 8800", SlurmJobs(dashboard="8800"), None, None),
        ("--workers 2 --dashboard", LocalWorkers(2, "auto"), None, None),
        ("--scheduler a:1 --dashboard", RunningCluster("a:1", "auto"), None, None),
        ("--slurm --cores none --memory None --walltime none", NO_LIMITS, None, None),
        (
            "--slurm --jobs 8 --cores 6 --memory 20GB --walltime 1-0 --queue gpu --account ai"
            " --gres gpu:1 --prologue one --prologue two --directive=--exclusive --interface ib0",
            SlurmJobs(**RESOURCES, **NAMES, **LINES),
            None,
            None,
        ),
    ],
)
def test_modes(run, configured, monkeypatch, options, mode, share, threads):
    for name, value in (("ID", "2"), ("MIN", "0"), ("COUNT", "8")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    delays = []
    # Not `time.sleep` itself, which threads of other tests may call.
    monkeypatch.setattr(cli_options, "time", SimpleNamespace(sleep=delays.append))
    monkeypatch.setitem(sys.modules, "bokeh", pytest)
    assert run(*options.split()).returncode == 0
    (config,) = configured
    assert delays == ([] if share is None else [share.start_delay()])
    assert (config.mode, config.share, config.threads) == (mode, share, threads)


@pytest.mark.parametrize(
    "options, text",
    [
        ("--workers 2 --slurm", "--workers: expected alone, found --slurm too"),
        ("--scheduler a:1 --slurm", "--scheduler: expected alone, found --slurm too"),
        ("--array 0/2 --slurm", "--array: expected alone, found --slurm too"),
        ("--dashboard", "--dashboard: expected a Dask scheduler"),
        ("--dashboard --workers 0", "--dashboard: expected a Dask scheduler"),
        ("--dashboard --array 0/2", "--dashboard: expected a Dask scheduler"),
        ("--dashboard 99999 --slurm", "--dashboard: expected auto or [HOST:]PORT, such as 8787"),
        ("--dashboard a:b --workers 2", "found a:b"),
        ("--dashboard 8787 --scheduler a:1", "expected no address with --scheduler"),
        ("--dashboard --slurm", "--dashboard: needs bokeh, which is not installed: pip install"),
        ("--array 2/2", "--array: expected I/N with I from 0 to N-1, found 2/2"),
        ("--array", "--array: expected I/N or a job of a SLURM array"),
        ("--queue gpu", "--queue: expected together with --slurm, found alone"),
        ("--own-shards", "--own-shards: expected together with --array, found alone"),
        ("--directive x", "--directive: expected together with --slurm"),
        ("--dry-run", "--dry-run: expected together with --slurm"),
        ("--slurm --walltime 4h", "--walltime: expected SLURM's form"),
        ("--slurm --memory lots", "--memory: expected a size such as 16GB, found lots"),
        *(
            (f"--slurm --dry-run --memory={text}", "--memory: expected")
            for text in ("", "16", "nan")
        ),
        ("--slurm --memory=-5GB", "--memory: expected a size"),
        ("--slurm --cores 0", "--cores"),
        ("--slurm", "--slurm: expected SLURM's sbatch on this machine, found none"),
        ("--workers -1", "--workers"),
        ("--threads 0", "--threads"),
        ("--jobs 0 --slurm", "--jobs"),
        *(
            (["--slurm", "--dry-run", f"--directive={text}"], "expected an option of sbatch")
            for text in ("", " ", "exclusive", "#SBATCH", "-", "--mem=3G\nrm x")
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run, monkeypatch, tmp_path, options, text):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    done = run(*(options.split() if isinstance(options, str) else options))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and text in done.stderr


@pytest.mark.parametrize("address", ["nonsense", "a:b", "{tmp}/absent.json", "{tmp}/other.json"])
def test_a_scheduler_that_cannot_be_reached(run, shared_dataset, tmp_path, address):
    (tmp_path / "other.json").write_text('{"id": 3}')
    done = run("--scheduler", address.format(tmp=tmp_path), dataset=shared_dataset)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--scheduler: expected the address or file of a running Dask scheduler" in line


def test_a_dry_run_prints_the_job_script(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "config.toml"
    config.write_text('queue = "gpu"\nprologue = ["module load cuda", "nvidia-smi"]\ncores = 6\n')
    options = ["--config", config, "--slurm", "--walltime", "10:00:00", "--gres", "gpu:1"]
    done = run(*options, "--directive=--exclusive", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("#!")
    directives = {"--partition=gpu", "--time=10:00:00", "--cpus-per-task=6", "--gres=gpu:1"}
    directives |= {"--exclusive", f"--output={tmp_path}/c/logs/%j.log"}
    assert {f"#SBATCH {text}" for text in directives} <= set(lines)
    prologue = lines.index("module load cuda")
    assert lines[prologue + 1] == "nvidia-smi" and "dask_worker" in lines[-1]
    assert lines[prologue - 1].startswith("export OMP_NUM_THREADS=$cores")


CORES, MEMORY, TIME = "--cpus-per-task=4", "--mem=15G", "--time=04:00:00"


@pytest.mark.parametrize(
    ("options", "directives"),
    [
        ("", [CORES, MEMORY, TIME]),
        ("--cores none --memory none --walltime none", []),
        ("--memory 0", [CORES, "--mem=0", TIME]),
        ("--directive=--mem-per-cpu=4G", [CORES, TIME, "--mem-per-cpu=4G"]),
        ("--directive=-c8 --directive=--time=2:00:00", [MEMORY, "-c8", "--time=2:00:00"]),
        ("--directive=--mem-bind=local", [CORES, MEMORY, TIME, "--mem-bind=local"]),
        (
            ["--directive", "--exclusive --mem-per-gpu 4G"],
            [CORES, TIME, "--exclusive --mem-per-gpu 4G"],
        ),
        (["--directive=#SBATCH --mem=3G"], [CORES, TIME, "--mem=3G"]),
    ],
)
def test_resources_of_jobs(run, options, directives):
    """A directive replaces the option that sets the same resource."""
    words = options.split() if isinstance(options, str) else options
    lines = run("--slurm", "--dry-run", *words).stdout.splitlines()
    found = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert [text for text in found if not text.startswith(("--job", "--nt", "--out"))] == directives


def test_slurm_options_in_a_configuration_file_do_not_select_slurm(run, configured, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('queue = "gpu"\nworkers = 2\n')
    assert run("--config", config).returncode == 0
    assert configured[0].mode == LocalWorkers(2)


def test_batch_scripts_are_copied_once(tmp_path):
    def copy(*options):
        return run_command(main, "eoid-cache", "batch-scripts", tmp_path / "jobs", *options)

    result = copy()
    assert result.returncode == 0
    scripts = [tmp_path / "jobs" / name for name in ("cache.sbatch", "cache_array.sbatch")]
    assert result.stdout.split() == [str(script) for script in scripts]
    assert all(script.read_text().startswith("#!/bin/bash\n") for script in scripts)
    scripts[1].write_text("edited")
    assert copy().returncode == 2
    assert scripts[1].read_text() == "edited"
    assert copy("--overwrite").returncode == 0
    assert scripts[1].read_text() != "edited"
