"""Measures how much one slow job of several delays a cache.

Builds a cache of the toy dataset with the jobs of an array, or with worker processes. A pause
before every shard stands for the teacher's time; one process pauses ten times as long. The time
counts from the moment when all processes have loaded their models, until no shard is missing.
Prints JSON with it and the time of the best distribution: the earliest at which processes of these
speeds can have made so many shards.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.program import run_main
from pipeline.cluster.modes import LocalWorkers
from pipeline.cluster.tasks import ArrayShare, Postponed
from pipeline.toy import TOY
from pipeline.toy.generate import write_toy
from teacher_cache import build
from teacher_cache.extraction.inputs import get_build_inputs
from teacher_cache.extraction.task import ShardTask, make_shard
from teacher_cache.reader.format import SHARDS
from teacher_cache.writer.shard import ShardRecord

SLOW_FACTOR = 10
# The options of the benchmark for its processes, which inherit the environment.
OPTIONS_VARIABLE = "EOID_SLOW_JOB"


def make_slowly(task: ShardTask, on_progress: Callable[[int], None]) -> ShardRecord | Postponed:
    """`make_shard` after a pause; records the time in a file."""
    options = json.loads(os.environ[OPTIONS_VARIABLE])
    calls = Path(options["folder"]) / "calls"
    get_build_inputs(task.inputs_config)
    calls.mkdir(exist_ok=True)
    process = calls / f"{os.getpid()}.process"
    if not process.exists():
        process.touch()
        while len(list(calls.glob("*.process"))) < options["jobs"]:
            time.sleep(0.01)
    # The first process is the slow one.
    with suppress(FileExistsError):
        (calls / "slow").symlink_to(process.name)
    is_slow = os.readlink(calls / "slow") == process.name
    start = time.time()
    time.sleep(options["seconds"] * (SLOW_FACTOR if is_slow else 1))
    record = make_shard(task, on_progress)
    call = {"pid": os.getpid(), "start": start, "end": time.time()}
    (calls / f"{task.path.stem}-{os.getpid()}.json").write_text(json.dumps(call))
    return record


def run_builds(folder: Path, options: argparse.Namespace) -> None:
    """Builds the cache, by jobs in processes of their own or by a command with workers."""
    if options.mode == "workers":
        # The standard output is for the JSON only.
        with redirect_stdout(sys.stderr):
            build_slowly(folder, mode=LocalWorkers(options.jobs))
        return
    command = [sys.executable, "-m", "benchmarks.slow_job"]
    command += ["--own-shards"] * options.own_shards
    jobs = [
        subprocess.Popen([*command, "--share", f"{index}/{options.jobs}"], stdout=sys.stderr)
        for index in range(options.jobs)
    ]
    for job in jobs:
        job.wait()
    if any(job.returncode for job in jobs):
        raise SystemExit("a job failed")


def build_slowly(folder: Path, **changes: Any) -> None:
    config = build.BuildConfig(
        folder / "toy", folder / "cache", images_per_shard=1, threads=1, device="cpu", **changes
    )
    build.make_shard = make_slowly
    build.build_cache(replace(config, detector=TOY, clip_model=TOY))


def best_time(shards: int, seconds: Sequence[float]) -> float:
    """The earliest time at which jobs that take so many seconds can have made so many shards."""
    times = sorted(count * each for each in seconds for count in range(1, shards + 1))
    return next(
        time for time in times if sum(math.floor(time / each + 1e-9) for each in seconds) >= shards
    )


def summarise(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times and numbers of shards, from the records of the processes."""
    folder_of_calls = folder / "calls"
    calls = [json.loads(path.read_text()) for path in folder_of_calls.glob("*.json")]
    slow = int(Path(os.readlink(folder_of_calls / "slow")).stem)
    others = {int(path.stem) for path in folder_of_calls.glob("*.process")} - {slow}
    pids = [slow, *sorted(others)]
    # A worker whose shard another one has made in the meantime is stopped before its first shard.
    seconds = [
        statistics.mean(
            [call["end"] - call["start"] for call in calls if call["pid"] == pid]
            or [options.seconds * (SLOW_FACTOR if pid == slow else 1)]
        )
        for pid in pids
    ]
    begin = min(call["start"] for call in calls)
    finished = max(path.stat().st_mtime for path in (folder / "cache" / SHARDS).iterdir())
    return {
        "mode": options.mode + (" --own-shards" if options.own_shards else ""),
        "shards": options.shards,
        "seconds": round(finished - begin, 2),
        "best_distribution": round(best_time(options.shards, seconds), 2),
        "seconds_per_shard": [round(each, 2) for each in seconds],
        "shards_by_process": [sum(call["pid"] == pid for call in calls) for pid in pids],
        "made_twice": len(calls) - options.shards,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["array", "workers"], default="array")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=3.0, help="Pause before a shard.")
    parser.add_argument("--own-shards", action="store_true", help="Jobs take over no shards.")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        folder = Path(json.loads(os.environ[OPTIONS_VARIABLE])["folder"])
        share = replace(ArrayShare.parse(options.share), own_only=options.own_shards)
        build_slowly(folder, share=share)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[OPTIONS_VARIABLE] = json.dumps(
            {"folder": name, "jobs": options.jobs, "seconds": options.seconds}
        )
        write_toy(folder / "toy", train=options.shards, test=1, seed=0)
        run_builds(folder, options)
        print(json.dumps(summarise(folder, options), indent=2))


if __name__ == "__main__":
    # Workers import this module by its name, not as the program.
    from benchmarks import slow_job

    run_main(slow_job.main)
