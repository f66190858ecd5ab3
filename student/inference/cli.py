"""The `eoid-predict` command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from evaluation.scoring_options import build_nms_config, nms_options
from pipeline.cluster.batch_scripts import BatchScript, write_batch_scripts
from pipeline.cluster.cli_options import cluster_options
from pipeline.utils.cli import (
    HELP_SETTINGS,
    decoding_workers_option,
    limit_option,
    run_command,
)
from pipeline.utils.cli_options import FloatRange, PathType, config_option, option
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger

if TYPE_CHECKING:
    from pipeline.cluster.modes import ExecutionMode
    from pipeline.cluster.tasks import ArrayShare

logger = get_logger(__name__)

PATH = PathType()
COUNT = click.IntRange(min=1)
PORT = click.IntRange(0, 65535)
HOST, PORT_NUMBER = "127.0.0.1", 7860
EXPORT_FORMATS = ("onnx", "torch-export")
# Images of a user: only confident detections. A dataset's part: all that the benchmark counts.
THRESHOLD, TOP = 0.3, 10
# Weight of the previous score in smoothed scores of videos.
SMOOTH = 0.7
PART_THRESHOLD, PART_TOP = 0.0, 100
# As in predict_shards.py, which loads PyTorch.
IMAGES_PER_SHARD = 256
# Options of processes and jobs that `--help` leaves to the documentation.
RARE_OPTIONS = (
    "--scheduler",
    "--dry-run",
    "--queue",
    "--gres",
    "--walltime",
    "--cores",
    "--memory",
)
BATCH_SCRIPT = BatchScript(
    "predict_array.sbatch",
    """\
Predicts with the jobs of a SLURM array, which share one output folder and need no Dask scheduler.
The arguments are those of `eoid-predict`:

  sbatch --array=0-7 --gres=gpu:1 predict_array.sbatch runs/ua photos --out predicted --shards

A job that has made its own shards goes on with those of slow and lost jobs, and the one that finds
none missing completes the results. Submit the same command again, or a single job (--array=3), if
all jobs ended before.""",
    "eoid-predict",
    is_array=True,
)


def _write_batch_script(context: click.Context, _: click.Parameter, folder: Path | None) -> None:
    if folder is not None and not context.resilient_parsing:
        for path in write_batch_scripts([BATCH_SCRIPT], folder):
            click.echo(path)
        context.exit()


@cloup.command(context_settings=HELP_SETTINGS)
@click.argument("model", metavar="RUN|CHECKPOINT", type=PathType(str))
@click.argument("images", metavar="[IMAGE|VIDEO]...", nargs=-1)
@cloup.option_group(
    "Input",
    option("--data", type=PATH, help="Predict a part of this dataset instead of IMAGEs."),
    option(
        "--part",
        type=click.Choice(["train", "test"]),
        default="test",
        show_default=True,
        help="Part of the dataset to predict.",
    ),
    limit_option("images of --data"),
    option(
        "--split",
        show_default="the run's",
        help="Zero-shot split that defines unseen interactions: a name or a TOML file.",
    ),
)
@cloup.option_group(
    "Detections",
    option(
        "--threshold",
        type=FloatRange(0, 1),
        show_default=f"{THRESHOLD:g}, with --data {PART_THRESHOLD:g}",
        help="Minimum score of the interactions that are written.",
    ),
    option(
        "--top",
        type=COUNT,
        show_default=f"{TOP}, with --data {PART_TOP}",
        help="Maximum number of interactions per image, those with the highest scores.",
    ),
    nms_options,
)
@cloup.option_group(
    "Videos",
    option(
        "--every",
        type=COUNT,
        default=1,
        show_default=True,
        metavar="N",
        help=(
            "Detect in every Nth frame. The frames between are drawn with its detections, and are"
            " not in the file of JSON lines."
        ),
    ),
    option(
        "--smooth",
        type=FloatRange(0, 1, max_open=True),
        default=SMOOTH,
        show_default=True,
        metavar="S",
        help=(
            "Smooth the scores of tracked pairs: score = S * previous score + (1 - S) * detected"
            " score. 0 switches it off."
        ),
    ),
)
@cloup.option_group(
    "Model",
    option(
        "--prompts",
        type=PATH,
        help=(
            "File of eoid-cache prompts with further actions or objects, for students with"
            " --verb-head text or --object-head text."
        ),
    ),
    option(
        "--vocabulary",
        show_default="the one with its numbers of classes",
        help="Vocabulary of a published checkpoint.",
    ),
    option(
        "--num-heads",
        type=COUNT,
        show_default="8",
        help="Number of attention heads of a published checkpoint that does not record it.",
    ),
)
@cloup.option_group(
    "Output",
    option("--out", type=PATH, help="Folder for drawn images and videos, and JSON files."),
    option(
        "--json", "json_file", type=PATH, help="Write the detections of all images to one file."
    ),
    option(
        "--export",
        type=(click.Choice(EXPORT_FORMATS), PATH),
        metavar="onnx|torch-export FILE",
        help="Write the detector as a file that runs without this package.",
    ),
    option("--overwrite", is_flag=True, help="Replace existing results."),
)
@cloup.option_group(
    "Many images",
    option(
        "--shards",
        is_flag=True,
        help="Write JSON lines in shards instead of a drawn image and a file per image.",
    ),
    option(
        "--images-per-shard",
        type=COUNT,
        default=IMAGES_PER_SHARD,
        show_default=True,
        help="Number of images per shard, of --shards and --data.",
    ),
    option(
        "--batch-scripts",
        type=PATH,
        metavar="DIR",
        is_eager=True,
        expose_value=False,
        callback=_write_batch_script,
        help="Write a script for the jobs of a SLURM array into DIR and stop.",
    ),
)
@cloup.option_group(
    "Page",
    option(
        "--serve",
        is_flag=True,
        help="Serve a page that detects in pictures and clips dropped on it.",
    ),
    option(
        "--host",
        show_default=HOST,
        help="Address of the page; 0.0.0.0 lets other machines use it, without a password.",
    ),
    option("--port", type=PORT, show_default=str(PORT_NUMBER), help="Port; 0 takes a free one."),
    option(
        "--cache",
        type=PATH,
        help=(
            "Teacher cache whose CLIP embeds further actions that are entered on the page, for"
            " students with --verb-head text."
        ),
    ),
)
@cluster_options("--processes", hidden=RARE_OPTIONS)
@cloup.option_group(
    "Batches",
    decoding_workers_option,
    option(
        "--batch-size", type=COUNT, default=8, show_default=True, help="Number of images per batch."
    ),
)
@config_option
def predict(
    model: str,
    images: tuple[str, ...],
    out: Path | None,
    json_file: Path | None,
    threshold: float | None,
    top: int | None,
    data: Path | None,
    part: str,
    limit: int | None,
    export: tuple[str, Path] | None,
    split: str | None,
    vocabulary: str | None,
    num_heads: int | None,
    prompts: Path | None,
    serve: bool,
    host: str | None,
    port: int | None,
    cache: Path | None,
    batch_size: int,
    workers: int | None,
    overwrite: bool,
    every: int,
    smooth: float,
    shards: bool,
    images_per_shard: int,
    mode: ExecutionMode | None,
    share: ArrayShare | None,
    dry_run: bool,
    threads: int | None,
    device: str,
    **options: Any,
) -> None:
    """Detect human-object interactions in images and videos.

    Instead of a run or checkpoint, toy and toy-text name weights of the package.

    IMAGEs and VIDEOs are files, folders (searched recursively) or quoted patterns such as
    "photos/**/*.jpg". For each image, --out receives a drawn image and a JSON file, and for each
    video a drawn video and a file with one JSON line per frame. With --data it receives
    predictions.json, which eoid-eval scores. --serve shows a page in the browser instead.

    Many images are predicted with --shards or --data, by several processes or jobs if you like.
    Stopped at any moment, the same command makes the missing shards.
    """
    wanted = {
        "IMAGEs": len(images) > 0,
        "--data": data is not None,
        "--export": export is not None,
        "--serve": serve,
    }
    if sum(wanted.values()) != 1:
        found = [name for name, given in wanted.items() if given]
        raise click.UsageError(
            "Expected one of IMAGEs, --data, --export and --serve after the model, found"
            f" {' and '.join(found) or 'none'}."
        )
    if images and out is None and json_file is None:
        raise click.UsageError("IMAGEs need --out, --json or both, and VIDEOs --out.")
    if data is not None and (out is None or json_file is not None):
        raise click.UsageError("--data needs --out, and takes no --json.")
    if limit is not None and data is None:
        raise click.UsageError("--limit needs --data.")
    if serve and (out is not None or json_file is not None):
        raise click.UsageError("--serve takes no --out and no --json.")
    if not serve and (host is not None or port is not None or cache is not None):
        raise click.UsageError("--host, --port and --cache need --serve.")
    if cache is not None and prompts is not None:
        raise click.UsageError("Expected either --prompts or --cache.")
    if shards and (not images or out is None or json_file is not None):
        raise click.UsageError("--shards needs IMAGEs and --out, and takes no --json.")
    is_sharded = shards or data is not None
    if not is_sharded and (mode is not None or share is not None):
        raise click.UsageError("--processes, --array and the like need --shards or --data.")
    if share is not None and overwrite:
        raise InputError("--overwrite: expected none with --array; remove the results first")
    nms = build_nms_config(**options)
    # What is checked here needs no PyTorch, whose import takes seconds.
    if images:
        from student.inference.input_files import refuse_missing

        refuse_missing(images)
    listener = None
    if serve:
        from student.inference.serve import listen

        listener = listen(host or HOST, PORT_NUMBER if port is None else port)
        logger.info(f"loading {model}")
    from student.inference.detector import Detector
    from student.inference.postprocess import SelectionConfig

    if export is not None:
        from student.inference.export import export_detector

        detector = Detector.open(model, "cpu", vocabulary, split, num_heads, prompts)
        export_detector(detector, *export, overwrite)
        click.echo(f"detector in {export[1]}")
    elif is_sharded and out is not None:
        from pipeline.cluster.modes import InProcess, SlurmJobs, resolve_mode
        from pipeline.datasets.dataset import open_dataset
        from pipeline.utils.signals import exit_on_sigterm
        from student.inference.detector import DetectorSource
        from student.inference.predict_dataset import predict_dataset
        from student.inference.predict_shards import JOB_NAME, ShardConfig, predict_shards

        if isinstance(mode, SlurmJobs):
            from pipeline.cluster.slurm import check_slurm, job_script

            if dry_run:
                click.echo(job_script(mode, out, JOB_NAME), nl=False)
                return
            check_slurm()
        mode = resolve_mode(mode, device)
        source = DetectorSource(model, device, vocabulary, split, num_heads, prompts, data)
        # Without an own device, if other processes need the GPU's memory.
        detector = source.open(None if isinstance(mode, InProcess) else "cpu")
        default_threshold, default_top = (THRESHOLD, TOP) if shards else (PART_THRESHOLD, PART_TOP)
        config = ShardConfig(
            SelectionConfig(
                default_threshold if threshold is None else threshold, top or default_top, nms
            ),
            source,
            batch_size,
            workers,
            images_per_shard,
            mode,
            share,
            threads,
        )
        with exit_on_sigterm():
            if data is None:
                predict_shards(detector, images, out, config, overwrite)
            else:
                file = predict_dataset(
                    detector, open_dataset(data), part, out, config, overwrite, limit
                )
                if file is not None:
                    click.echo(f"predictions in {file}")
    elif listener is not None:
        from student.inference.action_encoder import ActionEncoder
        from student.inference.page import PageConfig
        from student.inference.serve import serve as serve_page

        selection = SelectionConfig(THRESHOLD if threshold is None else threshold, top or TOP, nms)
        with listener:
            detector = Detector.open(model, device, vocabulary, split, num_heads, prompts)
            encoder = None
            if cache is not None:
                reopen = partial(Detector.open, model, device, vocabulary, split, num_heads)
                encoder = ActionEncoder(detector, cache, reopen)
            serve_page(detector, PageConfig(selection, every, smooth), listener, encoder)
    else:
        from student.inference.predict_images import predict_images

        detector = Detector.open(model, device, vocabulary, split, num_heads, prompts)
        selection = SelectionConfig(THRESHOLD if threshold is None else threshold, top or TOP, nms)
        predict_images(
            detector,
            images,
            out,
            json_file,
            selection,
            batch_size,
            workers,
            overwrite,
            every,
            smooth,
        )


def main() -> None:
    """Entry point of `eoid-predict`."""
    run_command(predict)


if __name__ == "__main__":
    main()
