"""Training in jobs of a real SLURM that are preempted, requeued and cancelled."""

import subprocess

import pytest
from training import assert_equal_weights

from student.weights.checkpoint_file import CHECKPOINT, load_checkpoint

pytestmark = pytest.mark.slow

# Enough steps to signal a job during its training.
LONG = ("--batch-size", 2, "--epochs", 12, "--workers", 0)
NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=2G")


@pytest.fixture(scope="module")
def script(slurm):
    """The batch script as users get it."""
    folder = slurm.logs / "training"
    subprocess.run(["eoid-train", "batch-scripts", folder], check=True)
    return folder / "train.sbatch"


@pytest.fixture
def train(slurm, script, student_command, tmp_path):
    """Submits a training and waits until it has started; returns the job and its run folder."""

    def submit(name, *options):
        run = tmp_path / name
        _, *arguments = student_command(run, *LONG, *options)
        job = slurm.submit(*NODES, "--job-name", name, script, *arguments)
        metrics = run / "metrics.jsonl"
        # The first step has ended, so that both processes can stop after the next one.
        slurm.wait(lambda: metrics.exists() and metrics.stat().st_size > 0, lambda: log(slurm, job))
        return job, run

    return submit


def log(slurm, job):
    return slurm.log(f"eoid-train-{job}.log")


def finished(slurm, job):
    assert slurm.end(job, lambda: log(slurm, job)) == "COMPLETED", log(slurm, job)
    return log(slurm, job)


def test_preempted_jobs_are_resumed(slurm, train):
    """On two nodes: at the time limit, by `scontrol requeue`, and without preemption."""
    alone, whole = train("whole")
    assert "resuming at step" not in finished(slurm, alone)
    warned, first = train("warned")
    slurm("scancel", "--signal=USR1", warned)
    requeued, second = train("requeued")
    slurm("scontrol", "requeue", requeued)
    for job, run in ((warned, first), (requeued, second)):
        show = ("scontrol", "--oneliner", "show", "job", job)
        slurm.wait(lambda show=show: "Restarts=1 " in slurm(*show), lambda job=job: log(slurm, job))
        text = finished(slurm, job)
        assert "resuming at step" in text, text
        assert_equal_weights(run, whole)
        assert (run / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()
    assert f"job {warned} is requeued" in log(slurm, warned)


def test_a_cancelled_job_saves_and_is_not_requeued(slurm, train):
    job, run = train("cancelled")
    slurm("scancel", job)
    assert slurm.end(job) == "CANCELLED"
    slurm.wait(lambda: (run / CHECKPOINT).exists(), lambda: log(slurm, job))
    assert load_checkpoint(run / CHECKPOINT).state["step"] > 0
    assert not (run / "results.json").exists()
    assert "is requeued" not in log(slurm, job)


def test_local_world_size_of_tasks(slurm, script, tmp_path):
    stub = tmp_path / "bin/eoid-train"
    stub.parent.mkdir()
    variables = '"$SLURM_NODEID $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE"'
    stub.write_text(f"#!/bin/sh\necho {variables} >{tmp_path}/$SLURM_PROCID\n")
    stub.chmod(0o755)
    setup = f"--export=ALL,EOID_SETUP=export PATH={stub.parent}:$PATH"
    tasks = ("--ntasks=3", "--ntasks-per-node=2", "--mem=1G", "--job-name=tasks")
    finished(slurm, slurm.submit(*NODES, *tasks, setup, script))
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [one[1] for one in found] == ["0", "1", "2"] and {one[3] for one in found} == {"3"}
    of_machines = [one[0] for one in found]
    for machine, _, local_rank, _, local_size in found:
        assert int(local_size) == of_machines.count(machine) > int(local_rank)
