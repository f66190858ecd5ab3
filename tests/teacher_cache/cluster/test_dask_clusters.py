"""The programs of docs/how-to/dask-clusters.md, with clusters of this machine."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from distributed import LocalCluster

from teacher_cache.reader.format import SHARDS

PAGE = Path(__file__).parents[3] / "docs/how-to/dask-clusters.md"
PBS, LSF_AND_SGE, KUBERNETES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
RUN, PATIENCE = subprocess.run, 600
COMMAND = '"eoid-cache", "build", "hico", "--out", "hico-cache"'


@pytest.fixture
def words(shared_dataset, extraction, tmp_path):
    """The command of a build, whose cache equals `reference_cache`."""
    settings = {
        **asdict(extraction.pairing),
        "batch-size": extraction.regions_per_batch,
        "detector-batch-size": extraction.images_per_batch,
        "images-per-shard": 1,
    }
    config = tmp_path / "config.toml"
    config.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    out = tmp_path / "cache"
    command = Path(sys.executable).with_name("eoid-cache")
    words = (command, "build", shared_dataset, "--out", out, "--config", config)
    return list(map(str, words))


@pytest.fixture
def run(monkeypatch, words):
    """`run(program, name, **values)` runs a program of the page with a module of these values in
    place of an imported one, and the test's command in place of the page's; gives its output."""

    def start(program, name, **values):
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        # A build waits for workers as long as it takes.
        monkeypatch.setattr(subprocess, "run", partial(RUN, timeout=PATIENCE))
        program = program.replace(COMMAND, ", ".join(map(repr, words)))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(program, PAGE.name, "exec"), {})
        return out.getvalue()

    return start


@pytest.fixture
def jobqueue():
    """dask-jobqueue, whose import changes what Ctrl-C does."""
    handler = signal.getsignal(signal.SIGINT)
    module = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    signal.signal(signal.SIGINT, handler)
    return module


@pytest.mark.slow
def test_a_program_with_workers_of_this_machine(run, words, reference_cache, contents):
    sizes = []

    class Cluster(LocalCluster):
        def __init__(self, **options):
            # One torch thread, as in the reference.
            super().__init__(n_workers=0, threads_per_worker=1, memory_limit=0)

        def adapt(self, minimum_jobs, maximum_jobs):
            sizes.extend([minimum_jobs, maximum_jobs])
            return super().adapt(minimum=2, maximum=2)

        def __exit__(self, *_):
            # After a failed build, Dask may wait for its workers for ever.
            self.close(timeout=60)

    run(PBS, "dask_jobqueue", PBSCluster=Cluster)
    assert sizes == [8, 8]
    assert contents(Path(words[4])) == contents(reference_cache)


@pytest.mark.slow
def test_a_program_with_jobs_of_slurm_one_of_which_is_cancelled(
    slurm, run, jobqueue, words, reference_cache, contents, tmp_path
):
    """dask-jobqueue replaces it; SLURM stands for PBS, which its programs do not differ from."""
    out, cancelled = Path(words[4]), []

    class Cluster(jobqueue.SLURMCluster):
        job_cls = jobqueue.SLURMCluster.job_cls

        def __init__(self, *, resource_spec, queue, cores, memory, **options):
            super().__init__(
                queue="all", cores=1, memory="1GB", log_directory=str(tmp_path), **options
            )

        def adapt(self, minimum_jobs, maximum_jobs):
            return super().adapt(minimum_jobs=2, maximum_jobs=2)

    def cancel_one():
        slurm.wait(lambda: len(list((out / SHARDS).glob("*.h5"))) >= 1)
        running = slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
        slurm("scancel", running[0])
        cancelled.append(running[0])

    thread = threading.Thread(target=cancel_one)
    thread.start()
    run(PBS, "dask_jobqueue", PBSCluster=Cluster)
    thread.join()
    assert slurm.end(cancelled[0]) == "CANCELLED"
    assert contents(out) == contents(reference_cache)


def test_the_jobs_of_pbs_lsf_and_sge(run, jobqueue):
    """As dask-jobqueue would submit them."""
    scripts = {}

    def describe(name):
        class Cluster(getattr(jobqueue, name)):
            def __init__(self, **options):
                super().__init__(**options, scheduler_options={"dashboard_address": ":0"})
                scripts[name] = self.job_script()
                self.close()

            def __enter__(self):
                raise StopIteration

        return {name: Cluster}

    with pytest.raises(StopIteration):
        run(PBS, "dask_jobqueue", **describe("PBSCluster"))
    run(LSF_AND_SGE, "dask_jobqueue", **describe("LSFCluster"), **describe("SGECluster"))
    lines = {name: script.splitlines() for name, script in scripts.items()}
    assert {
        *("#PBS -q gpu", "#PBS -l select=1:ncpus=8:ngpus=1:mem=32gb", "#PBS -l walltime=04:00:00")
    } <= set(lines["PBSCluster"])
    assert {"#BSUB -q gpu", "#BSUB -n 8", "#BSUB -W 04:00", "#BSUB -gpu num=1"} <= set(
        lines["LSFCluster"]
    )
    assert {"#$ -q gpu", "#$ -l gpu=1,h_vmem=4G", "#$ -pe smp 8", "#$ -l h_rt=04:00:00"} <= set(
        lines["SGECluster"]
    )
    for script in scripts.values():
        (worker,) = [line for line in script.splitlines() if "dask_worker" in line]
        limits = re.findall(r"--memory-limit (\S+)", worker)
        assert limits[-1] == "0", "the last one counts"
        assert "--nthreads 8" in worker and "--lifetime 230m" in worker


@pytest.mark.slow
def test_the_resource_for_kubernetes(run, words, reference_cache, contents):
    """Its worker's command works with the variables that the operator sets."""

    def make_cluster_spec(name, image, n_workers, worker_command):
        # What the arguments of dask-kubernetes end in.
        options = ["--name", "$(DASK_WORKER_NAME)", "--dashboard", "--dashboard-address", "8788"]
        worker = {"image": image, "args": [*worker_command, *options], "resources": None}
        pods = {
            "worker": {"replicas": n_workers, "spec": {"containers": [worker]}},
            "scheduler": {"spec": {"containers": [{"image": image, "resources": None}]}},
        }
        return {"kind": "DaskCluster", "metadata": {"name": name}, "spec": pods}

    values = {"make_cluster_spec": make_cluster_spec}
    text = run(KUBERNETES, "dask_kubernetes.operator", **values)
    resource = json.loads(text)
    assert resource["metadata"]["name"] == "eoid" and resource["spec"]["worker"]["replicas"] == 8
    pods = [resource["spec"][part]["spec"] for part in ("worker", "scheduler")]
    for pod in pods:
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert [mount["name"]] == [volume["name"] for volume in pod["volumes"]]
    (container,) = pods[0]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pods[1]["containers"][0]["resources"] is None
    # The worker's port may be in use here, and the reference was made by one thread.
    replaced = {"$(DASK_WORKER_NAME)": "one", "8788": ":0", "8": "1"}
    program, *rest = [replaced.get(word, word) for word in container["args"]]
    assert program == "dask"
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        address = cluster.scheduler_address
        environment = {**os.environ, "DASK_SCHEDULER_ADDRESS": address}
        worker = subprocess.Popen(
            [sys.executable, "-m", "dask", *rest], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            port = address.rpartition(":")[2]
            subprocess.run([*words, "--scheduler", f"tcp://localhost:{port}"], check=True)
        finally:
            worker.terminate()
            worker.wait()
    assert contents(Path(words[4])) == contents(reference_cache)
